"""`cm3 plugin check`: what it says of good plugins and of every way to be broken; each part is a
real process."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cm3core.cli.main import main
from cm3core.errors import PluginError
from cm3core.plugin_check.checking import Options, check
from cm3core.plugin_check.targets import find_targets
from cm3core.plugin_check.verdicts import Report, Verdict
from cm3core.plugins.discovery import GROUP

HEAD = '''\
from dataclasses import dataclass
from cm3core.hookspecs import hookimpl
from cm3core.interfaces import TextTokenizerConfig

CM3_API = 1

@dataclass(kw_only=True)
class CharactersConfig(TextTokenizerConfig):
    """Characters.

    Args:
        size: how many.
    """

    size: int = 3

    def build(self, corpus=None):
        from cm3plugins.text_tokenizers.byte import ByteTokenizer
        return ByteTokenizer()

    def load(self, folder):
        return self.build()
'''
HOOK = """
@hookimpl
def cm3_text_tokenizers():
    return {"characters": CharactersConfig}
"""
GOOD = HEAD + HOOK
#: A tokenizer that confuses two letters.
CONFUSED = GOOD.replace(
    "        return ByteTokenizer()",
    """\
        class Confused(ByteTokenizer):
            def _encode(self, text):
                return super()._encode(text.replace("b", "a"))
            def save(self, folder):
                from cm3core.errors import DeviceError
                raise DeviceError("here", "there is no disk", "add one")
        return Confused()""",
)
WriteFile = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteFile:
    """Write `mine.py` into the working directory, a temporary one; returns the argument of the
    command."""
    monkeypatch.chdir(tmp_path)

    def written(source: str, name: str = "mine.py") -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source, encoding="utf-8")
        return f"./{name}"

    return written


def lines_of(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> str:
    """What was printed, with the folder and times taken out."""
    out = (
        capsys.readouterr()
        .out.replace(str(tmp_path.resolve()), "TMP")
        .replace(str(tmp_path), "TMP")
    )
    return re.sub(r"\d+\.\d\d s", "N s", out)


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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.py"]


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
    assert broken["text"] == "AssertionError: assert 'a' == 'b'"
    assert broken["detail"].splitlines()[0] == "falsified by: Draw 1: 'b'"
    assert broken["detail"].endswith(
        "assert self.subject.decode(self.subject.encode(text)) == text"
    )
    assert broken["next_step"].startswith("the law: Every valid string comes back")


#: Source, and the lines that say what is wrong with it (the lines of what is in order are left
#: out).
STATIC: dict[str, tuple[str, str]] = {
    "a syntax error": (
        "def f(:\n",
        """\
FAIL  import: TMP/mine.py can't be imported: SyntaxError: invalid syntax (TMP/mine.py, line 1)
      next: correct the line
""",
    ),
    "an import that raises": (
        GOOD + "\nraise RuntimeError('two\\nlines')\n",
        f"""\
FAIL  import: TMP/mine.py can't be imported: RuntimeError: two
      | TMP/mine.py, line {GOOD.count(chr(10)) + 2}: raise RuntimeError('two\\nlines')
      next: correct the plugin
""",
    ),
    "a package that is missing": (
        "import no_such_package\n",
        """\
FAIL  import: TMP/mine.py can't be imported: ModuleNotFoundError: No module named 'no_such_package'
      | TMP/mine.py, line 1: import no_such_package
      next: install 'no_such_package' and add it to the plugin's dependencies, or correct the import
""",
    ),
    "sys.exit": (
        "import sys\nsys.exit(3)\n",
        """\
FAIL  import: TMP/mine.py can't be imported: SystemExit: 3
      | TMP/mine.py, line 2: sys.exit(3)
      next: importing a module must not exit the program
""",
    ),
    "os._exit": (
        "import os\nprint('good bye', flush=True)\nos._exit(7)\n",
        """\
FAIL  import: the process exited with code 7 while importing TMP/mine.py
      | good bye
      next: a plugin must not exit the program
""",
    ),
    "a crash": (
        "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n",
        """\
FAIL  import: the process was killed by SIGSEGV while importing TMP/mine.py
      next: run that step in a debugger (python -X faulthandler)
