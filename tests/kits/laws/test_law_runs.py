"""How a law's test runs: with the global generators perturbed between calls, for a limited time,
and with assertions that show values."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st

from cm3kits import _laws
from cm3kits._laws import Contract
from profiles import chosen

#: Each global generator, read without advancing it.
PEEKS: dict[str, Callable[[], object]] = {
    "random": random.getstate,
    "numpy": lambda: np.random.get_state()[1].tolist(),  # type: ignore[index]  # noqa: NPY002  # on purpose
    "torch": lambda: torch.random.get_rng_state().tolist(),
    "torch's seed": torch.initial_seed,
}


class PeekContract(Contract[Callable[[], object]]):
    """Calls are equal, as the laws of many kits demand."""

    kind = "peek"

    def law_calls_are_equal(self, data: st.DataObject) -> None:
        data.draw(st.booleans())
        assert self.subject() == self.subject()

    def law_calls_are_equal_once(self) -> None:
        assert self.subject() == self.subject()

    def law_instances_are_equal(self) -> None:
        assert self.subject() == self.make_again()()


@pytest.mark.parametrize("generator", PEEKS)
@pytest.mark.parametrize("law", sorted(set(PeekContract.laws()) - set(Contract.laws())))
def test_what_reads_a_global_generator_is_found(law: str, generator: str) -> None:
    contract = type("TestPeek", (PeekContract,), {"make": lambda self: PEEKS[generator]})
    with pytest.raises(AssertionError):
        getattr(contract(), f"test_{law}")()


def test_an_instance_that_keeps_what_it_read_is_found() -> None:
    """It is equal in every call, and another in every program."""

    def made(self: object) -> Callable[[], object]:
        kept = random.getstate()
        return lambda: kept

    contract = type("TestKept", (PeekContract,), {"make": made})
    contract().test_calls_are_equal()
    with pytest.raises(AssertionError):
        contract().test_instances_are_equal()


@pytest.mark.parametrize("law", PeekContract.laws())
def test_the_generators_are_left_as_they_were(law: str) -> None:
    contract = type("TestRight", (PeekContract,), {"make": lambda self: lambda: 0})
    before = [peek() for peek in PEEKS.values()]
    getattr(contract(), f"test_{law}")()
    assert [peek() for peek in PEEKS.values()] == before


class SlowContract(Contract[int]):
    """Laws that fail, and whose examples take long to shrink."""

    kind = "slow"
    num_examples = 0

    def _fail(self, data: st.DataObject) -> None:
        numbers = data.draw(st.lists(st.integers(0, 1000), min_size=8, max_size=8))
        type(self).num_examples += 1
        time.sleep(0.01)
        assert sum(numbers) < 700 + self.subject, numbers

    def law_first(self, data: st.DataObject) -> None:
        self._fail(data)

    def law_second(self, data: st.DataObject) -> None:
        self._fail(data)


@pytest.fixture
def profile() -> Iterator[None]:
    """Hypothesis without a database of what failed before."""
    settings.register_profile("fresh", deadline=None, database=None, derandomize=True)
    settings.load_profile("fresh")
    yield
    settings.load_profile(chosen())


def test_shrinking_ends(monkeypatch: pytest.MonkeyPatch, profile: None) -> None:
    monkeypatch.setattr(_laws, "SECONDS_PER_LAW", 0.3)
    monkeypatch.setattr(_laws, "SECONDS_PER_CLASS", 0.3)
    monkeypatch.setattr(_laws, "LEAST_SECONDS", 0.05)
    contract = type("TestSlow", (SlowContract,), {"make": lambda self: 0})
    counts = []
    for law in ("first", "second"):
        SlowContract.num_examples = contract.num_examples = 0
        with pytest.raises(AssertionError):  # of an example that fails
            getattr(contract(), f"test_{law}")()
        counts.append(contract.num_examples)
    # at 10 ms an example; the first law leaves no time for the second
    assert 1 < counts[0] < 60
    assert counts[1] < 30


def test_a_law_fails_again_after_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch, profile: None
) -> None:
    monkeypatch.setattr(_laws, "SECONDS_PER_LAW", 0.0)
    monkeypatch.setattr(_laws, "LEAST_SECONDS", 0.0)
    test = type("TestSlow", (SlowContract,), {"make": lambda self: 0})()
    for _ in range(3):
        with pytest.raises(AssertionError):
            test.test_first()  # type: ignore[attr-defined]  # of a class made here


def test_shrinking_may_be_off(profile: None) -> None:
    settings.register_profile("unshrunk", settings(), phases=[Phase.generate])
    settings.load_profile("unshrunk")
    contract = type("TestSlow", (SlowContract,), {"make": lambda self: 0})
    with pytest.raises(AssertionError):
        contract().test_first()  # type: ignore[attr-defined]  # of a class made here


FAILING = """
from cm3kits.text_tokenizer import TextTokenizerContract
from cm3plugins.text_tokenizers.byte import ByteTokenizer, ByteTokenizerConfig

class Short(ByteTokenizer):
    vocab_size = 100
    fingerprint = ""

class TestShort(TextTokenizerContract):
    config = ByteTokenizerConfig()

    def make(self):
        return Short()
"""


def test_a_failed_assertion_shows_values(tmp_path: Path) -> None:
    (tmp_path / "test_short.py").write_text(FAILING, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "equal_makes", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    told = re.findall(r"^E   (?:    )?(.*)$", done.stdout, re.MULTILINE)
    assert told[0].endswith("LawBroken: looked at its fingerprint")
    assert [line.strip() for line in told[1:8]] == [
        "expected: a text",
        "got: ''",
        "law: equal_makes_are_equal: Equal configs and texts give the same non-empty fingerprint, size and ids.",
        "next: correct the component; if the law can't apply to it, define waive_equal_makes_are_equal(self), "
        "which returns the reason",
        "tested: ByteTokenizerConfig",
        "text_tokenizer: {}",
    ]
    assert "object at 0x" not in "\n".join(told)
