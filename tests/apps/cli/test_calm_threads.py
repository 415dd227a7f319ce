"""Torch's threads sleep where they have nothing to do, unless the user decides otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cm3apps.cli._process import calm_threads


@pytest.mark.parametrize(
    ("given", "after"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}),
    ],
)
def test_the_users_choice_stays(given: dict[str, str], after: dict[str, str]) -> None:
    calm_threads(given)
    assert given == after


def test_it_is_decided_before_torch_is_imported() -> None:
    """libgomp reads it once."""
    script = (
        "import os, sys\nfrom cm3apps.cli import main as cli\nassert 'torch' not in sys.modules\n"
        "cli.main = lambda **_: print(os.environ['GOMP_SPINCOUNT']) or 0\ncli.entry()"
    )
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    } | {"PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["1000"]
