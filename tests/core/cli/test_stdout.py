"""While plugins are described, stdout goes to stderr, for children too; afterwards it is back."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cm3core.cli._stdout import stdout_to_stderr


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
        "from cm3core.cli._stdout import stdout_to_stderr",
        "os.close(1)",
        "with stdout_to_stderr():",
        "    print('meanwhile')",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "meanwhile\n")
