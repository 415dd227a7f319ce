"""A metric or an extractor in the recipe of a run would do nothing: it is refused, and named what reads it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

from cm3apps.cli.main import main
from cm3core.errors import RecipeError
from cm3core.interfaces import RetrieverConfig
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3run.checkpoint import check_recipe
from messages import tells

REGISTRY = load_registry()
NEXT = (
    "  next: leave it out; pass it to 'cm3 eval score' or 'cm3 tokenizer eval --score', or write it into a "
    "protocol of 'cm3 eval run'\n"
)


@pytest.mark.parametrize("section", ["metric=fid", "extractor=pixels"])
@pytest.mark.parametrize("command", [["recipe", "check", "tiny"], ["train", "tiny"]])
def test_what_only_measures_is_refused(
    section: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, section]) == 2
    kind, _, name = section.partition("=")
    assert tells(capsys.readouterr().err, f"error: {kind}: {name!r} is for ... {NEXT}")


@pytest.mark.parametrize("section", ["task=t2i", "condition=edges", "upscaler=lanczos"])
def test_what_training_or_drawing_reads_is_not(section: str) -> None:
    compose("tiny", [section], registry=REGISTRY).check()


@dataclass(kw_only=True)
class ByFeaturesConfig(RetrieverConfig):
    """A retriever that searches by what an extractor sees."""

    needs: ClassVar[tuple[str, ...]] = ("extractor",)


def test_what_another_component_needs_is_read() -> None:
    recipe = compose("tiny", ["extractor=pixels"], registry=REGISTRY)
    recipe = replace(recipe, retriever=ByFeaturesConfig(num_retrieved=0))
    recipe.check()
    with pytest.raises(RecipeError, match="needs the section 'extractor', but the recipe has none"):
        replace(recipe, extractor=None).check()


def test_a_run_that_was_begun_with_one_resumes_without(tmp_path: Path) -> None:
    stored = compose("tiny", ["metric=fid", "extractor=pixels"], registry=REGISTRY)
    check_recipe(tmp_path, stored, compose("tiny", registry=REGISTRY))
