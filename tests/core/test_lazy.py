"""Names that packages export without importing their modules."""

from __future__ import annotations

import cm3core
import cm3core.model
import cm3core.model.model
from cm3core.model.model import load


def test_a_name_is_what_its_module_has_now(monkeypatch):
    """Also while that is replaced, and afterwards."""
    with monkeypatch.context() as replaced:
        replaced.setattr("cm3core.model.model.load", lambda *_: None)
        assert cm3core.load is cm3core.model.load is cm3core.model.model.load is not load
    assert cm3core.load is cm3core.model.load is load
