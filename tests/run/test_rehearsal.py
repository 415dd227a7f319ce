"""What only the data shows, found before training: by place and cause, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from cm3core.errors import CM3Error
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3run.life import life_of
from cm3run.rehearsal import rehearse
from messages import tells

REGISTRY = load_registry()


def tried(*given: str) -> dict[str, bool]:
    recipe = compose("tiny", list(given), registry=REGISTRY)
    life = rehearse(recipe, REGISTRY, life_of(recipe, REGISTRY))
    return {command: verdict.runs for command, verdict in life.items()}


def test_a_recipe_that_works_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = compose("tiny", registry=REGISTRY)
    life = life_of(recipe, REGISTRY)
    assert rehearse(recipe, REGISTRY, life) == life
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["decoder.context_length=259"], "dataset, document ...: 2"),
        (["train.licences=[MIT]"], "document 'noto/... has the licence 'Apache-2.0'"),
    ],
)
def test_what_the_data_shows_is_refused(given: list[str], words: str) -> None:
    with pytest.raises(CM3Error) as info:
        tried(*given)
    assert tells(info.value, words)


def test_a_prompt_that_is_too_long_is_no_refusal() -> None:
    """A caption may have 64 tokens beside 259 of its picture and the frame: 330 hold it, 300 don't."""
    assert tried("decoder.context_length=330")["caption"]
    short = tried("decoder.context_length=300")
    assert short["generate"]
    assert not short["caption"]


def test_a_task_needs_room_for_its_words_and_a_users() -> None:
    """The words of this task take 64 bytes, and the question that is tried 23."""
    task = ["task=lumina_draw", "text_tokenizer=byte", "decoder.context_length=700"]
    assert tried(*task, "data.max_text_tokens=87")["generate"]
    assert not tried(*task, "data.max_text_tokens=86")["generate"]
