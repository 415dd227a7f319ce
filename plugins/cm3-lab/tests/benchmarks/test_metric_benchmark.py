"""`cm3 bench metrics`: every step is timed and accounted for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cm3apps.cli.main import main
from cm3core.interfaces.metric import MetricConfig
from cm3lab.benchmarks.metrics import feeding
from cm3plugins.metrics import FIDConfig, KIDConfig


def test_all_steps_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "metrics.json"
    assert main(["bench", "metrics", "--num", "50", "--dimension", "16", "-o", str(out)]) == 0
    rows = json.loads(out.read_text())["results"]
    assert [(row["metric"], row["step"]) for row in rows] == [
        (name, step) for name in ("fid", "kid", "prdc") for step in ("features", "score")
    ]
    assert all(row["num"] == 50 and row["dimension"] == 16 for row in rows)
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == "50 pictures per set, 16 features per picture"
    assert len(shown) == 8


@pytest.mark.parametrize("config", [FIDConfig(), KIDConfig()])
def test_memory_is_accounted_for(config: MetricConfig) -> None:
    """FID's does not grow with the pictures; KID keeps their features, float32."""
    D, few, many = 256, 1024, 4096
    peaks = [feeding("x", config.build(), num, D).peak_mb for num in (few, many)]
    sums = 2 * 8 * (D + D**2) / 1e6
    features = 2 * 4 * D * (many - few) / 1e6
    assert (sums if isinstance(config, FIDConfig) else features) <= peaks[1]
    numbers = 2 * 200 * (many - few) / 1e6  # those of the samples, in sets
    grown = peaks[1] - peaks[0]
    assert (
        grown < numbers
        if isinstance(config, FIDConfig)
        else grown == pytest.approx(features, abs=numbers)
    )
