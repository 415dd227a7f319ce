"""The framework's own warnings are notes; those of others keep file, line and category."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

import cm3core
from cm3apps.cli import _process
from messages import tells

OWN = str(Path(cm3core.__file__).parent / "training" / "loader.py")


@pytest.mark.parametrize(
    ("category", "file", "printed"),
    [
        (UserWarning, OWN, "note: 1 of 10 documents were too long\n"),
        (
            DeprecationWarning,
            OWN,
            f"{OWN}:7: DeprecationWarning: 1 of 10 documents were too long\n",
        ),
        (
            UserWarning,
            "/x/torch/a.py",
            "/x/torch/a.py:7: UserWarning: 1 of 10",
        ),
    ],
)
def test_a_warning_as_it_is_printed(
    monkeypatch: pytest.MonkeyPatch, category: type[Warning], file: str, printed: str
) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    _process.plain_warnings()
    text = warnings.formatwarning("1 of 10 documents were too long", category, file, 7, line="")
    assert tells(text, printed)
