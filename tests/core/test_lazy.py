"""Names that packages export without importing their modules."""

from __future__ import annotations

import importlib

import pytest

import cm3core
import cm3run.model
import cm3run.model.model
from cm3run.model.model import load


def test_a_name_is_what_its_module_has_now(monkeypatch):
    """Also while that is replaced, and afterwards."""
    with monkeypatch.context() as replaced:
        replaced.setattr("cm3run.model.model.load", lambda *_: None)
        assert cm3core.load is cm3run.model.load is cm3run.model.model.load is not load
    assert cm3core.load is cm3run.model.load is load


@pytest.mark.parametrize(
    "package",
    [
        "cm3run.generation",
        "cm3run.model",
        "cm3core.plugins",
        "cm3core.recipe",
        "cm3core.sequence",
        "cm3run.training",
    ],
)
def test_packages_export_what_they_list(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(
        AttributeError, match=rf"module '{package}' has no attribute 'no_such_name'"
    ):
        module.no_such_name  # noqa: B018  # the access is what is tested
