"""SIGKILL at random moments to every command that writes: what is there stays readable, and the command
repeated ends as if nothing had happened. `kill.py` has more kills."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuzzing.argument_cases import leaves
from fuzzing.prepared import Done, Prepared, alone
from fuzzing.writers import QUICK, READERS, REST, SLOW, TESTED_ELSEWHERE, WRITERS

HERE = Path(__file__).parent


def kill(
    run: Callable[..., Done], tmp_path: Path, seed: int, kills: int, commands: tuple[str, ...]
) -> list[dict[str, Any]]:
    """What `kill.py` reports of each command."""
    report = tmp_path / "report.json"
    arguments = [one for name in commands for one in ("--command", name)]
    options = ("--seed", str(seed), "--kills", str(kills), "--report", str(report))
    done = run(HERE / "kill.py", *options, *arguments, tmp=tmp_path, seconds=1200)
    assert report.exists(), done.stdout + done.stderr
    found: list[dict[str, Any]] = json.loads(report.read_text())
    return found


def check(found: list[dict[str, Any]], commands: tuple[str, ...]) -> None:
    assert [one["command"] for one in found] == list(commands)
    assert {one["command"]: one["wrong"] for one in found if one["wrong"]} == {}
    assert {one["command"]: one["litter"] for one in found if one["litter"]} == {}
    assert sum(len(one["kills"]) for one in found) >= len(found), found


def test_every_command_that_writes_is_killed() -> None:
    """A new command, or action of one, must be entered in `fuzzing.writers`."""
    assert {*WRITERS, *READERS, *TESTED_ELSEWHERE} == set(leaves())
    assert not set(WRITERS) & READERS
    root = Path(__file__).parents[2]
    assert all((root / file).is_file() for file in TESTED_ELSEWHERE.values())
    for name, parser in leaves().items():
        options = {one for action in parser._actions for one in action.option_strings}
        if options & {"--out", "--folder"}:
            assert name in {*WRITERS, *TESTED_ELSEWHERE}, (
                f"cm3 {name} has an option for what it writes"
            )


@pytest.mark.slow
def test_kills_lose_nothing(prepared: Prepared, tmp_path: Path) -> None:
    check(kill(prepared.run, tmp_path, 1, 2, QUICK), QUICK)


@pytest.mark.slow
def test_kills_of_other_commands_lose_nothing(tmp_path: Path) -> None:
    check(kill(alone, tmp_path, 2, 2, REST), REST)


@pytest.mark.extended
def test_kills_of_long_commands_lose_nothing(prepared: Prepared, tmp_path: Path) -> None:
    check(kill(prepared.run, tmp_path, 3, 1, SLOW), SLOW)


@pytest.mark.extended
def test_more_kills_of_long_commands_lose_nothing(prepared: Prepared, tmp_path: Path) -> None:
    check(kill(prepared.run, tmp_path, 4, 3, SLOW), SLOW)


PROGRAM = """
import json, random
from pathlib import Path
import cm3apps.cli.main
from fuzzing.killing import disturb
from fuzzing.writers import Writer

class Second(random.Random):
    # kills before the second change of a file

    def random(self):
        return 0.0

    def randint(self, first, last):
        return 2

class Late(random.Random):
    # kills long after the end

    def random(self):
        return 1.0

    def uniform(self, first, last):
        return 30.0

def careless(arguments):
    out = Path("out.json")
    before = out.exists()
    if before and "strict" in arguments:
        print("error: there is something\\n  next: remove it")
        return 2
    with out.open("w") as file:
        file.write("[1,")
        file.flush()
        Path("second").mkdir(exist_ok=True)
        file.write(" 3]" if before and "other" in arguments else " 2]")
    return 0

cm3apps.cli.main.main = careless
result = {{}}
for name in ("careless", "strict", "other"):
    root = Path({root!r}) / name
    found = disturb(name, Writer((name,), same=("out.json",)), root, root, Second(), 1)
    result[name] = found.wrong
root = Path({root!r}) / "late"
result["late"] = disturb("late", Writer(("late",)), root, root, Late(), 2).kills
print(json.dumps(result))
"""


@pytest.mark.slow
def test_what_a_kill_damages_is_found(prepared: Prepared, tmp_path: Path) -> None:
    """A command that writes in place, one that can't be repeated, and one that ends otherwise."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(root=str(tmp_path)))
    done = prepared.run(program, tmp=tmp_path, seconds=120)
    assert done.code == 0, done.stderr
    wrong = json.loads(done.stdout)
    moment = "at change 2 of 2"
    damage = f"killed {moment}: out.json is damaged: JSONDecodeError: Expecting value: line 1 column 4 (char 3)"
    assert wrong["careless"] == [damage]
    said = "error: there is something\n  next: remove it\n"
    assert wrong["strict"] == [
        damage,
        f"again, after kills {moment}: it ends with 2: {said}",
        "out.json differs from an undisturbed run",
    ]
    assert wrong["other"] == [damage, "out.json differs from an undisturbed run"]
    assert len(wrong["late"]) == 2, "a time after the end of a command kills earlier"
