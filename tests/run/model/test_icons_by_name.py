"""Every icon is found by its name, whatever the recipe replaces in prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from cm3core.document import Text, text_of
from cm3core.interfaces import DocumentSource
from cm3plugins.datasets.icons import IconSourceConfig
from cm3run.model.prepending import search
from cm3run.words import words_of
from few_icons import model_over_few_icons

#: Names that the bundled model's recipe changes when this was written, of 32,785.
NUM_CHANGED = 492


class Captions(DocumentSource):
    """The captions of icons: to draw and embed their pictures takes minutes, and prompts find texts."""

    fingerprint = "captions"

    def __init__(self, captions: Sequence[str]) -> None:
        self.captions = captions

    def __len__(self):
        return len(self.captions)

    def id(self, index):
        return str(index)

    def _document(self, index, rng):
        return (Text(self.captions[index]),)


@pytest.mark.slow
def test_every_name_that_would_be_rewritten_finds_its_own_thing():
    icons = IconSourceConfig(split="all").build()
    names = sorted({icons.group(index) for index in range(len(icons))})
    with model_over_few_icons() as model:
        config, embedder = model.recipe.retriever, model.components.retriever._embedder
    changed = [name for name in names if model.query_text(name) != name]
    assert len(changed) >= NUM_CHANGED
    captions = [text_of(icons.document(index)) for index in range(len(icons))]
    plain = replace(config, compare="both", cache=False)
    # which of those that are found stands first for its colour is not asked here
    words = replace(model.recipe.prompt_rewriter, unless_asked_for=[])
    model.components.prompt_rewriter = words.build()
    model.components.retriever = plain.build(Captions(captions), embedder)
    for style in ("", ", outline, lucide"):
        prompts = [f"{name}{style}" for name in changed]
        found = search(model, [(Text(one),) for one in prompts], 7, [()] * len(prompts))
        others = []
        for name, one in zip(changed, found, strict=True):
            thing = captions[one.results[0].index].split(",")[0]
            asked, said = sorted(words_of(name)), sorted(words_of(thing))
            # "cardigan, outline" may be "clothes cardigan, outline" where the other is filled
            if asked != said and not (style and set(said).issuperset(asked)):
                others.append((name, thing))
        assert others == []
