"""What `cm3 plugin new` writes, of every kind: installed beside the wheel, tested, used in a recipe
by one changed line."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cm3apps.scaffold import template_kinds
from cm3core.images import save_png
from cm3core.recipe.recipe import MEASURING

pytestmark = pytest.mark.slow
#: The kinds that there are templates for.
WRITTEN = template_kinds()
#: Few examples: that the laws hold is what is looked at here, not how well they search. Nor is the
#: smallest example of what is broken looked for.
CONFTEST = """import gc
from hypothesis import Phase, settings
settings.register_profile("few", max_examples=5, phases=[Phase.explicit, Phase.generate])
settings.load_profile("few")
def pytest_collection_finish():
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
"""
#: Runs `cm3` several times in one process (importing torch takes longer than most of them); a line
#: ends what each prints.
MANY = """import shlex, sys
from cm3apps.cli.main import main
for line in sys.stdin.read().splitlines():
    code = main(shlex.split(line))
    print(f"## {code} {line}", flush=True)
"""
#: The recipe whose lines are changed: tiny, on pictures that take no time.
BASE = "extends: [tiny]\ndataset:\n  name: own-dataset\n  side: 64\ntrain:\n  steps: 2\n  validate_every_steps: 1000\n"


def name_of(kind: str) -> str:
    return f"own-{kind.replace('_', '-')}"


@dataclass(frozen=True)
class Projects:
    """A folder with a project of each kind, and the commands of the environment in which they are
    installed."""

    folder: Path
    commands: Path
    cm3: Callable[[str], dict[str, tuple[int, str]]]

    def folders(self) -> list[str]:
        return [f"cm3-{name_of(kind)}" for kind in WRITTEN]


@pytest.fixture(scope="module")
def projects(
    new_environment: Callable[[], Path],
    build: Callable[..., list[Path]],
    install: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Projects:
    folder, commands = tmp_path_factory.mktemp("projects"), new_environment()
    (folder / "many.py").write_text(MANY)
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\n")  # tests have their names from here on

    def cm3(lines: str) -> dict[str, tuple[int, str]]:
        """Command -> exit code and what it printed."""
        environ = {
            "PATH": "",
            "HOME": str(folder),
            "CM3_CACHE": str(folder / "cache"),
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        shown = subprocess.run(
            [str(commands / "python"), "many.py"],
            input=lines,
            cwd=folder,
            env=environ,
            capture_output=True,
            text=True,
        )
        ended = re.split(r"^## (\d+) (.*)\n", shown.stdout, flags=re.MULTILINE)
        answers = {
            line: (int(code), text)
            for text, code, line in zip(ended[::3], ended[1::3], ended[2::3], strict=False)
        }
        assert list(answers) == lines.splitlines(), shown.stdout + shown.stderr
        assert {code for code, _ in answers.values()} == {0}, shown.stdout + shown.stderr
        return answers

    cm3("\n".join(f"plugin new {name_of(kind)} --kind {kind}" for kind in WRITTEN))
    projects = Projects(folder, commands, cm3)
    wheels = tmp_path_factory.mktemp("wheels")
    install(commands, *build(wheels, *(folder / name for name in projects.folders())))
    return projects


def test_each_is_a_plugin_that_is_described_without_torch(
    projects: Projects, run: Callable[..., str]
) -> None:
    script = (
        "import sys\nfrom cm3core.plugins import load_registry\n"
        "for info in load_registry().plugins: print(info.name, info.version, info.status, "
        "info.components)\n"
        "print(*{'torch', 'PIL', 'faiss', 'cm3kernels'} & set(sys.modules))"
    )
    *plugins, heavy = run(projects.commands, "python", "-c", script, cwd=projects.folder).split(
        "\n"
    )[:-1]
    expected = [
        f"{name_of(kind)} 0.1.0 loaded {{'{kind}': ['{name_of(kind)}']}}" for kind in WRITTEN
    ]
    assert [line for line in plugins if line.startswith("own-")] == sorted(expected)
    assert heavy == ""


def test_each_fits_the_installed_version(projects: Projects) -> None:
    """The window of versions holds the one that wrote it."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(projects.commands / "python"),
        "--disable-pip-version-check",
        "check",
    ]
    shown = subprocess.run(pip, capture_output=True, text=True).stdout
    assert [line for line in shown.splitlines() if line.startswith("cm3-own")] == []
    (packages,) = projects.commands.parent.glob("lib/python*/site-packages")
    found = {
        d.name: d
        for d in importlib.metadata.distributions(path=[str(packages)])
        if d.name.startswith("cm3-own")
    }
    assert sorted(found) == sorted(projects.folders())
    for distribution in found.values():
        assert any(
            re.fullmatch(r"cm3leon<\S+,>=\S+", line) for line in distribution.requires or []
        ), distribution.requires
        assert distribution.metadata["License-Expression"] == "MIT"


def test_they_are_in_order(projects: Projects) -> None:
    """The command of a project's CI; without the laws, which are its tests and the one check that `--quick` leaves out."""
    answers = projects.cm3("\n".join(f"plugin check {name_of(kind)} --quick" for kind in WRITTEN))
    ends = [text.splitlines()[-1] for _, text in answers.values()]
    assert ends == [f"{name_of(kind)}: 7 ok, 1 skipped" for kind in WRITTEN]


