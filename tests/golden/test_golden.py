"""Golden requests: the net itself finds what changes, everything installed has a request, and what is stored holds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cm3core.plugins.discovery import load_registry
from cm3plugins.samplers.cfg import CFGSamplerConfig
from golden import environment, net
from golden.models import Models
from golden.requests import COVERED, REQUESTS, drawn

HERE = Path(__file__).parent
QUICK = [name for name, request in REQUESTS.items() if request.quick]
#: Components that need what a test can't make, and why.
OUTSIDE = {
    "retriever/pgvector": "a PostgreSQL server: plugins/cm3-postgres/tests compares it with `dense`"
}


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m tests.golden` in a new process."""
    command = [sys.executable, str(HERE / "__main__.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def models() -> Iterator[Models]:
    with net.empty_models() as made:
        yield made


@pytest.fixture(scope="module")
def own(models: Models) -> dict[str, net.Answer]:
    """The answers of the quick requests in this process, as stored."""
    return json.loads(json.dumps({name: REQUESTS[name].run(models) for name in QUICK}))


@pytest.mark.slow
def test_two_processes_agree(own: dict[str, net.Answer], tmp_path: Path) -> None:
    assert {name.partition("/")[0] for name in QUICK} >= {"sampler", "infill", "caption", "train"}
    file = tmp_path / "other.json"
    done = program("--write", "--file", str(file), "--only", *QUICK)
    assert done.returncode == 0, done.stdout + done.stderr
    told, other = net.stored(file)
    assert told == environment.fingerprint() | {"threads": "1"}  # other tests may have set theirs
    assert net.compare(own, other) == ""


@pytest.mark.slow
def test_a_change_is_told_by_name(
    models: Models, own: dict[str, net.Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guidance that is lost, and a request with another seed."""
    lines: list[str] = []
    assert net.check(models, QUICK, own, lines.append) == {}
    assert lines == []
    monkeypatch.setattr(CFGSamplerConfig, "is_guided", lambda _: False)
    different = net.check(models, QUICK, own, lines.append)
    assert list(different) == ["sampler/cfg"]
    assert len(lines) == 1
    assert lines[0].startswith("sampler/cfg: [0].codes: id ")
    monkeypatch.undo()
    seeded = replace(REQUESTS["sampler/top_p"], run=drawn("dense", seed=2))
    monkeypatch.setattr(net, "REQUESTS", {**REQUESTS, "sampler/top_p": seeded})
    assert list(net.check(models, QUICK, own, lines.append)) == ["sampler/top_p"]
    assert lines[1].startswith("sampler/top_p: [0].codes: id 0 is ")


def test_a_failing_request_is_a_difference(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Models) -> None:
        raise OSError("no such thing")

    lines: list[str] = []
    monkeypatch.setattr(
        net, "REQUESTS", {"train/dense": replace(REQUESTS["train/dense"], run=fail)}
    )
    net.check(models, ["train/dense"], {"train/dense": {"losses": [1.0]}}, lines.append)
    assert lines == [
        "train/dense: losses: is missing, was [1.0]; "
        f'error: "OSError at {Path(__file__).name}:{fail.__code__.co_firstlineno + 1}: no such thing", was not there'
    ]


@pytest.mark.parametrize(
    ("expected", "found", "told"),
    [
        ({"a": [1.0, 2.0]}, {"a": [1.0, 2.5]}, "a[1]: 2.5, was 2.0 (2e-01 of it)"),
        ("3 1 4 1", "3 1 5 2", "id 2 is 5, was 4 (2 of 4 differ)"),
        ("3 1", "3 1 4", "3 ids, were 2; the first 2 are equal"),
        ("bell", "bell off", '"bell off", was "bell"'),
        ({"a": 1}, {"b": 1}, "a: is missing, was 1; b: 1, was not there"),
        ([1, 2], [1], "1 items, were 2"),
        ([1, 2, 3, 4], [0, 0, 0, 0], "[0]: 0, was 1; [1]: 0, was 2; [2]: 0, was 3; and 1 more"),
        ({"a": ["x", 1.5]}, {"a": ["x", 1.5]}, ""),
    ],
)
def test_differences_in_words(expected: net.Answer, found: net.Answer, told: str) -> None:
    assert net.compare(expected, found) == told


@pytest.mark.parametrize(
    ("expected", "found", "told"),
    [
        ("8x8x3 0123456789abcdef", "8x8x3 fedcba9876543210", ""),
        ([-426.1406469345093], [-426.1406626701355], ""),
        (2.0, 2.5, "2.5, was 2.0 (2e-01 of it)"),
        ("3 1 4", "3 1 5", "id 2 is 5, was 4 (1 of 3 differ)"),
        ("bell", "bell off", '"bell off", was "bell"'),
    ],
)
def test_last_bits_do_not_count_in_another_environment(
    expected: net.Answer, found: net.Answer, told: str
) -> None:
    assert net.compare(expected, found, exact=False) == told
    assert net.compare(expected, found) != ""


def test_what_is_installed_has_a_request() -> None:
    registry = load_registry()
    installed = {f"{kind}/{name}" for kind in COVERED for name in registry.names(kind)}
    assert set(OUTSIDE) <= installed
    assert installed - set(REQUESTS) - set(OUTSIDE) == set(), "add a request to golden/requests.py"


def test_everything_is_stored() -> None:
    _, answers = net.stored()
    assert set(answers) == {name for name in REQUESTS if net.origin(name) == name}


def test_names_are_matched_by_patterns() -> None:
    assert net.chosen(["window/*"]) == [name for name in REQUESTS if name.startswith("window/")]
    with pytest.raises(ValueError, match="did you mean 'sampler/cfg'"):
        net.chosen(["sampler/cgf"])


def test_a_part_is_not_stored_beside_answers_of_another_environment(tmp_path: Path) -> None:
    file = tmp_path / "golden.json"
    file.write_text(json.dumps({"environment": {"torch": "1.0"}, "answers": {"sampler/cfg": []}}))
    with pytest.raises(ValueError, match="another environment"):
        net.store({"sampler/top_p": []}, file)


@pytest.mark.slow
def test_the_stored_answers_hold(tmp_path: Path) -> None:
    """Where the environment is another one: that every request runs, and equals the ones that it should equal."""
    own = environment.fingerprint() | {"threads": "1"}  # as in the new process
    other = environment.differences(net.stored()[0], own)
    if not other:
        done = program()
        assert done.returncode == 0, done.stdout + done.stderr
        return
    done = program("--write", "--file", str(tmp_path / "own.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    pytest.skip(f"the stored answers are of another environment ({other})")
