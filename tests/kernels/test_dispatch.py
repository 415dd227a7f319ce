"""Which implementation runs: one given by name or none, and by default the first that can, which is
logged once."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from cm3kernels import dispatch
from cm3kernels._host import require
from cm3kernels.dispatch import Implementation, choose
from messages import tells


def refuse_wide(tensor: Tensor) -> str | None:
    return "the tensor is wide; next: cut it" if tensor.numel() > 3 else None


def gpu() -> str:
    return "gpu"


def fast() -> str:
    return "fast"


def plain() -> str:
    return "plain"


AVAILABLE = {
    "gpu": Implementation(lambda: gpu, automatic_on=("cuda",)),
    "fast": Implementation(lambda: fast, refuse_wide),
    "plain": Implementation(lambda: plain),
}


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_said", set())


def test_auto_takes_the_first_that_can_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="cm3kernels")
    for _ in range(2):
        assert choose("op", "auto", AVAILABLE, torch.zeros(3)) is fast
    assert choose("op", "auto", AVAILABLE, torch.zeros(4)) is plain
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "op: 'fast' runs on cpu"),
        ("WARNING", "op: 'plain' runs on cpu; 'fast' can't: the tensor is wide; next: cut it"),
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fast", "op: implementation 'fast' can't"),
        (
            "slow",
            "op: implementation 'slow' is ... 'auto'",
        ),
    ],
)
def test_a_name_is_taken_at_its_word(name: str, message: str) -> None:
    assert choose("op", "gpu", AVAILABLE, torch.zeros(3)) is gpu
    with pytest.raises(ValueError) as caught:
        choose("op", name, AVAILABLE, torch.zeros(4))
    assert tells(caught.value, message)


def test_none_that_can_is_told_with_every_reason() -> None:
    with pytest.raises(ValueError) as caught:
        choose("op", "auto", {"fast": AVAILABLE["fast"]}, torch.zeros(4))
    assert tells(caught.value, "op: no implementation supports this tensor\n  cause")


def test_a_text_is_made_when_it_is_needed() -> None:
    def never() -> str:
        raise AssertionError

    require(True, "op", never)
    with pytest.raises(ValueError, match=r"^op: n is 3$"):
        require(False, "op", lambda: "n is 3")