""",
    ),
    "a hang": (
        "import time\ntime.sleep(60)\n",
        """\
FAIL  import: importing TMP/mine.py took longer than 3 s and was killed
      next: find what it waits for, or raise --timeout
""",
    ),
    "no API version, and a hook that raises": (
        GOOD.replace("CM3_API = 1\n", "").replace('return {"ch', 'return 1 / 0, {"ch'),
        f"""\
FAIL  api: states no CM3_API
      next: write `CM3_API = 1` in its module
FAIL  hooks cm3_text_tokenizers: ZeroDivisionError: division by zero
      | TMP/mine.py, line {GOOD.count(chr(10)) - 1}: return 1 / 0, {{"characters": CharactersConfig}}
      next: correct the plugin
skip  build: nothing is built, because cm3 refuses the plugin
      next: correct the failures above
""",
    ),
    "a hook with an argument": (
        GOOD.replace("tokenizers():", "tokenizers(config):"),
        """\
FAIL  hooks: cm3_text_tokenizers takes 'config', which the hook does not have
      next: write def cm3_text_tokenizers()
""",
    ),
    "a hook that does not exist": (
        GOOD.replace("def cm3_text_tokenizers", "def cm3_text_tokenizer"),
        """\
FAIL  hooks: implements the hook 'cm3_text_tokenizer', which does not exist
      next: did you mean 'cm3_text_tokenizers'?
skip  build: nothing is built, because cm3 refuses the plugin
      next: correct the failures above
""",
    ),
    "no hook": (
        HEAD,
        """\
FAIL  hooks: it implements no hooks, so it provides nothing
      next: implement one of the hooks of cm3core.hookspecs, decorated with @hookimpl
skip  build: nothing is built, because cm3 refuses the plugin
      next: correct the failures above
""",
    ),
    "a default of the wrong type": (
        GOOD.replace("size: int = 3", "size: int = 'three'"),
        """\
FAIL  defaults text_tokenizer/characters: the default of size is 'three', expected int
      next: correct the default, or the annotation, in CharactersConfig
skip  law: no laws are tested with --quick
""",
    ),
    "a heavy import, and a check that raises": (
        GOOD
        + """
def check(self):
    import matplotlib
    raise KeyError("size")
CharactersConfig.check = check
""",
        f"""\
FAIL  defaults text_tokenizer/characters: check() raises an error that is not a CM3Error: KeyError: 'size'
      | TMP/mine.py, line {GOOD.count(chr(10)) + 4}: raise KeyError("size")
      next: correct the plugin
FAIL  import matplotlib: matplotlib is imported when the plugin is described, which slows down every command
      | imported by TMP/mine.py, line {GOOD.count(chr(10)) + 3}
      next: import it in `build`, or in the module that `build` imports
skip  law: no laws are tested with --quick
""",
    ),
    "a name that is taken, keys without documentation, a print": (
        (GOOD + "print('hello')\n")
        .replace("size: how", "sise: how")
        .replace('"characters"', '"byte"'),
        """\
warn  keys text_tokenizer/byte: `size` is not documented; its Args: name `sise`, which is not a key
      next: write `size: what it means` below `Args:` in the docstring of CharactersConfig; did you mean 'size'?
warn  names text_tokenizer/byte: is also provided by bundled
      next: recipes must write mine/byte; rename it to avoid that
warn  output: it prints while it is described, which every cm3 command then shows on stderr
      | hello
      next: remove the print, or use logging
skip  law: no laws are tested with --quick
""",
    ),
    "a key that must be given, no docstring": (
        re.sub(r'    """.*?"""\n', "", GOOD, flags=re.DOTALL).replace("size: int = 3", "size: int"),
        """\
warn  keys text_tokenizer/characters: CharactersConfig has no docstring; `size` is not documented
      next: write `size: what it means` below `Args:` in the docstring of CharactersConfig
skip  defaults text_tokenizer/characters: `size` must be given
      next: cm3 plugin check ./mine.py characters.size=...
