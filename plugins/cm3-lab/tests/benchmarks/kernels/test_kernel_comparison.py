"""`cm3 bench compare`: like with like, by hand; exit codes as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3apps.cli.main import main
from cm3lab.benchmarks import machine
from cm3lab.benchmarks.kernels import comparison
from cm3lab.benchmarks.kernels.comparison import Timed, verdict_of
from messages import tells


def timed(us: float, spread: float = 0.01) -> dict[str, Any]:
    """A stored time with 20th and 80th percentile so far from the median."""
    low, high = us * (1 - spread), us * (1 + spread)
    return {"us": us, "p20": low, "p80": high, "both_us": [us, us], "method": "graph", "spread": 0}


def row(provider: str, us: float | None, spread: float = 0.01, **other: Any) -> dict[str, Any]:
    made = {"op": "attention", "shape": "B=1", "dtype": "float32", "direction": "forward"}
    made |= {"provider": provider, "status": "ok" if us is not None else "not run"}
    if us is not None:
        made |= {"warm": timed(us, spread), "cold": timed(2 * us, spread)}
    return made | other


def write(path: Path, *rows: dict[str, Any], **other: Any) -> Path:
    environment = {
        "device": {"type": "cuda", "name": "H100"},
        "threads": 1,
        "packages": {"torch": "2.13", "triton": None},
    }
    document: dict[str, Any] = {
        "format": 2,
        "benchmark": "kernels",
        "environment": environment,
        "results": rows,
    }
    document |= {"ceilings": {"copy_bytes_per_s": 1e9, "flop_per_s": {"float32": 2e9}}}
    path.write_text(json.dumps(document | other), encoding="utf-8")
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return write(tmp_path / "old.json", row("a", 100), row("b", 100, 0.2), row("c", 100))


def compared(
    old: Path, new: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, list[str], str]:
    code = main(["bench", "compare", str(old), str(new), *options])
    out, err = capsys.readouterr()
    return code, [" ".join(line.split()) for line in out.splitlines()], err


def test_what_changed_by_hand(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """a is 10% slower, 1% spread: slower. b is as much slower, 20% spread: within it. c is twice as fast."""
    new = write(tmp_path / "new.json", row("a", 110), row("b", 110, 0.2), row("c", 50))
    code, lines, _ = compared(old, new, capsys)
    assert code == 1
    assert lines == [
        "cuda H100, 1 threads; threshold 1.05",
        "slower 1.10 x 100.0 -> 110.0 us attention B=1 float32 forward a warm",
        "slower 1.10 x 200.0 -> 220.0 us attention B=1 float32 forward a cold",
        "within spread 1.10 x 100.0 -> 110.0 us attention B=1 float32 forward b warm",
        "within spread 1.10 x 200.0 -> 220.0 us attention B=1 float32 forward b cold",
        "faster 0.50 x 100.0 -> 50.0 us attention B=1 float32 forward c warm",
        "faster 0.50 x 200.0 -> 100.0 us attention B=1 float32 forward c cold",
        "6 times compared: 2 slower, 2 faster, 2 within their spread, 0 the same; 0 broken; "
        "0 only in the first, 0 only in the second",
    ]
    assert compared(old, new, capsys, "--threshold", "1.2")[0] == 0
    assert compared(old, old, capsys)[0] == 0


def test_only_like_is_compared_with_like(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another dtype, direction or shape is another line; what is missing is listed with the reason."""
    new = write(
        tmp_path / "new.json",
        row("a", 100),
        row("b", 500, dtype="bfloat16"),
        row("b", 500, direction="both"),
        row("b", 500, shape="B=2"),
        row("c", None, reason="needs CUDA"),
    )
    code, lines, _ = compared(old, new, capsys)
    assert code == 0
    assert f"only in {old}: attention B=1 float32 forward b" in lines
    assert (
        f"only in {old}: attention B=1 float32 forward c (the other: not run: needs CUDA)" in lines
    )
    assert f"only in {new}: attention B=1 bfloat16 forward b" in lines
    assert f"only in {new}: attention B=1 float32 both b" in lines
    assert f"only in {new}: attention B=2 float32 forward b" in lines
    assert lines[-1].startswith(
        "2 times compared: 0 slower, 0 faster, 0 within their spread, 2 the"
    )
    assert lines[-1].endswith("2 only in the first, 3 only in the second")


