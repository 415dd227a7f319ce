"""Answers by ranking: the most probable one, whatever the batch; and as a protocol."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3apps.evaluation.evaluating import Evaluation
from cm3apps.evaluation.made import most_probable
from cm3apps.evaluation.tasks.base import Sample, Task
from cm3core.plugins import load_registry
from cm3run.evaluation.protocol import protocol_of
from cm3run.model.tasks import task_for
from toy_model import toy_model

NOTHING = {"num_retrieved": 0}
ANSWERS = ("red", "a dog", "2", "no")


def picture(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)


def protocol(metric: str) -> Any:
    values = {
        "format": "cm3 protocol 1",
        "name": "toy-v1",
        "title": "",
        "task": {"name": "x"},
        "scores": [{"metric": {"name": metric}}],
    }
    return protocol_of(values, "toy")


def test_the_most_probable_answer() -> None:
    """Each alone: the document's hole filled by hand, and scored by the decoder's likelihood."""
    model = toy_model(max_text_tokens=60)
    likelihood = model.components.likelihood
    [codes] = model.encode([picture(0)])
    task = task_for(model, "ask")
    prompt = task.prompt({"image": codes, "question": "what?"}, max_tokens=None)
    wanted = []
    for answer in ANSWERS:
        filled = task.document({"image": codes, "question": "what?", "answer": answer})
        [value] = likelihood.log_probability([prompt], [likelihood.contents_of(prompt, filled)])
        assert value.num_tokens >= len(answer)
        wanted.append(value.nats)
    best, found = most_probable(model, picture(0), "what?", ANSWERS)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert best == ANSWERS[int(np.argmax(wanted))]
    again, _ = most_probable(model, picture(0), "what?", ANSWERS[::-1])
    assert again == best


def test_answers_are_ranked_as_a_protocol(tmp_path: Path) -> None:
    people = ("red",) * 10
    samples = [
        Sample(str(i), f"what {i}?", partial(picture, i), f"p{i}", people, choices=ANSWERS)
        for i in range(3)
    ]
    task, model = Task("vqa", "answers", samples, {}), toy_model(max_text_tokens=60)
    evaluation = Evaluation(
        protocol("vqa"), task, load_registry(), tmp_path, model=model, options=NOTHING
    )
    [score] = evaluation.run()["scores"]
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    wanted = [most_probable(model, picture(i), f"what {i}?", ANSWERS)[0] for i in range(3)]
    assert [row["text"] for row in rows] == wanted
    assert score["value"] == pytest.approx(100 * np.mean([text == "red" for text in wanted]))
    before = (tmp_path / "samples.jsonl").read_bytes()
    evaluation.run()  # nothing is ranked again
    assert (tmp_path / "samples.jsonl").read_bytes() == before


def test_captions_are_ranked_without_writing_any(tmp_path: Path) -> None:
    samples = [
        Sample(str(i), "", partial(picture, i), f"p{i}", choices=("red", "dog", "2 cats"))
        for i in range(4)
    ]
    task, model = Task("captions", "captions", samples, {}), toy_model()
    scores = Evaluation(
        protocol("choice"), task, load_registry(), tmp_path, model=model, options=NOTHING
    ).run()["scores"]
    assert [row["name"] for row in scores] == ["choice_accuracy", "choice_mrr"]
    assert scores[1]["value"] >= 100 / 3
    assert "text" not in json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])
