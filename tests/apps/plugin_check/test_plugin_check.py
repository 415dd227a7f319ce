"""`cm3 plugin check`: what it says of good plugins and of every way to be broken; each part is a
real process."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from checked_plugins import GOOD, HEAD, WriteFile, lines_of, verdict_of
from cm3apps.cli.main import main
from cm3apps.plugin_check.checking import Options, check
from cm3apps.plugin_check.worker import Report, Verdict

#: A tokenizer that loses the first letter: any text but the empty one shows it, however few are drawn.
CONFUSED = GOOD.replace(
    "        return ByteTokenizer()",
    """\
        class Confused(ByteTokenizer):
            def _encode(self, text):
                return super()._encode(text[1:])
            def save(self, folder):
                from cm3core.errors import DeviceError
                raise DeviceError("here", "there is no disk", "add one")
        return Confused()""",
)


def test_a_good_plugin_and_its_laws(
    write: WriteFile, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert (
        main(
            [
                "plugin",
                "check",
                write(GOOD),
                "--max-examples",
                "3",
                "--waive",
                "ids_are_in_range=tried elsewhere",
            ]
        )
        == 0
    )
    out = lines_of(capsys, tmp_path)
    assert out.startswith(
        "mine (mine.py)\n"
        "ok    api: CM3_API = 1\n"
        "ok    hooks: cm3_text_tokenizers\n"
        "ok    keys text_tokenizer/characters: 1, documented\n"
        "ok    defaults text_tokenizer/characters: check() accepts them\n"
        "ok    names: no other plugin uses the same names\n"
        "ok    import: describing it takes N s more than cm3core itself and imports nothing heavy\n"
        "ok    build text_tokenizer/characters: a ByteTokenizer\n"
    )
    laws = re.findall(r"^ok    law text_tokenizer/characters (\w+)$", out, re.MULTILINE)
    assert "round_trip_is_lossless" in laws
    assert "skip  law text_tokenizer/characters ids_are_in_range: waived: tried elsewhere\n" in out
    assert out.endswith(f"mine: {7 + len(laws)} ok, 1 skipped\n")
    assert not (tmp_path / ".hypothesis").exists()
    left = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}  # Python's own
    assert left == {"mine.py"}


@pytest.mark.slow
def test_a_law_that_breaks_shows_what_broke_it(
    write: WriteFile, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["plugin", "check", write(CONFUSED), "--max-examples", "10", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    (plugin,) = answer["plugins"]
    assert (answer["target"], answer["passed"], answer["strict"]) == ("./mine.py", False, False)
    assert set(plugin) == {"name", "version", "origin", "counts", "verdicts"}
    failed = {
        verdict["subject"]: verdict for verdict in plugin["verdicts"] if verdict["status"] == "fail"
    }
    assert plugin["counts"]["fail"] == len(failed)
    skipped = next(
        verdict
        for verdict in plugin["verdicts"]
        if verdict["subject"] == "text_tokenizer/characters saved_is_loaded"
    )
    told = ("skip", "can't be tested here: there is no disk", "add one")
    assert (skipped["status"], skipped["text"], skipped["next_step"]) == told
    broken = failed["text_tokenizer/characters round_trip_is_lossless"]
    assert broken["check"] == "law"
    assert broken["text"] == (
        "encoded '0' to [], and decoded that: expected '0', got '' at letter 0"
    )
    detail = broken["detail"].splitlines()
    assert detail[0] == "falsified by: Draw 1: '0'"
    assert detail[1].startswith("tested: ")
    assert broken["next_step"].startswith("correct the component; if the law can't apply to it, ")
    assert "; the law: Every valid string round-trips" in broken["next_step"]


def test_strict_fails_on_warnings(write: WriteFile) -> None:
    source = write(GOOD.replace("size: how many.", ""))
    (report,) = check(source, Options(quick=True))
    assert [verdict.status for verdict in report.verdicts if verdict.status != "ok"] == [
        "warn",
        "skip",
    ]
    assert (report.passed(), report.passed(strict=True)) == (True, False)
    assert Report("mine", "", "", [Verdict("api", "", "ok", "")]).passed(strict=True)


@pytest.mark.slow
def test_a_slow_import_is_warned_of_and_the_slow_one_named(
    write: WriteFile, tmp_path: Path
) -> None:
    write("import time\ntime.sleep(0.6)\n", "slow_one.py")
    argument = write(f"import sys\nsys.path.append({str(tmp_path)!r})\nimport slow_one\n{GOOD}")
    (report,) = check(argument, Options(quick=True))
    verdict = next(verdict for verdict in report.verdicts if verdict.check == "import")
    assert re.fullmatch(
        r"describing it takes \d\.\d\d s more than cm3core itself; more than 0.5 s is slow",
        verdict.text,
    )
    assert (verdict.status, verdict.next_step) == (
        "warn",
        "defer slow imports (python -X importtime shows them)",
    )
    assert re.fullmatch(r"slow_one: \d\.\d\d s in its own modules", verdict.detail)


def test_commands_benchmarks_models_are_loaded(write: WriteFile, tmp_path: Path) -> None:
    argument = write(
        GOOD
        + """
