"""The fuzzer itself: the same seed gives the same cases, and what breaks a law is found, shown and
made smaller."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzzing import argument_cases, recipe_cases, requests, spoiled_pictures
from fuzzing.annotation_cases import annotations
from fuzzing.case import Case, saved
from fuzzing.data_cases import manifests, tars
from fuzzing.prepared import Prepared

PROGRAM = """
import os, sys
from pathlib import Path
from fuzzing import sandbox
from fuzzing.case import Case
from fuzzing.limits import Limits
from fuzzing.running import smaller

def bad(arguments):
    name = arguments[0]
    if name == "traceback":
        return None, "Traceback (most recent call last):\\n  File 'cm3.py', line 1, in f\\nValueError: x"
    if name == "code":
        return 7, ""
    if name == "unclear":
        print("wrong", file=sys.stderr)
        return 2, ""
    if name == "hang":
        while True: pass
    if name == "signal":
        os.kill(os.getpid(), 11)
    if name == "memory":
        sandbox.kept = bytearray(os.urandom(1 << 20) * 80)
    if name == "outside":
        try: open({outside!r}, "w")
        except PermissionError: pass
    if name == "input":
        Path("in.txt").write_text("other")
    if name == "litter":
        Path(".a.png.abcdefgh").write_text("")
    if name == "temporary":
        (Path(os.environ["TMPDIR"]) / "x").write_text("")
    if name == "disk":
        Path("large").write_bytes(bytes(9 << 20))
    if name == "smaller" and b"Z" in Path("in.txt").read_bytes():
        return 7, ""
    return 0, ""

sandbox._call = bad
root = Path({root!r}); root.mkdir()
box = sandbox.Sandbox(root, Limits(seconds=1.0, memory_bytes=40 << 20, disk_bytes=8 << 20))
for name in sys.argv[1:]:
    result = box.run(Case("x", (name,), {{"in.txt": b"aaaaZaaa", "b.txt": b""}}))
    print(name, result.outcome, "; ".join(result.broken), sep="|")
    if name == "smaller":
        small = smaller(box, Case("x", (name, "more"), {{"in.txt": b"aaaaZaaa", "b.txt": b""}}), result)
        print(small.arguments, dict(small.files))
"""


@pytest.mark.slow
def test_every_law_is_checked(prepared: Prepared, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        PROGRAM.format(outside=str(tmp_path / "elsewhere"), root=str(tmp_path / "root"))
    )
    names = (
        "fine traceback code unclear hang signal memory outside input litter temporary disk smaller"
    )
    done = prepared.run(program, *names.split(), tmp=tmp_path, seconds=120)
    assert done.code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split("|")[:2] for line in lines[:-1]] == [
        ["fine", "0"],
        ["traceback", "traceback"],
        ["code", "7"],
        ["unclear", "2"],
        ["hang", "hang"],
        ["signal", "signal 11"],
        *([name, "0"] for name in ("memory", "outside", "input", "litter", "temporary", "disk")),
        ["smaller", "7"],
    ]
    broken = {name: what for name, _, what in (line.split("|") for line in lines[:-1])}
    assert broken.pop("memory").startswith("its memory grew by ")
    assert broken == {
        "fine": "",
        "traceback": "it ends in a traceback",
        "code": "its exit code is 7",
        "unclear": "its error lacks place, cause or next step",
        "hang": "it hangs",
        "signal": "it died of signal 11",
        "outside": f"opens for writing: {os.path.realpath(tmp_path / 'elsewhere')}",
        "input": "its input 'in.txt' was changed",
        "litter": "it leaves temporary files: ['.a.png.abcdefgh']",
        "temporary": "it leaves in the folder for temporary files: ['x']",
        "disk": "it writes 9 MiB",
        "smaller": "its exit code is 7",
    }
    assert not (tmp_path / "elsewhere").exists()
    assert lines[-1] == "('smaller', 'more') {'in.txt': b'Z'}"


@pytest.mark.parametrize(
    "make",
    [recipe_cases.cases, requests.cases, manifests, annotations, tars, spoiled_pictures.picture],
)
def test_the_same_seed_gives_the_same_case(make: Callable[[random.Random], object]) -> None:
    first, second = ([make(random.Random(f"1 {number}")) for number in range(20)] for _ in range(2))
    assert first == second
    assert len({str(one) for one in first}) > 10


def test_a_saved_case_is_read_again(tmp_path: Path) -> None:
    case = Case(
        "x",
        ("a", "\ud800"),
        {"b/c": b"\xff", "d": b""},
        {"link": "{outside}/x"},
        ("empty",),
        ("pipe",),
        {"run": "run"},
    )
    case.save(tmp_path / "saved")
    assert saved(tmp_path / "saved") == case
    assert json.loads((tmp_path / "saved" / "case.json").read_text())["category"] == "x"


def test_every_command_and_option_is_tried() -> None:
    """Also those of a plugin's commands."""
    names = argument_cases.leaves()
    assert {"train", "memory build", "quickstart", "bench decode", "plugin check"} <= set(names)
    rng = random.Random(1)
    seen: dict[str, set[str]] = {name: set() for name in names}
    for name in names:
        for _ in range(60):
            seen[name] |= set(argument_cases.words(name, rng))
    for name, parser in names.items():
        options = {one for action in parser._actions for one in action.option_strings}
        assert options - {"-h", "--help"} <= seen[name], name
