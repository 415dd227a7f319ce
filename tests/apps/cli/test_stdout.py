"""While plugins are described, stdout goes to stderr, for children too; afterwards it is back. A stdout that can't be
written is an error of its own."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cm3apps.cli._process import lost_output, stdout_to_stderr
from messages import tells


def print_in_every_way(what: str) -> None:
    print(f"printed {what}")
    sys.__stdout__.write(f"written {what}\n")  # type: ignore[union-attr]  # there is one here
    os.write(1, f"raw {what}\n".encode())
    subprocess.run([sys.executable, "-c", f"print('child {what}')"], check=True)


def test_what_is_printed_meanwhile_is_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    with stdout_to_stderr():
        print_in_every_way("meanwhile")
    print("after")
    out, err = capfd.readouterr()
    assert out == "before\nafter\n"
    assert sorted(err.splitlines()) == [
        f"{way} meanwhile" for way in ("child", "printed", "raw", "written")
    ]


def test_stdout_is_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), stdout_to_stderr():
        raise ValueError("broken")
    subprocess.run([sys.executable, "-c", "print('child')"], check=True)
    assert capfd.readouterr() == ("child\n", "")


def test_a_closed_stdout_is_left_closed() -> None:
    lines = (
        "import os, sys",
        "from cm3apps.cli._process import stdout_to_stderr",
        "os.close(1)",
        "with stdout_to_stderr():",
        "    print('meanwhile')",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "meanwhile\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize(
    ("command", "unbuffered"),
    [
        (["recipe", "list"], ""),
        (["recipe", "list"], "1"),
        (["--help"], ""),
        (["--version"], "1"),
        (["data", "encode", "--help"], ""),
    ],
)
def test_a_stdout_that_is_full(command: list[str], unbuffered: str) -> None:
    """As when it is redirected to a file on a full disk: at once, or when the command is done. argparse prints
    help by itself."""
    with open("/dev/full", "w") as full:  # noqa: PTH123  # a device
        done = subprocess.run(
            [sys.executable, "-m", "cm3apps.cli.main", *command],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={
                **os.environ,
                "PYTHONUNBUFFERED": unbuffered,
                "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
            },
        )
    assert done.returncode == 2
    assert tells(done.stderr, "error: standard output: can't be written (No space left")


def test_another_file_that_is_full_is_not_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    assert lost_output(OSError(errno.ENOSPC, "No space left on device")) is None
    assert lost_output(OSError(errno.ENOSPC, "No space left on device", "a.png")) is None
    assert lost_output(ValueError("another")) is None
    capfd.readouterr()
    print("still there")
    assert capfd.readouterr().out == "still there\n"