from pathlib import Path

@hookimpl
def cm3_commands():
    return {"train": "json:dumps", "lost": "no_such_module:f", "idle": "builtins:str", "raises": "math:sqrt"}

@hookimpl
def cm3_benchmarks():
    return {"mine": "json:nothing"}

@hookimpl
def cm3_models():
    return {"small": Path("/nonexistent")}
"""
    )
    (report,) = check(argument, Options(quick=True))
    told = {
        (verdict.check, verdict.subject): (verdict.status, verdict.text, verdict.next_step)
        for verdict in report.verdicts
    }
    assert told["command", "train"] == (
        "fail",
        "`cm3 train` is a command of cm3leon itself, which takes precedence",
        "rename it",
    )
    assert told["command", "lost"] == (
        "fail",
        "the plugin 'mine' names 'no_such_module:f', which can't be imported: No module named "
        "'no_such_module'",
        'correct its "module:function" in cm3_commands',
    )
    assert told["command", "idle"] == (
        "fail",
        "its parser does not set `run`",
        "write parser.set_defaults(run=run)",
    )
    assert told["command", "raises"] == (
        "fail",
        "TypeError: must be real number, not CommandParser",
        "correct the plugin",
    )
    assert told["benchmark", ""] == (
        "fail",
        "the plugin 'mine' names 'json:nothing', which can't be imported: module 'json' has no "
        "attribute 'nothing'",
        'correct its "module:function" in cm3_benchmarks',
    )
    assert told["model", "mine:small"] == (
        "fail",
        "/nonexistent has no model (no state.json)",
        "write it with cm3run.checkpoint.export_model, and package its files",
    )


#: Of a kind whose kit needs no torch, which would take longer than all else to import.
UPSCALERS = (
    HEAD
    + '''
from cm3core.interfaces import UpscalerConfig

@dataclass(kw_only=True)
class Hot(UpscalerConfig):
    """Hot.

    Args:
        heat: how hot.
    """

    heat: float

    def check(self):
        from cm3core.errors import RecipeError
        if self.heat > 9:
            raise RecipeError("upscaler.heat", f"is {self.heat}, too hot", "give at most 9")

    def build(self):
        return self.heat

class Cold(Hot):
    pass

@hookimpl
def cm3_upscalers():
    return {"hot": Hot, "warm": Warm}

@dataclass(kw_only=True)
class Warm(Hot):
    """Warm."""

    mild: bool = True

    def build(self):
        raise MissingPackageError.extra("warm", "oven", "ovens")

from cm3core.errors import MissingPackageError
'''
)


@pytest.mark.slow
def test_keys_that_must_be_given_come_from_the_command_line(write: WriteFile) -> None:
    (report,) = check(write(UPSCALERS), Options(overrides=["upscaler.heat=3", "warm.mild=false"]))
    told = {
        (verdict.check, verdict.subject): (verdict.status, verdict.text, verdict.next_step)
        for verdict in report.verdicts
    }
    assert told["defaults", "upscaler/hot"] == ("ok", "check() accepts the given values", "")
    assert told["build", "upscaler/hot"] == (
        "fail",
        "build returned a float, not a subclass of Upscaler",
        "derive it from cm3core.interfaces.Upscaler",
    )
    assert told["build", "upscaler/warm"] == (
        "skip",
        "can't be built here: the package 'oven' is not installed",
        "pip install 'cm3leon[ovens]'",
    )
    assert re.fullmatch(
        r"\d+ laws were not tested: the component was not built", told["law", "upscaler/hot"][1]
    )


@pytest.mark.slow
def test_values_that_check_refuses(write: WriteFile) -> None:
    (report,) = check(
        write(UPSCALERS), Options(overrides=["hot.heat=11"], quick=True, only=["hot"])
    )
    assert verdict_of(report.verdicts, "defaults", "upscaler/hot") == (
        "fail",
        "check() refuses the config: is 11.0, too hot",
        "give at most 9",
    )
    assert "upscaler/warm" not in {verdict.subject for verdict in report.verdicts}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["retriever.heat=3"],
            "command line: retriever.heat=3: the plugin provides no retriever\n  next: known: "
            "upscaler",
        ),
        (
            ["hott.heat=3"],
            "command line: hott.heat=3: the plugin provides nothing called 'hott'\n  next: did you "
            "mean 'hot'?",
        ),
        (
            ["hot.heet=3"],
            "command line: hot.heet=3: upscaler/hot has no key 'heet'\n  next: did you mean 'heat'?",
        ),
        (
            ["heat=3"],
            "command line: heat=3: is not KIND.KEY=VALUE or NAME.KEY=VALUE\n  next: write e.g. "
            "sampler.temperature=0.5",
        ),
        (
            ["hot.heat=much"],
            "command line: upscaler.heat: is 'much', must be a number\n  next: write upscaler.heat=0.5",
        ),
        (
            ["--only", "hut"],
            "--only hut: the plugin provides no such component\n  next: did you mean 'hot'?",
        ),
        (
            ["--waive", "law"],
            "--waive law: is not LAW=REASON or NAME.LAW=REASON\n"
            "  next: give a reason why the law does not apply, in quotes",
        ),
        (
            ["--timeout", "0"],
            "cm3 plugin check: argument --timeout: is '0', must be a number more than 0 and at most "
            "600,000,000\n  next: see `cm3 plugin check --help`",
        ),
        (
            ["--max-examples", "-1"],
            "cm3 plugin check: argument --max-examples: is '-1', must be a whole number from 1 to "
            "1,048,576\n  next: see `cm3 plugin check --help`",
        ),
    ],
)
def test_wrong_usage(
    arguments: list[str], expected: str, write: WriteFile, capsys: pytest.CaptureFixture[str]
) -> None:
    source = UPSCALERS.replace('"hot": Hot, "warm": Warm', '"hot": Hot')
    assert main(["plugin", "check", write(source), "--quick", *arguments]) == 2
    assert capsys.readouterr().err == f"error: {expected}\n"


@pytest.mark.slow
def test_the_bundled_plugin_is_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugin", "check", "bundled", "--quick", "--json"]) == 0
    answer: Any = json.loads(capsys.readouterr().out)
    (plugin,) = answer["plugins"]
    assert plugin["counts"]["fail"] == 0
    # of the import only its seconds are warned of, which a busy machine makes many
    warned = {verdict["check"] for verdict in plugin["verdicts"] if verdict["status"] == "warn"}
    assert warned <= {"import"}
    without = [
        verdict["text"]
        for verdict in plugin["verdicts"]
        if (verdict["status"], verdict["check"]) == ("skip", "defaults")
    ]
    assert without == [
        *["`path` must be given"] * 2,
        "`path`, `pictures` must be given",
        "`source`, `condition` must be given",
        *["`path` must be given"] * 3,
        "`parts` must be given",
        *["`path` must be given"] * 4,
        "`path`, `answers`, `pictures` must be given",
        *["`path` must be given"] * 2,
        "`backbone`, `heads` must be given",
        "`jar` must be given",
    ]
