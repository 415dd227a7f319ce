"""Arguments that no reader of the manual would give end in a clear error, never in a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cm3apps.cli.infill import parse_box
from cm3apps.cli.main import main, override_hint
from cm3core.errors import CM3Error, GenerationError
from cm3run.model.candidates import GenerationOptions

DIGITS = "9" * 5000
LONG = "n" * 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipe", "show", LONG], "no shipped recipe is called"),
        (["recipe", "show", f"{LONG}.yaml"], "can't be used (File name too long)"),
        (["train", "tiny", "-o", LONG], "can't be used (File name too long)"),
        (["generate", "x", "--model", LONG], "can't be used (File name too long)"),
        (["caption", LONG], "can't be used (File name too long)"),
        (["recipe", "check", "tiny", f"train.steps={DIGITS}"], "more than 300 digits"),
        (["recipe", "check", "tiny", f"train.steps=0x{DIGITS}"], "train.steps: is a number of"),
        (["recipe", "check", "tiny", f"train.betas=[0x{DIGITS}, 1]"], "train.betas: is a number"),
        (["recipe", "check", "tiny", "train.steps=!!int x"], "the value can't be read"),
        (["recipe", "check", "tiny", "train.pack=!!bool x"], "does not match its YAML tag"),
        (["recipe", "check", "tiny", "data.cache_dir=\udcff\udcfe"], "it is not valid UTF-8"),
        (["recipe", "check", "~nouser/x.yaml"], "'~nouser' has no known home folder"),
        (["recipe", "check", "digits.yaml"], "digits.yaml: has a value that can't be read"),
        (["recipe", "check", "hex.yaml"], "hex.yaml: train.steps: is a number of more than 300"),
        (["recipe", "check", "key.yaml"], "key.yaml: is a number of more than 300"),
        (["recipe", "check", "home.yaml"], "home.yaml: extends: '~nouser' has no known"),
        (["generate", "x", "--set", f"sampler.top_k=0x{DIGITS}"], "is a number of more than 300"),
        (["infill", "x.png", "--box=--5,0,1,1"], "is not four whole numbers"),
        (["infill", "x.png", f"--box={DIGITS},0,1,1"], "is not four whole numbers"),
    ],
)
def test_refused_with_a_reason(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits.yaml").write_text(f"train: {{steps: {DIGITS}}}\n")
    Path("hex.yaml").write_text(f"train: {{steps: 0x{DIGITS}}}\n")
    Path("key.yaml").write_text(f"0x{DIGITS[:1000]}: 1\n")
    Path("home.yaml").write_text("extends: ~nouser/x\n")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert len(error) < 2000  # all recipes are named, the argument is not


def test_boxes() -> None:
    assert parse_box("-8, 0,40 ,41") == (-8, 0, 40, 41)
    for text in ("1,2,3", "1,2,3,4,5", "1.5,0,1,1", "a,0,1,1", "\u0663,0,1,1", "--1,0,1,1", ",,,"):
        with pytest.raises(GenerationError, match="is not four whole numbers"):
            parse_box(text)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("seed", "x"),
        ("seed", True),
        ("seed", None),
        ("seed", 1.5),
        ("num_retrieved", "x"),
        ("num_candidates", 1.5),
        ("num_candidates", False),
        ("reranker", 3),
        ("sampler", True),
    ],
)
def test_options_of_a_wrong_type(option: str, value: object) -> None:
    """`cm3 generate --vary seed=x` gives them."""
    with pytest.raises(GenerationError, match=f"{option}: is {value!r}, must be"):
        GenerationOptions.of({option: value})


def test_options_of_the_right_type() -> None:
    given = {"seed": 2**63 - 1, "num_retrieved": None, "num_candidates": 2, "sampler": "cfg"}
    assert GenerationOptions.of(given).num_candidates == 2


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["train", "tiny", "--warmup-steps", "30"], "train.warmup_steps=30"),
        (["train", "tiny", "--seed=5"], "train.seed=5"),
        (["train", "tiny", "--train.steps", "4"], "train.steps=4"),
        (["train", "tiny", "--sampler", "cfg"], "sampler=cfg"),
        (["train", "tiny", "--dataset.path", "x"], "dataset.path=x"),
        (["train", "tiny", "--warmup-steps"], "train.warmup_steps=..."),
        (["recipe", "show", "tiny", "--batch-rows", "2"], "train.batch_rows=2"),
    ],
)
def test_a_key_given_as_an_option(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.endswith(
        f"  next: a recipe's key is given without dashes: {hint}\n"
    )


def test_an_option_that_is_no_key() -> None:
    assert override_hint("--foo", ["--foo"]) is None
    assert override_hint("--train.nothing", ["--train.nothing"]) is None


def run(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own, with some environment variables changed."""
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | variables,
        check=False,
        encoding="ascii",
    )


ENTRY = "from cm3apps.cli.main import entry\nentry()"


@pytest.mark.slow
def test_a_terminal_that_knows_only_ascii() -> None:
    script = (
        "from cm3apps.cli._process import prepare_output\nprepare_output()\n"
        "import sys\nfrom cm3apps.cli._model import show_retrieved\n"
        "from cm3run.model.results import RetrievedDocument\nimport numpy as np\n"
        "show_retrieved([RetrievedDocument(id='\\xe4pfel/1', text='\\xe4 red \\U0001f34e', "
        "score=0.5, pixels=np.zeros((1, 1, 3), np.uint8))])"
    )
    for variables in (
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ):
        done = run(script, **variables)
        assert done.returncode == 0, done.stderr
        assert "retrieved 1: \\xe4pfel/1 (0.500)" in done.stdout


INTERRUPTED = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(10**6): pass
except KeyboardInterrupt:
    ERROR
"""


@pytest.mark.parametrize("error", ["raise", "raise ImportError('a C extension failed to load')"])
def test_ctrl_c_during_imports(error: str, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(INTERRUPTED.replace("ERROR", error))
    done = run(ENTRY, "--plugin", str(plugin), "kinds")
    assert done.returncode == 130
    assert done.stderr == "interrupted; the same command resumes where it can\n"


def test_a_cache_folder_that_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cm3core.files import cache_directory

    (tmp_path / "file").touch()
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "file"))
    with pytest.raises(CM3Error, match=r"CM3_CACHE: is .*file, not a folder"):
        cache_directory()
    monkeypatch.setenv("CM3_CACHE", "~nouser/x")
    with pytest.raises(CM3Error, match="CM3_CACHE: '~nouser' has no known home folder"):
        cache_directory()
