"""`cm3 embedder train | eval`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from cm3apps.cli.main import main
from cm3lab.embedder_training.contrastive import Steps
from cm3plugins.datasets.emoji import corpus as emoji
from cm3plugins.datasets.icons import corpus as icons
from cm3plugins.datasets.icons.corpus import IconEntries
from messages import tells


@pytest.fixture(autouse=True)
def few(monkeypatch, tmp_path):
    """Corpora of a few entries of every split."""
    whole = emoji.EmojiCorpus()
    rows = []
    for split in ("train", "comp", "unseen"):
        rows += [i for i, entry in enumerate(whole.entries) if entry.split == split][:6]
    held_out = {whole.entries[row].concept for row in rows if whole.entries[row].split == "comp"}
    rows += [
        i
        for i, entry in enumerate(whole.entries)
        if entry.split == "train" and entry.concept in held_out
    ]
    pictures = np.stack([whole.render(row, 64) for row in rows])

    class Few(emoji.EmojiCorpus):
        def __init__(self):
            super().__init__()
            self.entries = [self.entries[row] for row in rows]

        def render_all(self, size, cache_dir=None):
            return pictures

    monkeypatch.setattr(emoji, "EmojiCorpus", Few)
    bells = [entry for entry in icons.IconCorpus().entries if entry.words in ("bell", "lock")]
    monkeypatch.setattr(icons, "_entries_of", lambda *_: IconEntries.of(bells))
    monkeypatch.setattr(
        icons.IconCorpus,
        "pictures",
        lambda self, size: [np.full((size, size, 3), len(one.id), np.uint8) for one in bells],
    )


@pytest.mark.slow
def test_a_table_and_its_file(tmp_path, capsys):
    out = str(tmp_path / "f.json")
    assert main(["embedder", "eval", "light_encoder", "--bm25", "-o", out, "--quiet"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("light_encoder: LightEncoder, 128 dimensions, light_encoder-")
    measured = json.loads((tmp_path / "f.json").read_text())
    assert [line.rsplit(maxsplit=2)[0] for line in shown[3:]] == list(measured)
    assert measured["train: caption -> versions"]["R@1"] == 1  # two things
    assert "train: caption, by bm25 -> versions" in measured
    assert all(0 <= value <= 1 for values in measured.values() for value in values.values())


@pytest.mark.slow
def test_the_other_corpus(tmp_path, capsys):
    out = str(tmp_path / "f.json")
    command = ["embedder", "eval", "light_encoder", "--corpus", "emoji", "-o", out, "--quiet"]
    assert main(command) == 0
    measured = json.loads((tmp_path / "f.json").read_text())
    assert any(name.startswith("comp: picture -> all") for name in measured)


def test_train_then_measure(tmp_path, capsys):
    weights = str(tmp_path / "the w.safetensors")
    assert (
        main(["embedder", "train", "light_encoder", "-o", weights, "--steps", "2", "--quiet"]) == 0
    )
    assert (
        capsys.readouterr().out
        == f"{weights}\nevaluate it: cm3 embedder eval light_encoder 'embedder.path={weights}'\n"
        f"use it: cm3 train quickstart embedder=light_encoder 'embedder.path={weights}'\n"
    )
    assert main(["embedder", "eval", "light_encoder", f"embedder.path={weights}", "--quiet"]) == 0


@pytest.mark.slow
def test_a_training_of_minutes(monkeypatch):
    """By the clock alone: ten seconds in steps of one; the rate falls as the cosine of the time, as with ten steps."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    by_clock, by_steps = Steps(3, minutes=1 / 6), Steps(10)
    falls = []
    for step, _ in enumerate(by_clock.over("training", quiet=True)):
        falls.append(by_clock.cosine(step))
        now[0] += 1
    assert falls == pytest.approx([by_steps.cosine(step) for step in range(10)])
    assert len(list(by_steps.over("training", quiet=True))) == 10
    rises = [Steps(200).rise(step) for step in range(3)]
    assert rises == pytest.approx([0.1, 0.2, 0.3])


def test_fit_looks_then_measure(tmp_path, capsys):
    out = str(tmp_path / "looks.safetensors")
    assert main(["embedder", "train", "looks", "-o", out, "--quiet"]) == 0
    assert (
        capsys.readouterr().out
        == f"{out}\nevaluate it: cm3 embedder eval light_encoder embedder.looks={out}\n"
        f"use it: cm3 train quickstart embedder=light_encoder embedder.looks={out}\n"
    )
    assert main(["embedder", "eval", "light_encoder", f"embedder.looks={out}", "--quiet"]) == 0
    assert "comp: picture -> versions among all pictures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "clip", "-o", "x"],
            "error: embedder clip: can't be trained with this command ... bi_encoder",
        ),
        (
            ["train", "light_encoder", "-o", "x", "--steps", "0"],
            "error: cm3 embedder train: argument --steps: is '0'",
        ),
        (
            ["train", "looks", "-o", "x", "--minutes", "5"],
            "error: --minutes: looks is fitted in closed form",
        ),
        (
            ["train", "looks", "-o", "x", "--steps", "5"],
            "error: --steps: looks is fitted in closed form",
        ),
        (
            ["eval", "bi_encoder", "--bm25"],
            "error: --bm25: needs the corpus icons, not",
        ),
        (
            ["eval", "light_encoder", "embedder.batch_size=0"],
            "error: embedder.batch_size: is 0, must ... least 1",
        ),
    ],
)
def test_what_is_refused(arguments, message, capsys):
    assert main(["embedder", *arguments]) == 2
    assert tells(capsys.readouterr().err, message)
