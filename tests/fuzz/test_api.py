"""Wrong arguments to public functions, some of all; see `api.py` for the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzzing.api_calls import may_take
from fuzzing.prepared import Prepared, alone

HERE = Path(__file__).parent


@pytest.mark.slow
def test_wrong_arguments_are_refused_with_place_cause_and_next_step(
    prepared: Prepared, tmp_path: Path
) -> None:
    done = prepared.run(HERE / "api.py", "--seed", "1", "--calls", "600", tmp=tmp_path, seconds=300)
    assert done.code == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("600 calls: ")


@pytest.mark.extended
def test_more_wrong_arguments(tmp_path: Path) -> None:
    done = alone(HERE / "api.py", "--seed", "2", "--calls", "12000", tmp=tmp_path, seconds=900)
    assert done.code == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("annotation", "kind", "may"),
    [
        ("str | Sequence[str]", "list", True),
        ("int | None", "str", False),
        ("Sequence[tuple[int, str]]", "int", False),
        ("Annotated[int, Range(1)]", "int", True),
        ("dict[str, str | None]", "none", False),
    ],
)
def test_the_judge_reads_the_outer_words_of_an_annotation(
    annotation: str, kind: str, may: bool
) -> None:
    assert may_take(annotation, kind) == may
