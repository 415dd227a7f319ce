"""Names that packages export without importing their modules."""

from __future__ import annotations

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
