"""`cm3 completion`: the scripts, tried in the shells that are there (bash always is; zsh and fish
where they are installed)."""

from __future__ import annotations

import logging
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cm3apps.cli.completion import SHELLS, actions_of, script, values_of, whole_parser
from cm3apps.cli.main import main
from cm3core.plugins import load_registry
from messages import tells

REGISTRY = load_registry()
#: What is typed, and what it becomes.
COMPLETED = {
    "cm3 gener": "cm3 generate ",
    "cm3 recipe che": "cm3 recipe check ",
    "cm3 bench kern": "cm3 bench kernels ",  # a plugin's command
    "cm3 recipe check quicks": "cm3 recipe check quickstart ",
    "cm3 generate --see": "cm3 generate --seed ",
    "cm3 generate x --rerank pm": "cm3 generate x --rerank pmi ",
    "cm3 bench kernels --device cu": "cm3 bench kernels --device cuda ",
    "cm3 train tiny sampler=to": "cm3 train tiny sampler=top_p ",
    "cm3 train tiny sampler=top_p objective=ca": "cm3 train tiny sampler=top_p objective=causal ",
    "cm3 train tiny decoder.num_l": "cm3 train tiny decoder.num_layers=",
    "cm3 train tiny --out ./pict": "cm3 train tiny --out ./pictures/",
    "cm3 describe embedder/cl": "cm3 describe embedder/clip ",
    "cm3 plugin check bundled-": "cm3 plugin check bundled-apps ",
    "cm3 completion fi": "cm3 completion fish ",
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of a shell's script, in a folder with another folder called `pictures`."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "pictures").mkdir()

    def written(shell: str) -> Path:
        path = folder / f"cm3.{shell}"
        if not path.exists():
            path.write_text(script(shell, REGISTRY), encoding="utf-8")
        return path

    return written


def test_bash_completes(scripts: Callable[[str], Path]) -> None:
    """The function that bash calls, with the words as bash breaks them (at `=` too)."""
    path = scripts("bash")
    lines = [
        f"source {path}",
        'compopt() { [[ "$*" == *nospace* ]] && space=""; :; }',
        'try() { local typed="$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); space=\' \'; _cm3_complete;',
        '  echo "$typed|${COMPREPLY[*]}|$space|"; }',
    ]
    for typed in COMPLETED:
        words = typed.replace("=", " = ").split()
        lines.append(f"try {' '.join(map(repr, [typed, *words]))}")
    done = subprocess.run(
        ["bash", "--norc"], input="\n".join(lines), capture_output=True, text=True, cwd=path.parent
    )
    assert done.stderr == ""
    completed = {}
    for line in done.stdout.splitlines():
        typed, replies, space, _ = line.split("|")
        assert " " not in replies, f"{typed}: {replies}"
        front = typed[: max(typed.rfind(" "), typed.rfind("=")) + 1]
        slash = "/" if replies.endswith("pictures") else space  # what `-o filenames` does
        completed[typed] = front + replies + slash
    assert completed == COMPLETED


def test_all_that_begins_so_is_offered(scripts: Callable[[str], Path]) -> None:
    path = scripts("bash")
    offers = (
        f"source {path}; compopt() {{ :; }}; COMP_WORDS=(cm3 train tiny sampler =); "
        "COMP_CWORD=4; _cm3_complete; "
        "echo ${COMPREPLY[*]}; COMP_WORDS=(cm3 train tiny sa); COMP_CWORD=3; _cm3_complete; echo "
        "${COMPREPLY[*]}; "
        "COMP_WORDS=(cm3 plugin ''); COMP_CWORD=2; _cm3_complete; echo ${COMPREPLY[*]}"
    )
    done = subprocess.run(["bash", "--norc", "-c", offers], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        " ".join(REGISTRY.names("sampler")),
        "sampler= sampler.",
        "list new check",
    ]


class Terminal:
    """An interactive shell at a terminal."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.process, self.descriptor = pty.fork()
        if self.process == 0:
            os.chdir(folder)
            os.execvpe(
                command[0],
                command,
                {**os.environ, "TERM": "dumb", "PS1": "$ ", "HISTFILE": "", "HOME": str(folder)},
            )

    def type(self, text: str, until: str, seconds: float = 30.0) -> str:
        """Send keys, and read until the terminal shows `until`."""
        os.write(self.descriptor, text.encode())
        shown, end = "", time.monotonic() + seconds
        while until not in shown and time.monotonic() < end:
            if select.select([self.descriptor], [], [], 0.1)[0]:
                shown += os.read(self.descriptor, 65536).decode(errors="replace")
        assert until in shown, shown
        return shown

    def close(self) -> None:
        os.close(self.descriptor)
        os.waitpid(self.process, 0)


def typed_at_a_terminal(
    command: list[str], setup: str, typed: str, expected: str, folder: Path
) -> None:
    """Tab after `typed` makes it `expected`: the line is turned into an argument of `echo`, which
    shows it."""
    terminal = Terminal(command, folder)
    try:
        terminal.type(f"{setup}; echo rea''dy\n", "\nready")
        terminal.type(f"{typed}\t", expected.strip()[len(typed) :])
        terminal.type('\x01echo "<\x05>"\n', f"\n<{expected}>")
    finally:
        terminal.close()


def test_a_tab_in_bash(scripts: Callable[[str], Path]) -> None:
    path = scripts("bash")
    typed_at_a_terminal(
        ["bash", "--norc", "-i"],
        f"source {path}",
        "cm3 train tiny sampler=to",
        "cm3 train tiny sampler=top_p ",
        path.parent,
    )


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
@pytest.mark.parametrize(
    "typed",
    ["cm3 train tiny sampler=top_p objective=ca", "cm3 generate --see", "cm3 describe embedder/cl"],
)
def test_a_tab_in_zsh(typed: str, scripts: Callable[[str], Path]) -> None:
    path = scripts("zsh")
    setup = f"autoload -Uz compinit; compinit -u -D; source {path}; compdef _shtab_cm3 cm3"
    typed_at_a_terminal(["zsh", "-f", "-i"], setup, typed, COMPLETED[typed].rstrip(), path.parent)


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
def test_fish_completes(scripts: Callable[[str], Path]) -> None:
    path = scripts("fish")
    lines = [f"source {path}", *(f"echo (complete -C {typed!r})" for typed in COMPLETED)]
    done = subprocess.run(
        ["fish", "-N", "-c", "\n".join(lines)], capture_output=True, text=True, cwd=path.parent
    )
    offered = [line.partition("\t")[0] for line in done.stdout.splitlines()]
    assert offered == [completed.rstrip().rpartition(" ")[2] for completed in COMPLETED.values()]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_option_and_name_is_in_the_script(
    shell: str, scripts: Callable[[str], Path]
) -> None:
    text = scripts(shell).read_text(encoding="utf-8")
    actions = list(actions_of(whole_parser(REGISTRY)))
    assert {command for command, _ in actions} >= {
        "train",
        "recipe check",
        "quickstart",
        "bench kernels",
        "plugin check",
    }
    options = {name.lstrip("-") for _, action in actions for name in action.option_strings}
    names = {
        name for kind in ("sampler", "dataset", "attention") for name in REGISTRY.names(kind)
    } | {"quickstart", "cm3leon-7b"}
    assert [name for name in options | names if name not in text] == []
    assert "$(cm3" not in text  # no press of Tab starts Python
    assert "python" not in text.lower()


def test_what_takes_files_or_names_says_so() -> None:
    """Each argument whose metavar speaks of a file or a folder completes files."""
    actions = [
        (command, action)
        for command, action in actions_of(whole_parser(REGISTRY))
        if any(word in str(action.metavar) for word in ("FILE", "FOLDER", "BANK"))
    ]
    assert len(actions) > 20
    values = {
        (command, action.dest): values_of(command, action, REGISTRY) for command, action in actions
    }
    assert [place for place, value in values.items() if value is None or not value.files] == []


def test_a_command_that_cannot_be_set_up_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        """\
from cm3core.hookspecs import hookimpl
CM3_API = 1

def add(parser):
    parser.add_argument("--loudness")

@hookimpl
def cm3_commands():
    return {"sing": "cm3_plugin_file_mine:add", "broken": "no_such_module:f"}
""",
        encoding="utf-8",
    )
    with caplog.at_level(logging.WARNING, "cm3apps.cli.completion"):
        text = script("bash", load_registry([path]))
    assert "_shtab_cm3_sing_option_strings=(-h --help --loudness)" in text
    assert "_shtab_cm3_broken" not in text
    (record,) = caplog.records
    assert tells(record.getMessage(), "the command 'broken' is left out: command 'broken': the")


def test_without_shtab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert tells(capsys.readouterr().err, "error: cm3 completion: the package 'shtab'")


def test_another_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert tells(
        capsys.readouterr().err, "error: cm3 completion: argument shell: invalid ... 'tcsh'"
    )


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys\nfrom cm3apps.cli.main import main\nassert main(['completion', 'bash']) == 0\n"
        "print(*{'torch', 'faiss', 'tokenizers', 'PIL'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, "")
