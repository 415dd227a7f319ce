"""How a process of `cm3` ends that is one of several: with its code, after exit handlers, without finalizing Python."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

PROGRAM = """
import atexit
import sys
import torch.distributed
from cm3apps.cli import main

class Last:
    def __del__(self):
        print("finalized")

def run(arguments, interrupts):
    atexit.register(print, "handled")
    return int(arguments[0])

last, main._main = Last(), run
main.entry()
"""


def ended(program: str, code: int, processes: str | None) -> subprocess.CompletedProcess[str]:
    """A run of the program in a process of so many; None: no launcher says."""
    environment = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"}
    environment["PYTHONPATH"] = os.pathsep.join(path or "." for path in sys.path)
    if processes is not None:
        environment["WORLD_SIZE"] = processes
    command = [sys.executable, "-c", program, str(code)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env=environment
    )


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "code"), [(None, 0), ("1", 2), ("2", 130), ("2", 0)])
def test_one_of_several_ends_without_finalizing_python(processes: str | None, code: int) -> None:
    done = ended(PROGRAM, code, processes)
    assert (done.returncode, done.stderr) == (code, "")
    # a thread of gloo that needs Python after this point aborts the process
    assert done.stdout.split() == ["handled", *(["finalized"] if processes != "2" else [])]


@pytest.mark.slow
def test_an_exit_code_survives_a_closed_stream() -> None:
    program = PROGRAM.replace("return int", "sys.stderr.close()\n    return int")
    done = ended(program, 0, "2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "handled\n", "")


INTERRUPTED = """
import threading, time
from cm3apps.cli import main

def run(arguments):
    threading.Thread(target=time.sleep, args=(60,)).start()
    raise KeyboardInterrupt

main._run = run
main.entry()
"""


@pytest.mark.slow
def test_after_ctrl_c_no_thread_keeps_the_process() -> None:
    """A server's thread that builds an index, or waits for one, can't be told to stop."""
    start = time.monotonic()
    done = ended(INTERRUPTED, 0, None)
    assert done.returncode == 130
    assert done.stderr == "interrupted; the same command resumes where it can\n"
    assert time.monotonic() - start < 40
