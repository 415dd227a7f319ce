"""`cm3 eval import` reads what the official scorers write, and computes what their summaries print.

tests/fixtures/scorers has the outputs of the scorers' own code at the commits in docs/figures/scorers.json: it judged
pictures that `cm3 eval export` wrote, and only the network that judges was a stub (tests/fixtures/official_scorers.py). With
CM3_SCORERS=FOLDER, a folder of clones at these commits under their repositories' names (`GenEval2`, ...), that code is run again;
it needs pandas and regex.

Not tried: T2I-CompBench's 3D_spatial_eval.py, whose file has the form of that of 2D_spatial_eval.py, and its scorers by
multimodal LLMs; the networks themselves, their packages and a GPU.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cm3apps.cli.main import main
from cm3apps.evaluation.scorers import GEDIT, IMGEDIT, ROUNDING, import_scores
from cm3apps.evaluation.shipped import find_protocol
from cm3core.errors import DataError
from official_scorers import SCORERS

ROOT = Path(__file__).parents[3]
STORED = ROOT / "tests/fixtures/scorers"
PINNED: Mapping[str, Any] = json.loads((ROOT / "docs/figures/scorers.json").read_text())
CLONES = os.environ.get("CM3_SCORERS")

#: What to import, the file, and score -> what the scorer's summary printed of that file.
Printed = tuple[str, Path, dict[str, str]]


def geneval(folder: Path) -> Iterator[Printed]:
    text = (folder / "summary.txt").read_text()
    tags = dict(re.findall(r"^(\w+) += ([\d.]+%)", text, re.MULTILINE))
    [total] = re.findall(r"Overall score .*: ([\d.]+)", text)
    scores = {f"geneval {tag}": value for tag, value in tags.items()}
    yield "geneval", folder / "results.jsonl", {**scores, "geneval": total}


def geneval2(folder: Path) -> Iterator[Printed]:
    names = {"soft_tifa_am": "soft-tifa am", "soft_tifa_gm": "soft-tifa gm"}
    for path in sorted(folder.glob("*.json")):
        method = path.stem.rpartition("-")[0]
        [score] = re.findall(r"Score: (\S+)", path.with_suffix(".txt").read_text())
        yield "geneval2", path, {f"geneval2 {names.get(method, method)}": score}


def dpg(folder: Path) -> Iterator[Printed]:
    for name in ("printed.txt", "results.txt"):
        first, second = (folder / name).read_text().split("L1 category")[1].split("L2 category")
        scores = {
            f"dpg {level} {category}": value
            for level, part in (("L1", first), ("L2", second))
            for category, value in re.findall(r"\t(.*): (.*)", part)
        }
        [total] = re.findall(r"DPG-Bench score: (.*)", second)
        yield "dpg", folder / name, {**scores, "dpg": total}


def t2i_compbench(folder: Path) -> Iterator[Printed]:
    for name in ("blip", "clip", "spatial", "numeracy", "3_in_1"):
        [score] = re.findall(r"(?:score|avg): ?([\d.]+)", (folder / f"{name}.txt").read_text())
        yield "t2i-compbench", folder / f"{name}.json", {"t2i-compbench": score}


def wise(folder: Path) -> Iterator[Printed]:
    names = {"CULTURE": "cultural"}
    text = (folder / "all.txt").read_text().split("Overall Evaluation Summary")[1]
    scores = {
        f"{folder.name} {names.get(category, category.lower())}": value
        for category, value in re.findall(r"Category: (\w+)\s+Average WiScore: (\S+)", text)
    }
    [total] = re.findall(r"Overall WiScore: (\S+)", text)
    yield "wise", folder / "all.jsonl", {**scores, folder.name: total}


def imgedit(folder: Path) -> Iterator[Printed]:
    for name in ("all", "part"):
        path = folder / f"{name}.json"
        scores = {
            f"imgedit {kind}": str(mean) for kind, mean in json.loads(path.read_text()).items()
        }
        yield "imgedit", path, scores


def gedit(folder: Path) -> Iterator[Printed]:
    scores: dict[str, str] = {}
    for language in ("en", "cn"):
        for part, text in zip(
            ("", " intersection"),
            (folder / f"{language}.txt").read_text().split("\nIntersection:\n"),
            strict=True,
        ):
            for kind, *values in re.findall(r"^(.+): (\S+), (\S+), (\S+)$", text, re.MULTILINE):
                if kind.startswith("Average"):
                    totals = zip(("semantics", "quality", "overall"), values, strict=True)
                    scores |= {f"gedit {language}{part} {name}": value for name, value in totals}
                else:
                    scores[f"gedit {language}{part} {kind}"] = values[2]
    yield "gedit", folder, scores
    yield "gedit", folder / "mine_combined_gpt_score.csv", scores


def adm(folder: Path) -> Iterator[Printed]:
    text = (folder / "printed.txt").read_text().split("Computing evaluations...\n")[1]
    names = ("is", "fid-adm", "sfid-adm", "precision-adm", "recall-adm")
    scores = (line.rpartition(": ")[2] for line in text.splitlines())
    yield "adm", folder / "printed.txt", dict(zip(names, scores, strict=True))


PRINTED = {
    "geneval": geneval,
    "geneval2": geneval2,
    "dpg": dpg,
    "t2i-compbench": t2i_compbench,
    "wise": wise,
    "wise-verified": wise,
    "imgedit": imgedit,
    "gedit": gedit,
    "adm": adm,
}


def is_printed(value: float, text: str) -> bool:
    """Whether a value is the printed one: to its last digit, or to the twelfth if it was not rounded."""
    digits = len(text.rstrip("%").partition(".")[2])
    if digits > 8:
        return value == pytest.approx(float(text), rel=1e-12)
    return f"{value:.{digits}{'%' if text.endswith('%') else 'f'}}" == text


def imported(what: str, path: Path) -> dict[str, float]:
    return {one.name: one.value for one in import_scores(what, path)}


def check(name: str, folder: Path) -> None:
    """All scores that the summary printed are imported as printed."""
    for what, path, printed in PRINTED[name](folder):
        found = imported(what, path)
        assert printed
        assert {
            key: (found.get(key), text) for key, text in printed.items() if key not in found
        } == {}
        wrong = {
            key: (found[key], text)
            for key, text in printed.items()
            if not is_printed(found[key], text)
        }
        assert wrong == {}, path


@pytest.mark.parametrize("name", SCORERS)
def test_scores_are_those_of_the_scorers_own_summary(name: str) -> None:
    check(name, STORED / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.skipif(CLONES is None, reason="CM3_SCORERS names no folder of the scorers' clones")
def test_the_scorers_own_code_writes_what_is_stored(name: str, tmp_path: Path) -> None:
    for package in ("pandas", "regex"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the scorers need {package}, which is not installed")
    pinned = PINNED[name]
    clone = Path(str(CLONES)) / pinned["repository"].rpartition("/")[2]
    if not clone.is_dir():
        pytest.skip(f"{clone} is not there: clone {pinned['repository']} at {pinned['commit']}")
    for path, digest in pinned["files"].items():
        assert hashlib.sha256((clone / path).read_bytes()).hexdigest() == digest, (
            f"{clone / path} is not that of the commit {pinned['commit']}"
        )
    script = ROOT / "tests/fixtures/official_scorers.py"
    arguments = [sys.executable, str(script), name, str(clone), str(tmp_path / name)]
    subprocess.run(arguments, check=True, capture_output=True)
    written = sorted(path.name for path in (tmp_path / name).iterdir())
    assert written == sorted(path.name for path in (STORED / name).iterdir())
    check(name, tmp_path / name)
    stored = [printed for _, _, printed in PRINTED[name](STORED / name)]
    for before, (_, path, printed) in zip(stored, PRINTED[name](tmp_path / name), strict=True):
        # another CPU rounds the last digits of a softmax otherwise
        values = {key: float(text.rstrip("%")) for key, text in printed.items()}
        assert values == pytest.approx(
            {key: float(text.rstrip("%")) for key, text in before.items()}, rel=1e-3
        ), path


def test_each_scorer_is_pinned() -> None:
    assert PINNED.keys() == SCORERS.keys() == PRINTED.keys()
    for pinned in PINNED.values():
        assert re.fullmatch("[0-9a-f]{40}", pinned["commit"])


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_sums_of_rounded_probabilities_pass_one(precision: str) -> None:
    """The stored files have such; without tolerance at the border each would be refused."""
    path = STORED / "geneval2" / f"soft_tifa_am-{precision}.json"
    values = [value for one in json.loads(path.read_text()) for value in one]
    assert 1 < max(values) <= 1 + ROUNDING
    assert sum(value > 1 for value in values) >= 0.05 * len(values)


@given(
    st.lists(st.floats(-30, 30), min_size=2, max_size=40),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.integers(1, 6),
)
def test_sums_of_probabilities_in_any_precision_are_read(
    tmp_path_factory: pytest.TempPathFactory,
    logits: list[float],
    precision: torch.dtype,
    answers: int,
) -> None:
    probabilities = torch.softmax(torch.tensor(logits, dtype=precision), 0)
    one = sum(value.item() for value in probabilities[:answers])
    path = tmp_path_factory.mktemp("scores") / "scores.json"
    path.write_text(json.dumps([[one, 1.0], [0.5, one]]))
    found = imported("geneval2", path)
    assert found["geneval2 soft-tifa am"] == pytest.approx(100 * (2 * one + 1.5) / 4)
    assert found["geneval2 soft-tifa am"] <= 100


@given(st.one_of(st.floats(1.01, 1e9), st.floats(-1e9, -0.01)))
def test_what_no_rounding_explains_is_refused(
    tmp_path_factory: pytest.TempPathFactory, value: float
) -> None:
    path = tmp_path_factory.mktemp("scores") / "scores.json"
    path.write_text(json.dumps([[0.5, value]]))
    with pytest.raises(DataError, match="a prompt has no list of numbers of 0 to 1"):
        import_scores("geneval2", path)


def test_the_methods_of_geneval_2_are_told_apart(tmp_path: Path) -> None:
    """`tifa` writes integers. A judge that is sure of everything writes 1.0, and its scores are soft ones."""
    path = tmp_path / "scores.json"
    path.write_text("[[1.0, 0.0], [1.0, 1.0]]")
    assert imported("geneval2", path) == {"geneval2 soft-tifa am": 75, "geneval2 soft-tifa gm": 50}
    path.write_text("[[1, 0], [1, 1]]")
    assert imported("geneval2", path) == {"geneval2 tifa": 75}
    path.write_text("[[1.0000001, 1.0000001]]")
    assert imported("geneval2", path)["geneval2 soft-tifa am"] == 100


@pytest.mark.parametrize("name", ["wise", "wise-verified"])
def test_wise_without_all_its_prompts_has_no_total(name: str) -> None:
    """Its summary refuses such files; its judge had no readable answer for two of ten prompts."""
    assert "Aborting overall evaluation" in (STORED / name / "part.txt").read_text()
    found = import_scores("wise", STORED / name / "part.jsonl")
    size = {"wise": 167, "wise-verified": 120}[name]
    assert [(one.name, one.counted) for one in found] == [
        (f"{name} cultural", "n=4 of 400"),
        (f"{name} time", f"n=4 of {size}"),
    ]


def test_wise_is_read_as_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompt 600 is of another category in each edition; a file of both is refused."""
    old = '{"prompt_id": 600, "consistency": 2.0, "realism": 1.0, "aesthetic_quality": 0.0}\n'
    new = '{"prompt_id": 600, "Subcategory": "x", "score": 1.0}\n'
    path = tmp_path / "scores.jsonl"
    path.write_text(new)
    assert imported("wise", path) == {"wise-verified space": 1.0}
    path.write_text(new.replace("600", "650"))
    assert imported("wise", path) == {"wise-verified biology": 1.0}
    path.write_text(old.replace("600", "650"))
    assert imported("wise", path) == {"wise space": pytest.approx(0.8)}
    assert main(["eval", "import", "wise", str(STORED / "wise-verified" / "all.jsonl")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[::2] == ["wise-verified", "n=1000"]
    for text in (
        new + old,
        new.replace("1.0", "2.0"),
        new.replace("600", "1001"),
        '{"prompt_id": 1}',
    ):
        path.write_text(text)
        with pytest.raises(DataError, match="is not a file of wise's scorer"):
            import_scores("wise", path)


def test_a_scale_is_that_of_its_scorer(tmp_path: Path) -> None:
    """An edition's protocol names its judge; results by the first one keep theirs."""
    verified, first = find_protocol("wise-verified-v1"), find_protocol("wise-v1")
    assert verified.task["judge"] == "Qwen3.5-35B-A3B"
    assert "judge" not in first.task
    assert first.sha256.startswith("d32a01ee3b47115f")


def test_a_score_of_the_whole_needs_all_parts(tmp_path: Path) -> None:
    whole, part = (
        imported("imgedit", STORED / "imgedit" / f"{name}.json") for name in ("all", "part")
    )
    assert whole.keys() == {"imgedit", *(f"imgedit {kind}" for kind in IMGEDIT)}
    assert whole["imgedit"] == pytest.approx(sum(whole[f"imgedit {kind}"] for kind in IMGEDIT) / 9)
    assert part.keys() == {f"imgedit {kind}" for kind in IMGEDIT[:4]}
    [one] = (STORED / "gedit").glob(f"*_{GEDIT[0]}_gpt_score.csv")
    assert imported("gedit", one).keys() == {
        f"gedit {language} {GEDIT[0]}"
        for language in ("cn", "cn intersection", "en", "en intersection")
    }


def test_an_edit_that_was_scored_twice_counts_twice() -> None:
    """GEdit-Bench's scorer was interrupted in its last kind, and began the others again: so does its summary."""
    found = {one.name: one.counted for one in import_scores("gedit", STORED / "gedit")}
    assert (found[f"gedit en {GEDIT[0]}"], found[f"gedit en {GEDIT[-1]}"]) == ("n=6", "n=3")


def test_dpg_folder_named_by_a_number_is_no_score() -> None:
    """`Model: 2024` is printed above the scores. One picture had no questions, and was left out."""
    text = (STORED / "dpg" / "printed.txt").read_text()
    assert "Model: 2024\n" in text
    assert "Failed filename: p7.png" in text
    assert [
        name for name in imported("dpg", STORED / "dpg" / "printed.txt") if "2024" in name
    ] == []


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("dpg", "L1 category scores:\nL2 category scores:\nDPG-Bench score: nan\n"),
        ("adm", "Inception Score: nan\nFID: 1.0\n"),
        ("t2i-compbench", '[{"question_id": 0, "answer": "nan"}]'),
        ("geneval2", "[[NaN, 0.5]]"),
        ("imgedit", '{"style": NaN}'),
        ("geneval", '{"tag": "colors", "correct": "false"}'),
    ],
)
def test_what_is_no_number_is_no_score(tmp_path: Path, what: str, text: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(DataError, match=f"is not a file of {what}'s scorer"):
        import_scores(what, path)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
#: Rows with the keys that the scorers write, and any values.
_ROWS = st.lists(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            (
                "tag",
                "correct",
                "question_id",
                "answer",
                "prompt_id",
                "score",
                "consistency",
                "realism",
                "aesthetic_quality",
            ),
            _JSON | st.just(10**400),
        ),
    ),
    max_size=3,
)


@given(_ROWS | _JSON, st.sampled_from(["geneval", "geneval2", "t2i-compbench", "wise", "imgedit"]))
def test_other_json_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, values: Any, what: str
) -> None:
    path = tmp_path_factory.mktemp("scores") / "scores.json"
    rows = values if isinstance(values, list) else [values]
    lines = "\n".join(map(json.dumps, rows))
    path.write_text(lines if what in ("geneval", "wise") else json.dumps(values))
    with contextlib.suppress(DataError):
        assert all(math.isfinite(one.value) for one in import_scores(what, path))