def test_the_tests_of_each_pass(projects: Projects, run: Callable[..., str]) -> None:
    command = ["python", "-m", "pytest", "-v", "-p", "no:cacheprovider"]
    shown = run(projects.commands, *command, *projects.folders(), cwd=projects.folder)
    for kind in WRITTEN:
        passed = re.findall(
            rf"^cm3-{name_of(kind)}/tests/test_\w+\.py::(\S+) PASSED", shown, re.MULTILINE
        )
        laws = [test for test in passed if "::" in test]
        assert len(laws) >= 5, f"{kind}: {passed}"
        assert len(passed) == len(laws) + 1, f"{kind}: an example of its own"
    assert "FAILED" not in shown


def test_the_tests_find_what_is_broken(projects: Projects) -> None:
    """A tokenizer that forgets the last id: tests that pass everything would prove nothing. (Those of
    other kinds import torch first, which takes longer than all else here.)"""
    package = Path("cm3_own_text_tokenizer", "__init__.py")
    source = (projects.folder / "cm3-own-text-tokenizer" / package).read_text(encoding="utf-8")
    assert source.count("for token in ids\n") == 1
    module = projects.folder / "broken" / package
    module.parent.mkdir(parents=True)
    module.write_text(
        source.replace("for token in ids\n", "for token in ids[:-1]\n"), encoding="utf-8"
    )
    command = [
        str(projects.commands / "python"),
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "lossless",
        "cm3-own-text-tokenizer",
    ]
    done = subprocess.run(
        command,
        cwd=projects.folder,
        env={"PYTHONPATH": "broken", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "test_round_trip_is_lossless" in done.stdout


def test_each_is_used_by_one_changed_line(projects: Projects) -> None:
    """Every kind's recipe is checked, or its evaluation run, and what it makes is made."""
    (projects.folder / "base.yaml").write_text(BASE, encoding="utf-8")
    (projects.folder / "changed.yaml").write_text(
        "extends: [./base.yaml]\nembedder:\n  name: own-embedder\nretriever:\n  name: "
        "own-retriever\n"
        "decoder:\n  context_length: 640\n",
        encoding="utf-8",
    )
    trained = ("text_tokenizer", "image_tokenizer", "objective", "decoder", "attention")
    checks = [
        "recipe check tiny "
        + (f"train.trackers=[{name_of(kind)}]" if kind == "tracker" else f"{kind}={name_of(kind)}")
        + (" objective=causal" if kind == "layout" else "")  # it has no sentinels
        for kind in WRITTEN
        if kind not in ("retriever", "task", *MEASURING)  # its task needs fields that emoji has not
    ]
    for place in range(4):
        half = projects.folder / ("one", "other")[place % 2]
        save_png(half / f"{place}.png", np.full((8, 8, 3), 60 * place, np.uint8))
    (projects.folder / "answers.jsonl").write_text('{"text": "a", "references": ["a"]}\n')
    scores = [
        "eval score answers.jsonl --metric own-metric",
        "eval score one other --metric fid --extractor own-extractor",
    ]
    at = "made"
    trainings = [f"train base.yaml -o {at}/{kind} {kind}={name_of(kind)}" for kind in trained]
    drawing = f"generate 'a red disc' --n 1 --model {at}"
    lines = [
        *checks,
        *scores,
        *trainings,
        f"{drawing}/decoder -o {at}/drawn --sampler own-sampler",
        f"train changed.yaml -o {at}/changed",
        f"{drawing}/decoder -o {at}/ranked --candidates 2 --rerank own-reranker",
        f"{drawing}/changed -o {at}/retrieved --show-retrieved",
        f"upscale {at}/drawn/000.png -o {at}/large.png --upscaler own-upscaler",
        f"memory build base.yaml -o {at}/bank --embedder own-embedder",
    ]
    answers = projects.cm3("\n".join(lines))
    for line in checks:
        assert answers[line][1].startswith("tiny: valid")
    for kind, line in zip(trained, trainings, strict=True):
        assert "trained to step 2" in answers[line][1]
        recipe = (projects.folder / at / kind / "recipe.yaml").read_text(encoding="utf-8")
        assert f"{kind}:\n  name: {name_of(kind)}\n" in recipe
    assert (projects.folder / at / "drawn" / "000.png").is_file()
    shown = "".join(text for _, text in answers.values())
    assert "colourfulness" in shown
    assert re.search(
        r"retrieved 1: disc-red-\S+ \(1\.000\) 'a (small|large) red disc'|retrieved 1: disc-red-",
        shown,
    )
    assert "large.png: 256 x 256 pixels of 64 x 64, by own-upscaler" in shown
    assert "bank: 126 documents" in shown


def test_ruff_finds_nothing(projects: Projects) -> None:
    """By each project's own settings, and by more rules than these ask for."""
    pytest.importorskip(
        "ruff", reason="ruff comes with the extra dev, which a user's test run need not have"
    )
    for rules in ([], ["--extend-select", "E,F,W,I,B,UP,SIM,RUF,C4,PTH,NPY,PT"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", "check", "--no-cache", *rules, *projects.folders()],
            cwd=projects.folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


def test_mypy_finds_nothing(projects: Projects, mypy: list[str]) -> None:
    """Strict, all kinds in one run."""
    folders = [
        str(path)
        for name in projects.folders()
        for path in sorted((projects.folder / name).iterdir())
        if path.is_dir() and (path.name == "tests" or path.name.startswith("cm3_"))
    ]
    assert len(folders) == 2 * len(WRITTEN)
    done = subprocess.run([*mypy, *folders], cwd=projects.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
