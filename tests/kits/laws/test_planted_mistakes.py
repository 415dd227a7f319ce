"""The kits find the mistakes that authors make, say what they are in words, and let right components pass."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import Phase, settings

from cm3core.errors import CM3Error
from cm3core.plugins import KINDS
from cm3kits._findings import LawBroken
from planted_kinds import MORE_PLANTED, MORE_RIGHT
from planted_mistakes import NOT_FOUND, PLANTED, RIGHT
from planted_promises import PROMISES, RIGHT_PROMISES, Promise

ALL = [*PLANTED, *MORE_PLANTED]


@pytest.fixture(autouse=True, scope="module")
def as_the_check_does() -> Iterator[None]:
    """Examples as those of `cm3 plugin check`, but not shrunk: nobody reads them."""
    before = settings.default
    settings.register_profile("before planted", before)
    settings.register_profile(
        "planted",
        deadline=None,
        max_examples=25,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    settings.load_profile("planted")
    yield
    settings.load_profile("before planted")


def kit(kind: str) -> Any:
    module, _, name = KINDS[kind].kit.partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.slow
@pytest.mark.parametrize("one", PROMISES, ids=lambda one: f"{one.kind}-{one.mistake}")
def test_a_broken_promise_is_found_by_its_law(one: Promise) -> None:
    """The first law that fails is the one that names the cause, and says what is wrong."""
    [(law, text)] = broken_laws(one.kind, one.config).items() or [("", "")]
    assert law == one.law, text
    for word in one.words:
        assert word in text


def test_every_kind_has_broken_promises() -> None:
    assert {one.kind for one in PROMISES} == set(KINDS)
    assert len({(one.kind, one.mistake) for one in PROMISES}) == len(PROMISES) >= 50


def broken_laws(kind: str, config: Any) -> dict[str, str]:
    """The first law that the component breaks -> what it says; of an error that the component itself raises, ""
    instead. Causes come first."""
    base = kit(kind)
    contract = base.for_config(config, max_examples=min(base.max_examples or 12, 12))()
    found: dict[str, str] = {}
    for law in contract.laws():
        try:
            getattr(contract, f"test_{law}")()
        except pytest.skip.Exception:
            continue
        except (LawBroken, CM3Error) as error:
            found[law] = "\n".join([str(error), *getattr(error, "__notes__", [])])
        except Exception:  # of the component: it has no words of ours
            found[law] = ""
        if found:
            break
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "mistake", "config"), ALL, ids=[f"{kind}-{mistake}" for kind, mistake, _ in ALL]
)
def test_a_planted_mistake_is_found_and_told(kind: str, mistake: str, config: Any) -> None:
    found = broken_laws(kind, config)
    if (kind, mistake) in NOT_FOUND:
        assert not found, "it is found after all"
        return
    assert found, "no law finds it"
    for law, text in found.items():
        assert not re.search(
            r"object at 0x|Tensor-likes|Mismatched elements| at 0x[0-9a-f]", text
        ), text
        parts = ("expected: ", "got: ", "law: ", "next: ") if "\n  law: " in text else ("next: ",)
        for part in parts if text else ():
            assert f"\n  {part}" in text, (law, text)


def test_every_kind_has_planted_mistakes_and_almost_all_are_found() -> None:
    assert {kind for kind, _, _ in ALL} == set(KINDS)
    assert len({(kind, mistake) for kind, mistake, _ in ALL}) == len(ALL) >= 100
    assert sum((kind, mistake) in NOT_FOUND for kind, mistake, _ in ALL) <= 3


@pytest.mark.parametrize(
    ("kind", "config_class"),
    [
        (kind, one)
        for kinds in (RIGHT, MORE_RIGHT, RIGHT_PROMISES)
        for kind, many in kinds.items()
        for one in many
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_is_right_passes(kind: str, config_class: Any) -> None:
    contract = kit(kind).for_config(config_class, max_examples=4)()
    for law in contract.laws():
        getattr(contract, f"test_{law}")()
