"""Hypothesis's profiles: which one a run has, and what it changes."""

from __future__ import annotations

import pytest
from hypothesis import settings

from profiles import EXAMPLES, TIMES, VARIABLE, chosen, examples, use_profiles


@pytest.fixture
def profile(monkeypatch: pytest.MonkeyPatch):
    def load(name: str | None) -> settings:
        if name is None:
            monkeypatch.delenv(VARIABLE, raising=False)
        else:
            monkeypatch.setenv(VARIABLE, name)
        use_profiles()
        return settings()

    yield load
    monkeypatch.undo()
    use_profiles()


def test_ci_is_short_and_the_default(profile) -> None:
    for name in (None, "", "ci"):
        now = profile(name)
        assert (now.max_examples, now.print_blob, now.derandomize) == (EXAMPLES, False, False)
        assert examples(25) == 25


def test_nightly_looks_longer_and_prints_what_repeats_a_failure(profile) -> None:
    now = profile("nightly")
    assert now.max_examples == EXAMPLES * TIMES["nightly"] == 600
    assert (now.print_blob, now.derandomize, now.deadline) == (True, False, None)
    assert examples(25) == 25 * 75


def test_any_other_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "nigthly")
    with pytest.raises(
        ValueError, match="CM3_HYPOTHESIS is 'nigthly'; the profiles are ci and nightly"
    ):
        chosen()
