"""`cm3 experiment patch-knn`: its nats against the likelihood, and mixtures by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from cm3apps.cli.main import main
from cm3core.document import Codes, ImageHole, Text
from cm3kits.samples import ListSource
from cm3lab.experiments.patch_knn.measuring import HeldOut, frequencies
from cm3plugins.samplers.patch_knn import PatchKNNSamplerConfig
from cm3plugins.samplers.patch_knn.database import in_memory, places_of
from cm3plugins.samplers.patch_knn.sampler import PatchKNNSampler, PatchKNNSettings
from toy_model import GRID, MEMORY, GreyTokenizer, toy_model


def pictures(number, seed):
    rng = np.random.default_rng(seed)
    return [
        (Text(MEMORY[i % 3]), Codes(rng.integers(0, 4, 16, np.int32), GRID)) for i in range(number)
    ]


@pytest.fixture
def measured():
    """A toy model, its held-out pictures, and a sampler over others."""
    model = toy_model()
    model.components.memory = ListSource(pictures(9, seed=0))
    places, counts = places_of(model.components.memory, GreyTokenizer(), 1_000)
    database = in_memory(places, counts, np.arange(16, dtype=np.float32)[:, None])
    config = PatchKNNSamplerConfig(neighbours=7)
    sampler = PatchKNNSampler(
        config.inner.build(),
        database,
        first_code=model.components.vocabulary.image.start,
        settings=PatchKNNSettings(share=0.2, neighbours=7, scale=0.1, combine="sum"),
    )
    return model, ListSource(pictures(6, seed=1)), sampler


def test_frequencies_are_those_of_the_memory_s_places(measured):
    model, _, sampler = measured
    places, counts = places_of(model.components.memory, GreyTokenizer(), 1_000)
    expected = np.bincount(places[:, 4], counts, 16) / counts.sum()
    np.testing.assert_allclose(frequencies(sampler), expected, atol=1e-6)


def test_nats_of_the_decoder_are_those_of_the_likelihood(measured):
    model, source, sampler = measured
    figures = HeldOut(model, source, 6).figures(sampler, [0.0, 0.5], [0, 1])
    asked = [(document[0], ImageHole()) for document in source._documents]
    start = model.components.vocabulary.image.start
    contents = [[document[1].codes + start] for document in source._documents]
    for number in (0, 1):
        before = [[model.components.memory.document(0)][:number]] * 6
        found = model.components.likelihood.log_probability(asked, contents, retrieved=before)
        nats = -np.mean([one.nats / 16 for one in found])
        own = [one for one in figures if one.documents == number]
        assert own[0].nats == pytest.approx(nats, rel=1e-5)
        assert [one.nats for one in own if one.share == 0] == [own[0].nats] * 3
    assert figures[0].difference == figures[0].error == 0


def test_a_mixture_is_the_one_by_hand(measured):
    """One picture, cell by cell."""
    model, source, sampler = measured
    held = HeldOut(model, ListSource(source._documents[:1]), 6)
    [own] = held._of_decoder(0)
    [document] = held.documents
    code = document[1].codes.reshape(GRID).tolist()
    nats = 0.0
    for cell, probability in enumerate(own):
        row, column = divmod(cell, 4)
        if row and 0 < column < 3:
            around = [*code[row - 1][column - 1 : column + 2], code[row][column - 1]]
            there = sampler.log_probabilities(torch.tensor([around])).exp()[0, code[row][column]]
            probability = 0.75 * probability + 0.25 * float(there)
        nats -= np.log(probability) / 16
    figures = held.figures(sampler, [0.25], [0])
    [places] = [one for one in figures if one.mixed_with == "places"]
    assert places.nats == pytest.approx(nats)


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    """The bundled model: similar places help it more than frequencies do."""
    out = tmp_path / "found.json"
    arguments = ["--documents", "4", "--shares", "0.2", "--retrieved", "0", "-o", str(out)]
    assert main(["experiment", "patch-knn", *arguments]) == 0
    assert "| comp (4) | 0 | places | 0.2 |" in capsys.readouterr().out
    alone, places, control = json.loads(out.read_text())["figures"]["comp"]
    assert places["nats"] < control["nats"] < alone["nats"]


def test_wrong_shares_are_refused(capsys):
    assert main(["experiment", "patch-knn", "--shares", "2"]) == 2
    assert "argument --shares: is '2', must be a number from 0 to 1" in capsys.readouterr().err
