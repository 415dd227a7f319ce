"""The toy model, for the tests of cm3core.model and of the commands over it."""

from __future__ import annotations

import pytest

from cm3core.cli import main as cli
from cm3core.model import Model
from toy_model import Brightness, toy_model


@pytest.fixture(scope="module")
def model() -> Model:
    return toy_model()


@pytest.fixture
def ranked(model, monkeypatch):
    """With a reranker."""
    monkeypatch.setattr(model.components, "reranker", Brightness(), raising=False)
    return model


@pytest.fixture
def cm3(model, monkeypatch):
    """`cm3 ...` with the toy model behind every `--model`."""
    monkeypatch.setattr("cm3core.model.model.load", lambda *_, **__: model)
    return lambda *arguments: cli.main([str(argument) for argument in arguments])