skip  law: no laws are tested with --quick
""",
    ),
}


@pytest.mark.parametrize("case", STATIC)
def test_what_is_wrong_is_told_and_ends_nothing(
    case: str, write: WriteFile, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source, expected = STATIC[case]
    timeout = "3" if case == "a hang" else "60"
    code = main(["plugin", "check", write(source), "--quick", "--timeout", timeout])
    out = lines_of(capsys, tmp_path)
    told = "".join(f"{line}\n" for line in out.splitlines()[1:-1] if not line.startswith("ok "))
    assert told == expected
    assert code == (1 if "FAIL" in expected else 0)


def test_strict_fails_on_warnings(write: WriteFile) -> None:
    source = write(GOOD.replace("size: how many.", ""))
    (report,) = check(source, Options(quick=True))
    assert [verdict.status for verdict in report.verdicts if verdict.status != "ok"] == [
        "warn",
        "skip",
    ]
    assert (report.passed(), report.passed(strict=True)) == (True, False)
    assert Report("mine", "", "", [Verdict("api", "", "ok", "")]).passed(strict=True)


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


def verdict_of(verdicts: list[Verdict], check_name: str, subject: str) -> tuple[str, str, str]:
    return next(
        (verdict.status, verdict.text, verdict.next_step)
        for verdict in verdicts
        if (verdict.check, verdict.subject) == (check_name, subject)
    )


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
        "write it with cm3core.checkpoint.export_model, and package its files",
    )


SAMPLERS = (
    HEAD
    + '''
from cm3core.interfaces import SamplerConfig

@dataclass(kw_only=True)
class Hot(SamplerConfig):
    """Hot.

    Args:
        heat: how hot.
    """

    heat: float

    def check(self):
        from cm3core.errors import RecipeError
        if self.heat > 9:
            raise RecipeError("sampler.heat", f"is {self.heat}, too hot", "give at most 9")

    def build(self):
        return self.heat

class Cold(Hot):
    pass

@hookimpl
def cm3_samplers():
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


def test_keys_that_must_be_given_come_from_the_command_line(write: WriteFile) -> None:
    (report,) = check(write(SAMPLERS), Options(overrides=["sampler.heat=3", "warm.mild=false"]))
    told = {
        (verdict.check, verdict.subject): (verdict.status, verdict.text, verdict.next_step)
        for verdict in report.verdicts
    }
    assert told["defaults", "sampler/hot"] == ("ok", "check() accepts the given values", "")
    assert told["build", "sampler/hot"] == (
        "fail",
        "build returned a float, not a subclass of Sampler",
        "derive it from cm3core.interfaces.Sampler",
    )
    assert told["build", "sampler/warm"] == (
        "skip",
        "can't be built here: the package 'oven' is not installed",
        "pip install 'cm3leon[ovens]'",
    )
    assert re.fullmatch(
        r"\d+ laws were not tested: the component was not built", told["law", "sampler/hot"][1]
    )


def test_values_that_check_refuses(write: WriteFile) -> None:
    (report,) = check(write(SAMPLERS), Options(overrides=["hot.heat=11"], quick=True, only=["hot"]))
    assert verdict_of(report.verdicts, "defaults", "sampler/hot") == (
        "fail",
        "check() refuses the config: is 11.0, too hot",
        "give at most 9",
    )
    assert "sampler/warm" not in {verdict.subject for verdict in report.verdicts}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["retriever.heat=3"],
            "command line: retriever.heat=3: the plugin provides no retriever\n  next: known: "
            "sampler",
        ),
        (
            ["hott.heat=3"],
            "command line: hott.heat=3: the plugin provides nothing called 'hott'\n  next: did you "
            "mean 'hot'?",
        ),
        (
            ["hot.heet=3"],
            "command line: hot.heet=3: sampler/hot has no key 'heet'\n  next: did you mean 'heat'?",
        ),
        (
            ["heat=3"],
            "command line: heat=3: is not KIND.KEY=VALUE or NAME.KEY=VALUE\n  next: write e.g. "
            "sampler.temperature=0.5",
        ),
        (
            ["hot.heat=much"],
            "given: sampler.heat: is 'much', expected float\n  next: correct the value",
        ),
        (
            ["--only", "hut"],
            "--only hut: the plugin provides no such component\n  next: did you mean 'hot'?",
        ),
        (
            ["--waive", "law"],
            "--waive law: is not LAW=REASON or NAME.LAW=REASON\n"
            "  next: give the reason why the law does not apply, in quotes",
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
    source = SAMPLERS.replace('"hot": Hot, "warm": Warm', '"hot": Hot')
    assert main(["plugin", "check", write(source), "--quick", *arguments]) == 2
    assert capsys.readouterr().err == f"error: {expected}\n"


PROJECT = f"""\
[project]
name = "cm3-mine"
version = "0.3"
dependencies = ["cm3leon>=0.1"]

