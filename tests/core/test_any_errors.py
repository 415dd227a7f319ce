"""Errors of any kind, told and contained."""

from __future__ import annotations

import asyncio
import threading

import pytest

from cm3core.errors import CM3Error, GenerationError
from cm3run.faults import contained, parts_of, told


class Deaf(Exception):
    def __str__(self):
        raise RecursionError("deep")


class Empty(CM3Error):
    def __init__(self):
        Exception.__init__(self, "no place")


def test_any_error_has_words():
    assert told(ValueError("a b")) == "ValueError: a b"
    assert told(SystemExit()) == "SystemExit"
    assert told(Deaf()) == "Deaf (its text can't be read: RecursionError)"
    assert len(told(ValueError("x" * 10**6))) == 4000 + len("ValueError: ")
    assert parts_of(CM3Error("a", "b", "c")) == ("a", "b", "c")
    assert parts_of(Empty()) is None
    assert parts_of(ValueError("a")) is None


@pytest.mark.parametrize(
    "error",
    [SystemExit(0), GeneratorExit(), asyncio.CancelledError(), StopIteration(), TimeoutError()],
)
def test_what_handlers_would_miss_becomes_an_error(error):
    with pytest.raises(GenerationError) as caught, contained("here", TimeoutError):
        raise error
    assert caught.value.place == "here"
    assert caught.value.cause == told(error)
    assert caught.value.__cause__ is error


def test_other_errors_and_a_users_interrupt_pass():
    assert threading.current_thread() is threading.main_thread()
    for error in (KeyError("a"), CM3Error("a", "b", "c"), KeyboardInterrupt(), TimeoutError()):
        with pytest.raises(type(error)) as caught, contained("here"):
            raise error
        assert caught.value is error