def test_what_is_no_longer_right_is_a_regression(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = row("a", None, reason="relative error is 1: not timed") | {"status": "wrong"}
    new = write(tmp_path / "new.json", wrong, row("b", 100), row("c", 100))
    code, lines, _ = compared(old, new, capsys)
    assert code == 1
    assert "broken attention B=1 float32 forward a (wrong: relative error is 1: not timed)" in lines
    # the other way round, it is repaired: nothing to compare with
    code, lines, _ = compared(new, old, capsys)
    assert code == 0
    assert lines[-1].endswith("0 only in the first, 1 only in the second")


def test_a_slower_machine_is_named(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half the bandwidth, a product 2% slower, and one of another dtype."""
    roofs = {"copy_bytes_per_s": 5e8, "flop_per_s": {"float32": 1.96e9, "bfloat16": 1.0}}
    new = write(tmp_path / "new.json", row("a", 100), ceilings=roofs)
    lines = compared(old, new, capsys)[1]
    assert [line for line in lines if "roof" in line] == [
        "the machine's roof copy is 0.50 times the earlier one"
    ]


def test_other_versions_are_named(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = json.loads(old.read_text())["environment"]
    environment["packages"] = {"torch": "2.14", "triton": "3.7"}
    new = write(tmp_path / "new.json", row("a", 100), environment=environment)
    assert compared(old, new, capsys)[1][1:3] == [
        "torch 2.13 -> 2.14",
        "triton not installed -> 3.7",
    ]


def test_the_range_is_of_both_runs_and_of_the_percentiles(tmp_path: Path) -> None:
    one = row("a", 100)
    one["warm"] |= {"both_us": [100, 130], "p20": 98, "p80": 103}
    found = comparison.load(write(tmp_path / "a.json", one))
    (result,) = found.rows.values()
    assert result.times["warm"] == Timed(100, 98, 130, "graph")


positive = st.floats(1, 1e6)


@given(positive, positive, st.floats(1, 2), st.floats(0, 0.5))
def test_verdicts_are_antisymmetric(one: float, other: float, threshold: float, part: float):
    """What is slower one way is faster the other way; nothing is slower than itself."""
    a, b = (Timed(us, us * (1 - part), us * (1 + part), "graph") for us in (one, other))
    opposite = {"slower": "faster", "faster": "slower"}
    verdict = verdict_of(a, b, threshold)
    assert verdict_of(b, a, threshold) == opposite.get(verdict, verdict)
    assert verdict_of(a, a, threshold) == "same"
    if verdict == "slower":
        assert other > one * threshold
        assert b.low > a.high


NO_ROOF = {"copy_bytes_per_s": 0, "flop_per_s": {}}


def changed(**other: Any) -> Any:
    """A file with something else in its environment."""

    def make(path: Path) -> Path:
        write(path, row("a", 100))
        environment = json.loads(path.read_text())["environment"] | other
        return write(path, row("a", 100), environment=environment)

    return make


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (changed(device={"type": "cuda", "name": "A100"}), "the device is cuda H100 in the first and cuda A100"),
        (changed(threads=2), "the number of threads is 1 in the first and 2 in the second"),
        (lambda path: path, "can't be read ... write it by `cm3 bench kernels -o FILE.json`"),
        (lambda path: path.write_text("{"), "is not JSON"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "can't be read"),
        (lambda path: path.write_text("[]"), "has no results of `cm3 bench kernels`"),
        (lambda path: write(path, benchmark="decode"), "has no results of `cm3 bench kernels`"),
        (lambda path: write(path, row("a", 1), format=1), "has the format 1, this version reads 2"),
        (lambda path: write(path, {"op": "attention"}), "is damaged (KeyError: 'shape')"),
        (lambda path: write(path, row("a", 1) | {"warm": 3}), "is damaged (TypeError"),
        (lambda path: write(path, row("a", -1)), "is damaged (ValueError: a time is"),
        (lambda path: write(path, row("a", 1), ceilings=NO_ROOF), "is damaged (ValueError: a roof is not positive)"),
        (lambda path: write(path, row("a", 1), environment=None), "is damaged (TypeError"),
        (lambda path: write(path, row("a", None)), "has no times: nothing ran, or it was a dry run"),
        (lambda path: write(path, row("z", 1)), "no op, shape, dtype, direction and provider is timed in both"),
    ],
)  # fmt: skip  # a case per line
def test_what_can_t_be_compared(
    make: Any, words: str, old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new.json"
    make(new)
    code, lines, err = compared(old, new, capsys)
    assert (code, lines) == (2, [])
    assert tells(err, f"... {words}")
    assert str(new) in err


def test_the_threshold_is_a_ratio(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = compared(old, old, capsys, "--threshold", "0.9")
    assert code == 2
    assert "argument --threshold: is '0.9', must be a number from 1 to 100" in err


def test_formats_agree() -> None:
    assert comparison.FORMAT == machine.FORMAT


@pytest.mark.slow
def test_exit_codes_of_the_process(old: Path, tmp_path: Path) -> None:
    slower = write(tmp_path / "slower.json", row("a", 200))
    for new, code in ((old, 0), (slower, 1), (tmp_path / "absent.json", 2)):
        command = [sys.executable, "-m", "cm3apps.cli.main", "bench", "compare", str(old), str(new)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
