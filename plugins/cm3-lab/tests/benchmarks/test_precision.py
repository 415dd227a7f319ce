"""Fewer bits: the shipped model passes the gate, and a decoder that says something else fails
it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import cm3core
from cm3apps.cli.main import main
from cm3lab.benchmarks.precision import Quality, measure, sequences
from cm3run.model import Model


@pytest.fixture(scope="module")
def model() -> Model:
    return cm3core.load("bundled:emoji64")


@pytest.mark.slow
def test_the_shipped_model_stays_what_it_is_in_fewer_bits(model: Model) -> None:
    """On documents of a style that was held out, where it is least sure."""
    full, bf16, int8 = measure(model, sequences(model, "comp", 6))
    assert full.num == 6 * 256
    assert (full.more, full.agreement, full.sure_agreement) == (0, 1, 1)
    assert 3 < full.nats < 8
    for other in (bf16, int8):
        assert other.passes
        assert 0.9 < other.agreement < 1
        assert other.more != 0
    assert int8.agreement < bf16.agreement


@pytest.mark.slow
def test_nats_are_those_of_the_likelihood(model: Model) -> None:
    """Drawing order, no mask: the same codes under `Likelihood`, computed another way."""
    from cm3core.document import Codes, ImageHole

    [sequence] = sequences(model, "comp", 1)
    [full] = measure(model, [sequence], ["fp32"])
    document = model.components.serializer.documents(sequence)[-1]
    picture = next(segment for segment in document if isinstance(segment, Codes))
    asked = (document[0], ImageHole())
    likelihood = model.components.likelihood
    contents = likelihood.contents_of(asked, (document[0], picture))
    assert full.nats * 256 == pytest.approx(
        -likelihood.log_probability([asked], [contents])[0].nats, rel=1e-4
    )


def test_a_decoder_that_says_something_else_fails(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = model.components.decoder
    whole = type(decoder).for_inference

    def damaged(self: object, name: str = "auto") -> object:
        arranged = whole(decoder, name)
        if name == "int8":
            head = arranged._head_weight_VE
            noise = torch.randn(head.shape, generator=torch.Generator().manual_seed(0))
            arranged._head_weight_VE = head + 0.3 * head.std() * noise
        return arranged

    monkeypatch.setattr(type(decoder), "for_inference", damaged)
    full, int8 = measure(model, sequences(model, "comp", 2), ["fp32", "int8"])
    assert full.passes
    assert not int8.passes


def test_the_gate() -> None:
    assert Quality("x", 1.0, 0.02, 0.5, 0.99, 10).passes
    assert not Quality("x", 1.0, 0.021, 1.0, 1.0, 10).passes
    assert not Quality("x", 1.0, 0.0, 1.0, 0.989, 10).passes


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "precision.json"
    assert main(["bench", "precision", "--num", "1", "-o", str(out)]) == 0
    assert [one["precision"] for one in json.loads(out.read_text())["precisions"]] == [
        "fp32",
        "bf16",
        "int8",
    ]
    assert capsys.readouterr().out.count("passes") == 3
    assert main(["bench", "precision", "--num", "0"]) == 2
    message = (
        "error: cm3 bench precision: argument --num: is '0', must be a whole number from 1 to "
        "2,147,483,647\n  next: see `cm3 bench precision --help`\n"
    )
    assert capsys.readouterr().err == message
