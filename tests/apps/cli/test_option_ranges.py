"""Every option that is a number has a range, checked with the arguments."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from cm3apps.cli import NumberRange, real_number, whole_number
from cm3apps.cli.completion import whole_parser
from cm3apps.cli.main import main
from cm3core.plugins import load_registry


def options(
    parser: argparse.ArgumentParser, path: str
) -> Iterator[tuple[str, argparse.Action, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from options(inner, f"{path} {name}")
        else:
            yield f"{path} {(*action.option_strings, action.dest)[0]}", action, parser


def test_every_number_on_the_command_line_has_a_range() -> None:
    found = list(options(whole_parser(load_registry()), "cm3"))
    assert [place for place, action, _ in found if action.type in (int, float, complex)] == []
    defaults = [
        place
        for place, action, _ in found
        if isinstance(action.default, (int, float))
        and not isinstance(action.default, bool)
        and not isinstance(action.type, NumberRange)
        and action.nargs != 0
    ]
    assert defaults == []
    ranged = [action for _, action, _ in found if isinstance(action.type, NumberRange)]
    assert len(ranged) > 25
    for action in ranged:
        number = action.type
        assert isinstance(number, NumberRange)
        assert number.least >= 0
        assert number.most < 2**63
        given = action.default if isinstance(action.default, list) else [action.default]
        assert all(value is None or number(str(value)) == value for value in given)


@pytest.mark.parametrize("text", ["-1", "0", "4097", "1.5", "x", "", "nan", "1e3", "9" * 5000])
def test_a_whole_number_out_of_range(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        whole_number(1, 4096)(text)
    assert "must be a whole number from 1 to 4,096" in str(caught.value)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("text", ["-1", "0", "61", "x", "nan", "inf", "-inf", "9" * 5000])
def test_a_number_out_of_range(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="a number more than 0 and at most 60"):
        real_number(0, 60, above=True)(text)


def test_numbers_in_range() -> None:
    assert whole_number(1, 4096)("4096") == 4096
    assert real_number(0, 60)("0") == 0
    assert real_number(0, 60, above=True)("0.5") == 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "x", "--threads", "100000000"],
        ["generate", "x", "--seed", "-1"],
        ["generate", "x", "--n", "0"],
        ["generate", "x", "--num-retrieved", "-1"],
        ["caption", "x.png", "--max-tokens", "99999999999"],
        ["tokenizer", "train-text", "x", "-o", "y", "--vocab-size", "100000000000000000000"],
        ["quickstart", "--minutes", "inf"],
        ["bench", "kernels", "--threads", "100000000"],
    ],
)
def test_a_command_refuses_it_before_it_starts(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f"is {arguments[-1]!r}, must be a" in error
