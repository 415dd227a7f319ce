"""What everyday prompts and names find among the icons, as docs/retrieval.md says; `python docs/_words.py` measures all
names."""

from __future__ import annotations

import _words
import pytest

from cm3plugins.embedders import MiniLMConfig
from cm3plugins.retrievers import HybridRetrieverConfig

#: Of 60 everyday prompts, so many at least find the thing first.
LEAST = 50


@pytest.mark.slow
def test_everyday_prompts_and_names_find_their_things() -> None:
    captions = _words.icon_captions()
    config = HybridRetrieverConfig(
        encoder=MiniLMConfig(), vectors="bundled:icons", only_if_asked=["colour"]
    )
    retriever = config.build(_words.Texts(captions), None)
    prompts = list(_words.everyday())
    found = _words.first(retriever, [prompt for prompt, _ in prompts])
    right = [
        _words.name_key(name) in accepted
        for (_, accepted), (name, _) in zip(prompts, found, strict=True)
    ]
    assert len(right) == 60
    assert sum(right) >= LEAST
    absent = [one.score for _, one in _words.first(retriever, _words.ABSENT)]
    assert sum(score < 0.5 for score in absent) > len(absent) // 2


def test_every_prompt_has_accepted_names() -> None:
    prompts = list(_words.everyday())
    assert len(prompts) == len({prompt for prompt, _ in prompts}) == 60
    assert all(all(names) for _, names in prompts)
