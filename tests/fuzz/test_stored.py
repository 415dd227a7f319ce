"""Any bytes where a stored document is read: it is read, or refused with a message, and nothing hostile gets behind a
reader. `CM3_HYPOTHESIS=nightly` tries 10,000 of each format."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fuzzing.stored import WEAKENED, Format, LawBrokenError, check, formats
from profiles import examples

#: Examples in `ci`, and 75 times as many in `nightly`: 10,050.
EXAMPLES = 134
#: Examples in which the fuzz must find what a weakened reader lets through; it ends with the first, in the mean before
#: 1,500.
PLANTED = 20_000
NAMES = (
    *("token record", "token codes", "token shard", "token manifest", "bank line", "bank manifest"),
    *("checkpoint state", "icon manifest", "icon entries", "icon splits", "icon copies"),
    *("data set lines", "picture facts", "database row", "database metadata", "drawing"),
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Format]]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("stored")
        patch.setenv("CM3_CACHE", str(folder / "cache"))
        yield formats(folder)


def test_every_format_is_named(stored: dict[str, Format]) -> None:
    assert set(stored) == set(NAMES)


def search(one: Format, folder: Path, number: int, *, same: bool = False) -> dict[bool, int]:
    """Check that many contents; return how many were read and how many refused.

    Raises:
        LawBrokenError: one breaks the law.
    """
    counts = {True: 0, False: 0}

    @settings(
        max_examples=number,
        deadline=None,  # `check` has its own
        database=None,
        phases=[Phase.generate] if same else [Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def property_holds(data: st.DataObject) -> None:
        counts[check(one, data.draw(one.contents), folder)] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of strange pictures
        (seed(1)(property_holds) if same else property_holds)()
    return counts


@pytest.mark.parametrize("name", NAMES)
def test_nothing_hostile_gets_behind_a_reader(
    stored: dict[str, Format], tmp_path: Path, name: str
) -> None:
    if name.startswith("database"):
        pytest.importorskip("cm3postgres", reason="needs pip install ./plugins/cm3-postgres")
    counts = search(stored[name], tmp_path, examples(EXAMPLES))
    assert min(counts.values()) > 0, f"all are read, or none: {counts}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weakness", "name"), [(key, name) for key, (_, names) in WEAKENED.items() for name in names]
)
def test_the_fuzz_finds_what_a_weaker_reader_lets_through(
    stored: dict[str, Format],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weakness: str,
    name: str,
) -> None:
    """The control: without one of its checks, each reader breaks the law."""
    if name.startswith("database"):
        pytest.importorskip("cm3postgres", reason="needs pip install ./plugins/cm3-postgres")
    WEAKENED[weakness][0](monkeypatch)
    with pytest.raises(LawBrokenError):
        search(stored[name], tmp_path, PLANTED, same=True)
