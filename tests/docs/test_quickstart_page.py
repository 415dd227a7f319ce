"""docs/quickstart.md: the tables and the pictures of a run."""

from __future__ import annotations

import json
from pathlib import Path

import _quickstart

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "quickstart.md").read_text(encoding="utf-8")

RANKS = {"r1": 0.125, "r5": 0.875, "among": 100}
TRAINING = {
    "seconds": 60.0,
    "step": 3,
    "tokens": 6000,
    "peak_memory_bytes": 2**30,
    "metrics": {"train/image_loss": 1.2345, "train/learning_rate": 1.0},
}
DRAWN = {
    "documents": "version",
    "minutes": 2.0,
    "drawing_seconds": 30.0,
    "generation_tokens_per_second": 1234.0,
    "peak_memory_bytes": 2**29,
    "splits": {
        "unseen": {
            "num": 7,
            "nats": {
                "none": {"mean": 1.5, "error": 0.1},
                "version": {"mean": 1.0, "error": 0.1},
            },
            "gain": {"mean": 0.5, "error": 0.03},
            "real": RANKS,
            "drawn": {"none": RANKS, "version": RANKS},
            "copied": RANKS,
        }
    },
}


def test_a_run_gives_every_table_of_the_page() -> None:
    made = _quickstart.rows_of(TRAINING, DRAWN)
    lines = [line for rows in made.values() for line in rows]
    for line in (
        "| training | 1.0 minutes, 3 steps, 6,000 tokens (100 tokens a second) |",
        "| peak memory | 1.00 GiB |",
        "| held out by name, in all versions (`unseen`) | 7 | 1.500 | 1.000 | 0.500 ± 0.030 | "
        "0.12 / 0.88 | 0.12 / 0.88 | **0.12 / 0.88** | 0.12 / 0.88 |",
    ):
        assert line in lines
    stored = json.loads(_quickstart.FILE.read_text(encoding="utf-8"))
    assert set(made) == set(stored)
    for name, rows in made.items():
        assert list(rows[:2]) == stored[name][:2], "another version's report has other columns"


def test_the_pictures_are_there_and_shown() -> None:
    for name in _quickstart.PICTURES.values():
        assert (_quickstart.IMAGES / name).is_file()
        assert f"](images/{name})" in PAGE