[project.entry-points."{GROUP}"]
mine = "cm3_mine"
"""


def test_a_source_folder(write: WriteFile, tmp_path: Path) -> None:
    write(PROJECT, "project/pyproject.toml")
    write(GOOD, "project/src/cm3_mine/__init__.py")
    (report,) = check("project", Options(quick=True))
    assert (report.name, report.version, report.origin) == ("mine", "0.3", "project, cm3_mine")
    assert report.verdicts[0] == Verdict(
        "install",
        "",
        "warn",
        "cm3-mine is not installed: the code in project/src is checked",
        "pip install -e project",
    )
    assert verdict_of(report.verdicts, "defaults", "text_tokenizer/characters")[0] == "ok"


@pytest.mark.parametrize(
    ("project", "module", "expected"),
    [
        (
            PROJECT.replace("cm3leon>", "other>"),
            "cm3_mine.py",
            Verdict(
                "install",
                "",
                "warn",
                "cm3-mine does not depend on cm3leon",
                'add "cm3leon" to dependencies in pyproject.toml',
            ),
        ),
        (
            PROJECT.replace('"cm3_mine"', '"cm3_mime"'),
            "cm3_mine.py",
            Verdict(
                "install",
                "",
                "fail",
                "pyproject.toml declares mine = cm3_mime, but the folder has no module cm3_mime",
                "correct the entry point's value, or add the module",
            ),
        ),
        (
            PROJECT.split("\n\n")[0],
            "cm3_mine.py",
            Verdict(
                "install",
                "",
                "fail",
                f"cm3-mine declares no entry point in the group {GROUP!r}, so cm3 does not "
                "find the plugin",
                f'write `cm3-mine = "my_package"` below [project.entry-points."{GROUP}"] in pyproject.toml, and reinstall it',
            ),
        ),
    ],
)
def test_a_project_that_is_not_right(
    project: str, module: str, expected: Verdict, write: WriteFile, tmp_path: Path
) -> None:
    write(project, "project/pyproject.toml")
    write(GOOD, f"project/{module}")
    (target,) = find_targets(str(tmp_path / "project"))
    assert expected in target.verdicts


def test_places_of_a_module(write: WriteFile, tmp_path: Path) -> None:
    write(
        PROJECT + '[tool.hatch.build.targets.wheel]\npackages = ["deep/er/cm3_mine"]\n',
        "project/pyproject.toml",
    )
    write(GOOD, "project/deep/er/cm3_mine/__init__.py")
    (target,) = find_targets("project")
    assert target.paths == (str(Path("project/deep/er").absolute()),)


def install(
    folder: Path, name: str, source: str, points: str, requires: str = "Requires-Dist: cm3leon\n"
) -> None:
    """A distribution as an installer writes it."""
    (folder / f"{name}_module.py").write_text(source, encoding="utf-8")
    info = folder / f"{name}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n{requires}", encoding="utf-8"
    )
    (info / "entry_points.txt").write_text(points, encoding="utf-8")


def test_installed_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    install(tmp_path, "cm3_mine", GOOD, f"[{GROUP}]\nmine = cm3_mine_module\n")
    install(
        tmp_path, "cm3_rest", GOOD, "[console_scripts]\nrest = cm3_rest_module:f\n", requires=""
    )
    for argument in ("cm3-mine", "mine", "cm3_mine_module"):
        (report,) = (
            check(argument, Options(quick=True))
            if argument == "cm3-mine"
            else [
                Report(target.name, target.version, target.origin, target.verdicts)
                for target in find_targets(argument)
            ]
        )
        assert (report.name, report.version, report.origin) == (
            "mine",
            "1.5",
            "cm3_mine, cm3_mine_module",
        )
        assert report.verdicts[0] == Verdict(
            "install", "", "ok", "cm3_mine 1.5 declares mine = cm3_mine_module"
        )
        if argument == "cm3-mine":
            assert verdict_of(report.verdicts, "names", "")[0] == "ok"  # it is no clash with itself
    (target,) = find_targets("cm3_rest")
    assert (target.module, target.verdicts[0].status) == ("", "fail")
    (target,) = find_targets("cm3_rest_module")
    assert (target.name, target.module, target.verdicts[0].status) == (
        "cm3_rest_module",
        "cm3_rest_module",
        "warn",
    )
    with pytest.raises(PluginError) as caught:
        find_targets("cm3-mime")
    assert str(caught.value) == (
        "cm3-mime: no distribution, entry point, module, folder or file has this name\n"
        "  next: did you mean 'cm3_mine'?; give a folder or file by its path"
    )


def test_two_plugins_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    install(tmp_path, "cm3_mine", GOOD, f"[{GROUP}]\nmine = cm3_mine_module\n")
    install(tmp_path, "cm3_other", GOOD, f"[{GROUP}]\nmine = cm3_other_module\n")
    (report,) = check("cm3-other", Options(quick=True))
    assert verdict_of(report.verdicts, "names", "") == (
        "fail",
        "another plugin is called 'mine': cm3_mine, cm3_mine_module",
        "rename the entry point in the group 'cm3core.plugins', or the file",
    )


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("./nowhere.py", "./nowhere.py: there is no such file\n  next: correct the path"),
        ("./nowhere", "./nowhere: there is no such file or folder\n  next: correct the path"),
        (
            "./note.txt",
            "./note.txt: is no Python file\n  next: give a .py file, or a folder with pyproject.toml",
        ),
        (
            "./project/cm3_mine",
            "./project/cm3_mine: the folder has no pyproject.toml\n"
            "  next: give the folder that has one, or a .py file (did you mean TMP/project?)",
        ),
        (
            "bundeld",
            "bundeld: no distribution, entry point, module, folder or file has this name\n"
            "  next: did you mean 'bundled'?; give a folder or file by its path",
        ),
        (
            "./broken",
            "broken/pyproject.toml: is not valid TOML: Expected '=' after a key in a key/value "
            "pair (at line 1, column 4)\n"
            "  next: correct the file",
        ),
        (
            "./odd",
            "odd/pyproject.toml: [project] or its entry points in 'cm3core.plugins' are not a "
            "table of strings\n"
            '  next: write `mine = "my_package"` below [project.entry-points."cm3core.plugins"]',
        ),
    ],
)
def test_arguments_that_mean_nothing(
    argument: str,
    expected: str,
    write: WriteFile,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    write(PROJECT, "project/pyproject.toml")
    write(GOOD, "project/cm3_mine/__init__.py")
    write("no value", "broken/pyproject.toml")
    write("text", "note.txt")
    write(PROJECT.replace('mine = "cm3_mine"', "mine = 3"), "odd/pyproject.toml")
    assert main(["plugin", "check", argument]) == 2
    assert (
        capsys.readouterr()
        .err.replace(str(tmp_path.resolve()), "TMP")
        .replace(str(tmp_path), "TMP")
        == f"error: {expected}\n"
    )


def test_the_bundled_plugin_is_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugin", "check", "bundled", "--quick", "--json"]) == 0
    answer: Any = json.loads(capsys.readouterr().out)
    (plugin,) = answer["plugins"]
    assert plugin["counts"]["fail"] == plugin["counts"]["warn"] == 0
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
        "`path` must be given",
        "`path`, `columns` must be given",
        "`path` must be given",
        "`path`, `answers`, `pictures` must be given",
        *["`path` must be given"] * 2,
        "`backbone`, `heads` must be given",
        "`jar` must be given",
    ]
