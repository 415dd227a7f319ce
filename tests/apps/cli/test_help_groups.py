"""`--help` of a command with many options: groups by what they do, and a usage of one line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from cm3apps.cli import DEVICE, GROUPS, INPUT, OUTPUT, TRUST, add_device, grouped
from cm3apps.cli.commands import CommandParser
from cm3apps.cli.completion import whole_parser
from cm3core.plugins import load_registry

#: A command with more options has groups.
MOST = 15


def commands(
    parser: argparse.ArgumentParser, path: str = "cm3"
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield path, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from commands(inner, f"{path} {name}")


def options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [one for one in parser._actions if one.option_strings and one.dest != "help"]


@pytest.fixture(scope="module")
def long_commands() -> dict[str, argparse.ArgumentParser]:
    every = commands(whole_parser(load_registry()))
    return {path: parser for path, parser in every if len(options(parser)) > MOST}


def test_every_option_of_a_long_command_is_in_a_group(
    long_commands: dict[str, argparse.ArgumentParser],
) -> None:
    assert {"cm3 generate", "cm3 serve", "cm3 eval run", "cm3 postgres push"} <= set(long_commands)
    ungrouped = [
        f"{path} {(*action.option_strings, action.dest)[0]}"
        for path, parser in long_commands.items()
        for group in (parser._optionals, parser._positionals)
        for action in group._group_actions
        if action.dest != "help"
    ]
    assert ungrouped == []


def test_groups_are_few_and_in_one_order(long_commands: dict[str, argparse.ArgumentParser]) -> None:
    for path, parser in long_commands.items():
        shown = parser.format_help()
        titles = [one.title for one in parser._action_groups if one._group_actions]
        assert 3 < len(titles) <= len(GROUPS) + 1, path
        assert len(titles) == len(set(titles))
        known = [title for title in titles if title in GROUPS]
        assert known == sorted(known, key=GROUPS.index), path
        assert titles[-1] == "options"
        assert [shown.index(f"\n{title}:\n") for title in titles] == sorted(
            shown.index(f"\n{title}:\n") for title in titles
        )


def test_the_usage_of_a_long_command_has_what_must_be_given(
    monkeypatch: pytest.MonkeyPatch, long_commands: dict[str, argparse.ArgumentParser]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    usages = {
        path: " ".join(parser.format_help().split("\n\n")[0].split())
        for path, parser in long_commands.items()
    }
    # completion's parsers are all called cm3; a command's own has its name
    assert usages["cm3 generate"].endswith("[options] prompt [prompt ...]")
    assert usages["cm3 serve"].endswith("[options]")
    assert usages["cm3 infill"].endswith(
        "[options] (--box x0,y0,x1,y1 | --mask FILE | --keep ROWS | --path N) picture"
    )


def test_a_small_parser_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parser = CommandParser(prog="cm3 x")
    grouped(parser, TRUST).add_argument("--trust")
    grouped(parser, "own").add_argument("--own")
    add_device(parser, "where it runs")
    grouped(parser, INPUT).add_argument("picture")
    grouped(parser, OUTPUT).add_argument("-o", help="100%% of it")
    titles = [
        line[:-1]
        for line in parser.format_help().splitlines()
        if line.endswith(":") and line[0] != " "
    ]
    assert titles == [INPUT, "own", OUTPUT, DEVICE, TRUST, "options"]
    assert parser.format_help().startswith("usage: cm3 x [-h] [--trust TRUST]")  # few: all in it
    parser.add_argument("--plain")
    assert "\noptions:\n" in parser.format_help().split("\ninput:\n")[0], "no longer --help alone"
    for number in range(MOST):
        grouped(parser, OUTPUT).add_argument(f"--more-{number}")
    assert parser.format_help().startswith("usage: cm3 x [options] picture\n\n")
    assert parser.usage is None
    assert "100% of it" in parser.format_help()
