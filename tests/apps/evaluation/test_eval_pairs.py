"""Settings of one model compared case by case."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3apps.cli.main import main
from cm3apps.evaluation.evaluating import FORMAT
from cm3apps.evaluation.pairs import compared_scores, paired_table
from cm3core.errors import DataError
from cm3core.images import save_png
from cm3core.plugins import load_registry
from cm3run.evaluation.protocol import protocol_of
from messages import tells
from toy_model import Colours, toy_model


def evaluation(folder: Path, scores: Mapping[str, tuple[float, Sequence[float], str]]) -> Path:
    """A finished evaluation with these scores: name -> (value, those of the cases, hash)."""
    folder.mkdir()
    rows = [
        {
            "name": name,
            "value": value,
            "hash": key,
            "measurement": {"of": name},
            "higher_is_better": True,
        }
        for name, (value, _, key) in scores.items()
    ]
    result: dict[str, Any] = {"format": FORMAT, "protocol": {"name": "toy-v1"}, "scores": rows}
    result |= {"model": {"name": folder.name}, "measurement": {}}
    (folder / "scores.json").write_text(json.dumps(result))
    cases: dict[int, dict[str, float]] = {}
    for name, (_, values, _) in scores.items():
        for index, value in enumerate(values):
            cases.setdefault(index, {})[name] = value
    (folder / "samples.jsonl").write_text(
        "".join(json.dumps({"index": index, "scores": own}) + "\n" for index, own in cases.items())
    )
    return folder


def test_by_hand(tmp_path: Path) -> None:
    """The differences are 2, 3 and 1; FID has no values of cases, and `other` was measured in two ways."""
    none = evaluation(
        tmp_path / "none",
        {"psnr": (2, [1, 2, 3], "a"), "fid": (9, [], "b"), "other": (0, [1], "c")},
    )
    bm25 = evaluation(
        tmp_path / "bm25",
        {"psnr": (4, [3, 5, 4], "a"), "fid": (8, [], "b"), "other": (0, [1], "d")},
    )
    folders = {"none": none, "bm25": bm25}
    psnr_none, psnr_bm25, fid_none, fid_bm25 = compared_scores(folders)
    assert (psnr_none.mean, psnr_bm25.mean, psnr_bm25.num) == (2, 4, 3)
    assert psnr_none.error == pytest.approx(1 / 3**0.5)
    assert psnr_none.paired is None
    assert psnr_bm25.paired is not None
    assert psnr_bm25.paired.difference == 2
    assert psnr_bm25.paired.p_value == 0.25
    assert (fid_none.mean, fid_bm25.mean, fid_bm25.num, fid_bm25.paired) == (9, 8, 0, None)
    assert paired_table("retriever", folders) == [
        "score  retriever  n  mean ± error  from none ± error  p",
        "psnr   none       3  2 ± 0.58                               higher is better",
        "       bm25          4 ± 0.58      +2 ± 0.58          0.25",
        "fid    none          9                                      higher is better; of all cases together",
        "       bm25          8",
    ]
    assert len(paired_table("retriever", folders, only_paired=True)) == 3


def test_only_common_cases_count(tmp_path: Path) -> None:
    one = evaluation(tmp_path / "one", {"psnr": (2, [1, 2, 9], "a")})
    other = evaluation(tmp_path / "other", {"psnr": (2, [2, 3], "a")})
    found = compared_scores({"one": one, "other": other})
    assert [(row.mean, row.num) for row in found] == [(1.5, 2), (2.5, 2)]


def test_damaged_cases_are_refused(tmp_path: Path) -> None:
    one = evaluation(tmp_path / "one", {"psnr": (2, [1], "a")})
    (one / "samples.jsonl").write_text("[]\n")
    with pytest.raises(DataError) as error:
        compared_scores({"one": one, "two": one})
    assert tells(error.value, "... samples.jsonl, line 1: is damaged")


@pytest.fixture
def protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    toy = toy_model()
    toy.components.registry = load_registry()
    toy.components.memory = Colours()
    monkeypatch.setattr("cm3run.model.load", lambda *_, **__: toy)
    save_png(tmp_path / "pictures" / "a.png", np.full((64, 64, 3), (200, 30, 30), np.uint8))
    (tmp_path / "pictures" / "a.txt").write_text("a brick")
    values = {
        "format": "cm3 protocol 1",
        "name": "toy-v1",
        "title": "a toy",
        "size": 64,
        "seed": 5,
        "task": {
            "name": "documents",
            "dataset": {"name": "folder", "path": str(tmp_path / "pictures")},
            "split": "all",
        },
        "scores": [{"metric": {"name": "psnr"}}],
    }
    path = tmp_path / "mine.json"
    path.write_text(protocol_of(values, "toy").text())
    return str(path)


def test_the_command_line(
    protocol: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    call = ["eval", "toy", protocol, "--compare", "retriever=none,bm25,random", "-o", str(out)]
    assert main(call) == 0
    shown = capsys.readouterr()
    assert shown.err.split("\n")[0] == "retriever=none"
    assert shown.out.splitlines()[0].split()[:3] == ["score", "retriever", "n"]
    for setting in ("none", "bm25", "random"):
        facts = json.loads((out / f"retriever-{setting}" / "scores.json").read_text())["model"]
        assert facts["num_retrieved"] == (0 if setting == "none" else 2)
    result = json.loads((out / "comparison.json").read_text())
    assert result["key"] == "retriever"
    assert {row["setting"] for row in result["scores"]} == {"none", "bm25", "random"}
    drawn = (out / "retriever-none" / "samples.jsonl").read_bytes()
    assert main(call) == 0, "the same command resumes"
    assert capsys.readouterr().out == shown.out
    assert (out / "retriever-none" / "samples.jsonl").read_bytes() == drawn
    folders = [str(out / f"retriever-{setting}") for setting in ("none", "bm25")]
    assert main(["eval", "compare", *folders]) == 0
    assert "from retriever-none ± error" in capsys.readouterr().out


def test_other_settings(protocol: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["eval", "toy", protocol, "--compare", "num_retrieved=0,1", "-o", str(tmp_path / "out")]
    assert main(call) == 0
    facts = json.loads((tmp_path / "out" / "num_retrieved-1" / "scores.json").read_text())
    assert facts["model"]["num_retrieved"] == 1
    capsys.readouterr()
    call = ["eval", "toy", protocol, "--retriever", "bm25", "-o", str(tmp_path / "one")]
    assert main(call) == 0
    facts = json.loads((tmp_path / "one" / "scores.json").read_text())
    assert facts["model"]["retriever"]["name"] == "bm25"


@pytest.mark.parametrize(
    ("compare", "words"),
    [
        ("colour=red,blue", "'colour=red,blue' is not KEY=A,B,... with one of the keys retriever"),
        ("retriever=bm25", "'retriever=bm25' does not name two or more different values"),
        ("retriever=bm25,bm25", "'retriever=bm25,bm25' does not name two or more different values"),
        ("num_retrieved=0,x", "is 'x', must be a whole number"),
    ],
)
def test_wrong_settings_are_refused(
    compare: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "toy", "icons-comp-v1", "--compare", compare]) == 2
    assert tells(capsys.readouterr().err, f"error: cm3 eval run: argument --compare: {words}")


def test_pictures_have_no_settings(
    protocol: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["eval", "--from", str(tmp_path), protocol, "--compare", "retriever=none,bm25"]
    assert main(call) == 2
    assert tells(capsys.readouterr().err, "error: --compare: changes how a model draws")
