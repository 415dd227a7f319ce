"""The command line: what it prints, its exit codes, and what it must not import."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest

from cm3apps.cli.main import COMMANDS, main
from cm3core import __version__
from messages import tells

RECIPE = "# mine: for tests\nextends: [tiny]\ndecoder: {num_layers: 2}\nvocabulary: {num_text: 300}\ntrain: {steps: 10}\n"
PLUGIN = """\
from dataclasses import dataclass
from cm3core.hookspecs import hookimpl
from cm3core.interfaces import SamplerConfig

CM3_API = 1

@dataclass(kw_only=True)
class OneOffConfig(SamplerConfig):
    strength: float = 1.0
    def build(self): raise AssertionError("described, never built")

@hookimpl
def cm3_samplers():
    return {"one-off": OneOffConfig}

@hookimpl
def cm3_commands():
    return {"greet": "cm3_plugin_file_mine:greet"}

def greet(parser):
    parser.add_argument("whom")
    parser.set_defaults(run=lambda args: print(f"hello {args.whom}") or 0)
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return str(path)


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN, encoding="utf-8")
    return str(path)


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"cm3leon {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["recipe", "list"],
        ["recipe", "show", "MINE", "--origin"],
        ["plugin", "list"],
        ["recipe", "check", "MINE"],
    ],
)
def test_answers_without_torch(arguments: list[str], recipe: str) -> None:
    script = (
        "import sys\nfrom cm3apps.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'faiss', 'tokenizers'} & set(sys.modules)"
    )
    arguments = [recipe if item == "MINE" else item for item in arguments]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module_name, line = COMMANDS[name]
    if module_name:  # else the bundled plugin brings it
        assert importlib.util.find_spec(module_name) is not None, (
            f"the command {name!r} is in the table and has no module"
        )
        module = importlib.import_module(module_name)
        assert line == module.HELP
        module.configure(ArgumentParser())
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"  cm3 {name}" in capsys.readouterr().out.partition("example")[2]


@pytest.mark.parametrize("action", ["list", "show", "check", "diff"])
def test_every_recipe_action_has_an_example(
    action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["recipe", action, "--help"])
    assert f"example:\n  cm3 recipe {action}" in capsys.readouterr().out


def test_errors_are_two_lines_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recip"]) == 2
    assert tells(capsys.readouterr().err, "error: cm3 recip: there is no such command ... 'recipe'")
    assert main(["recipe", "show", "cm3leon-70b"]) == 2
    assert tells(capsys.readouterr().err, "error: recipe 'cm3leon-70b': no shipped recipe")


def test_a_wrong_plugin_file_is_told_even_where_no_plugin_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "crooked.py"
    path.write_text("def hook(:\n")
    assert main(["--plugin", str(path), "recipe", "list"]) == 2
    assert capsys.readouterr() == (
        "",
        f"error: plugin 'crooked' ({path}): SyntaxError: invalid syntax (crooked.py, line 1)\n"
        "  next: correct the plugin, or uninstall it\n",
    )


def test_a_command_whose_plugin_is_not_in_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CM3_DISABLE_PLUGINS", "bundled-apps")
    assert main(["quickstart"]) == 2
    assert tells(capsys.readouterr().err, "error: cm3 quickstart: no plugin in use provides this")


