"""`cm3 plugin check` judges the plugin alone: neither what other plugins print and break, nor by
rules that the plugin was not written for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cm3apps.cli.main import main
from cm3apps.plugin_check.checking import Options, check
from cm3apps.plugin_check.worker import Verdict
from cm3core.plugins.discovery import GROUP
from throwaway_plugins import GOOD

LOUD = """\
import os, subprocess, sys, warnings
print("printed")
sys.__stdout__.write("written\\n")
warnings.warn("warned")
os.system("echo from a shell")
subprocess.run([sys.executable, "-c", "print('from a child')"])
"""
QUICK = Options(quick=True)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The argument of the command: a good plugin's file in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(GOOD, encoding="utf-8")
    return "./mine.py"


def install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: str, name: str = "other"
) -> None:
    """Another plugin, as an installer writes it."""
    site = folder / f"site-{name}"
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (site / f"{name}_module.py").write_text(source, encoding="utf-8")
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8"
    )
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {name}_module\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(site))


def verdicts(argument: str) -> list[Verdict]:
    (report,) = check(argument, QUICK)
    return report.verdicts


def lines(found: list[Verdict], *checks: str) -> list[tuple[str, str, str]]:
    return [(one.status, one.subject, one.text) for one in found if one.check in checks]


@pytest.mark.slow
def test_what_others_print_and_break_is_not_the_plugins(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [verdict for verdict in verdicts(mine) if verdict.check != "import"]
    install(tmp_path, monkeypatch, LOUD + GOOD.replace('"characters"', '"letters"'))
    install(tmp_path, monkeypatch, "import nothing_there", "broken")
    assert [verdict for verdict in verdicts(mine) if verdict.check != "import"] == before


@pytest.mark.slow
def test_names_of_others_are_still_found(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, LOUD + GOOD)
    found = verdicts(mine)
    assert lines(found, "names", "output") == [
        ("warn", "text_tokenizer/characters", "is also provided by other")
    ]


def test_another_plugin_that_ends_the_process_is_no_failure_of_this_one(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "import os\nos._exit(3)")
    found = verdicts(mine)
    assert lines(found, "names") == [
        (
            "skip",
            "",
            "its names can't be compared with other plugins': the process exited with code 3 while "
            "the other installed plugins were imported",
        )
    ]
    assert not any(verdict.status == "fail" for verdict in found)


@pytest.mark.slow
def test_what_the_plugin_prints_is_its_own(mine: str, tmp_path: Path) -> None:
    loud = LOUD.replace('warnings.warn("warned")\n', "")
    (tmp_path / "mine.py").write_text(loud + GOOD, encoding="utf-8")
    (verdict,) = (one for one in verdicts(mine) if one.check == "output")
    assert sorted(verdict.detail.splitlines()) == [
        "from a child",
        "from a shell",
        "printed",
        "written",
    ]


@pytest.mark.parametrize(
    ("stated", "cause", "next_step"),
    [
        ("9", "is written for plugin API 9, but this cm3leon has 1", "update cm3leon"),
        ("0", "is written for plugin API 0, but this cm3leon has 1", "update the plugin"),
    ],
)
def test_a_plugin_of_another_api_is_judged_by_its_api_only(
    stated: str, cause: str, next_step: str, mine: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        GOOD.replace("CM3_API = 1", f"CM3_API = {stated}"), encoding="utf-8"
    )
    found = [verdict for verdict in verdicts(mine) if verdict.check != "import"]
    assert found == [
        Verdict("api", "", "fail", cause, next_step),
        Verdict(
            "hooks",
            "",
            "skip",
            "its hooks and components are not checked: the rules of plugin API 1 do not apply",
            "correct the failure above",
        ),
    ]


def test_an_api_that_is_no_number_is_refused_and_not_served(mine: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        GOOD.replace("CM3_API = 1", "CM3_API = '1'"), encoding="utf-8"
    )
    found = verdicts(mine)
    assert lines(found, "api") == [("fail", "", "states CM3_API = '1', which is not an integer")]
    assert lines(found, "hooks") == [("ok", "", "cm3_text_tokenizers")]


@pytest.mark.parametrize(
    "command",
    [
        ["plugin", "check", "./mine.py", "--quick", "--json"],
        ["--plugin", "./mine.py", "plugin", "list", "--json"],
        ["--plugin", "./mine.py", "kinds", "--json"],
        ["--plugin", "./mine.py", "describe", "text_tokenizer", "--json"],
    ],
    ids=lambda command: " ".join(command),
)
def test_json_is_json_whatever_a_plugin_prints(
    command: list[str], mine: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hook = GOOD.replace("    return {", "    print('from a hook')\n    return {")
    (tmp_path / "mine.py").write_text(LOUD + hook, encoding="utf-8")
    assert main(command) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)
    if "check" not in command:
        assert {"printed", "written", "from a shell", "from a child", "from a hook"} <= set(
            err.splitlines()
        )