@pytest.mark.parametrize(
    ("command", "plugin", "distribution"),
    [
        ("bench", "lab", "cm3lab"),
        ("convert", "published", "cm3published"),
        ("mcp", "serve", "cm3serve"),
        ("serve", "serve", "cm3serve"),
    ],
)
def test_a_command_of_a_distribution_beside(
    command: str,
    plugin: str,
    distribution: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CM3_DISABLE_PLUGINS", plugin)
    assert main([command]) == 2
    told = capsys.readouterr().err
    assert tells(told, f"error: cm3 {command}: this command is in the distribution {distribution}")
    assert f"pip install ./plugins/cm3-{plugin}" in told


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("cm3apps.cli.recipe.run", interrupt)
    assert main(["recipe", "list"]) == 130
    assert capsys.readouterr().err == "interrupted; the same command resumes where it can\n"


def test_show_with_origins_and_overrides_among_the_options(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipe", "show", recipe, "train.seed=3", "--origin", "decoder.d_model=128"]) == 0
    lines = {line.split(" = ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["decoder.num_layers"].split() == ["decoder.num_layers", "=", "2", "#", recipe]
    assert lines["decoder.d_model"].split() == [
        "decoder.d_model",
        "=",
        "128",
        "#",
        "command",
        "line",
    ]
    assert lines["train.seed"].split() == ["train.seed", "=", "3", "#", "command", "line"]
    assert lines["train.minutes"].split() == ["train.minutes", "=", "null", "#", "default"]


def test_show_prints_what_reads_back(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipe", "show", recipe]) == 0
    again = tmp_path / "again.yaml"
    again.write_text(capsys.readouterr().out, encoding="utf-8")
    assert main(["recipe", "diff", recipe, str(again)]) == 0
    assert "are equal (hash " in capsys.readouterr().out


def test_show_says_what_check_refuses(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "show", recipe]) == 0
    assert capsys.readouterr().err == ""
    assert main(["recipe", "show", recipe, "train.minutes=3"]) == 0
    shown = capsys.readouterr()
    assert "minutes: 3" in shown.out
    assert tells(
        shown.err,
        "warning: `cm3 recipe check` refuses this recipe: train.steps, train.minutes: exactly",
    )


def test_check_and_diff(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "check", recipe]) == 0
    assert capsys.readouterr().out.startswith("mine: valid (hash ")
    assert main(["recipe", "check", recipe, "train.minutes=3"]) == 2
    assert tells(capsys.readouterr().err, "error: train.steps, train.minutes: exactly one decides")
    other = tmp_path / "other.yaml"
    other.write_text(f"extends: [{recipe}]\ntrain: {{seed: 5}}\n", encoding="utf-8")
    assert main(["recipe", "diff", recipe, str(other)]) == 0
    assert capsys.readouterr().out == "train.seed: 0 -> 5\n"


def test_unknown_options_are_refused(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "show", recipe, "--orgin"]) == 2
    assert tells(capsys.readouterr().err, "error: cm3 recipe: unrecognized arguments: --orgin")
    assert main(["generate", "a red apple", "--seed", "one"]) == 2
    assert tells(
        capsys.readouterr().err, "error: cm3 generate: argument --seed: is 'one' ... from 0"
    )


def test_a_plugin_file_brings_components_and_commands(
    plugin: str, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            ["--plugin", plugin, "recipe", "show", recipe, "sampler=one-off", "sampler.strength=2"]
        )
        == 0
    )
    assert "sampler:\n  name: one-off\n  strength: 2.0\n" in capsys.readouterr().out
    assert main(["recipe", "check", "--plugin", plugin, recipe, "sampler=one-off"]) == 0
    capsys.readouterr()
    assert main(["--plugin", plugin, "greet", "world"]) == 0
    assert capsys.readouterr().out == "hello world\n"


def test_plugin_list(plugin: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plugin", plugin, "plugin", "list", "-v"]) == 0
    shown = capsys.readouterr().out
    assert f"mine (file)  loaded\n  from {plugin}\n  sampler: one-off\n  commands: greet\n" in shown
    assert main(["--plugin", plugin, "plugin", "list", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert listed["mine"]["components"] == {"sampler": ["one-off"]}
    assert listed["bundled"]["status"] == "loaded"


@pytest.mark.slow
def test_plugin_list_is_kept_until_something_changes(tmp_path: Path) -> None:
    """What is installed, a plugin's file, another version, the variables: each is seen at once."""
    cache, packages = tmp_path / "cache", tmp_path / "packages"
    packages.mkdir()
    script = (
        "import sys\nsys.path.insert(0, sys.argv[1])\nfrom cm3apps.cli.main import main\n"
        "code = main(sys.argv[2:])\nprint('kept' if 'cm3plugins' not in sys.modules else 'asked')"
    )

    def listed(**variables: str) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", script, str(packages), "plugin", "list"],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env={"PATH": "", "CM3_CACHE": str(cache)} | variables,
        )
        text, how = done.stdout.rstrip("\n").rsplit("\n", 1)
        assert done.stderr == ""
        return text, how

    def twice(**variables: str) -> str:
        text, _ = listed(**variables)
        # another test may write beside the sources meanwhile, where modules are looked for, too
        assert (text, "kept") in (listed(**variables) for _ in range(3))
        return text

    first = twice()
    metadata = packages / "mine-0.3.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 0.3\n")
    (metadata / "entry_points.txt").write_text("[cm3core.plugins]\nmine = mine\n")
    (packages / "mine.py").write_text("import no_such_module_anywhere\n")
    broken = listed()
    assert "mine 0.3  broken: ModuleNotFoundError" in broken[0]
    assert listed() == broken, "why a plugin is broken is looked for again"
    source = "from cm3core.hookspecs import hookimpl\nCM3_API = 1\n"
    source += "@hookimpl\ndef cm3_commands():\n    return {'one': 'mine:run'}\n"
    (packages / "mine.py").write_text(source)
    assert "mine 0.3  loaded\n  commands: one" in twice()
    (packages / "mine.py").write_text(source.replace("one", "other"))
    assert "mine 0.3  loaded\n  commands: other" in twice()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 0.4\n")
    assert "mine 0.4  loaded\n  commands: other" in twice()
    assert "mine 0.4  disabled" in twice(CM3_DISABLE_PLUGINS="mine")
    (metadata / "entry_points.txt").unlink()
    assert listed()[0] == first
    (cache / "plugins" / "list.json").write_text("[1, {}]")
    assert twice() == first


@pytest.mark.slow
def test_plugin_list_shows_why_one_is_broken(tmp_path: Path) -> None:
    (tmp_path / "crooked.py").write_text("import no_such_module_anywhere\n", encoding="utf-8")
    info = tmp_path / "crooked-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: crooked\nVersion: 0.3\n", encoding="utf-8"
    )
    (info / "entry_points.txt").write_text(
        "[cm3core.plugins]\ncrooked = crooked\n", encoding="utf-8"
    )
    script = "import sys\nsys.path.insert(0, sys.argv[1])\nfrom cm3apps.cli.main import main\nsys.exit(main(sys.argv[2:]))"
    environment = {"PATH": "", "CM3_STRICT_PLUGINS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), "plugin", "list", "-v"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert (
        "crooked 0.3  broken: ModuleNotFoundError: No module named 'no_such_module_anywhere'\n"
        in done.stdout
    )
    assert "  | Traceback (most recent call last):" in done.stdout
    assert done.stderr == ""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), "recipe", "show", "nothing"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 2
