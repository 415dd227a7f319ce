"""What is printed of a plugin that fails while a command runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cm3apps.cli.main import main
from messages import tells
from throwaway_plugins import Install

DATASET = """\
from dataclasses import dataclass
from cm3core.hookspecs import hookimpl
from cm3core.interfaces import DocumentSourceConfig

CM3_API = 1

@dataclass(kw_only=True)
class NotesConfig(DocumentSourceConfig):
    def build(self):
        {build}

def deep():
    return {{}}["nothing"]

@hookimpl
def cm3_datasets():
    return {{"notes": NotesConfig}}
"""
Capture = Callable[[], str]
ARGUMENTS = ["data", "validate", "dataset=notes"]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Capture:
    return lambda: capsys.readouterr().err


def test_an_exception_of_a_plugin_names_it(install: Install, printed: Capture) -> None:
    install(
        "cm3-notes", DATASET.format(build="return deep()"), points="notes = throwaway_cm3_notes"
    )
    assert main(ARGUMENTS) == 2
    assert tells(printed(), "error: plugin 'notes': failed with KeyError: 'nothing'")


@pytest.mark.parametrize(
    "arguments", [["-v", *ARGUMENTS], [*ARGUMENTS, "-v"], [*ARGUMENTS, "--verbose"]]
)
def test_the_traceback_is_shown_when_asked_for(
    arguments: list[str], install: Install, printed: Capture
) -> None:
    install("cm3-notes", DATASET.format(build="return deep()"))
    assert main(arguments) == 2
    told = printed()
    assert "Traceback (most recent call last):" in told
    assert 'return {}["nothing"]' in told
    assert told.splitlines()[-2].startswith("error: plugin 'cm3-notes': failed with KeyError")


@pytest.mark.slow
def test_the_variable_shows_it_too(
    install: Install, printed: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("cm3-notes", DATASET.format(build="return deep()"))
    monkeypatch.setenv("CM3_TRACEBACK", "0")
    assert main(ARGUMENTS) == 2
    assert "Traceback" not in printed()
    monkeypatch.setenv("CM3_TRACEBACK", "1")
    assert main(ARGUMENTS) == 2
    assert 'return {}["nothing"]' in printed()


def test_an_error_that_is_raised_from_itself_is_printed_once(
    install: Install, printed: Capture
) -> None:
    """Its causes never end."""
    build = (
        "from cm3core.errors import DataError\n"
        "        try:\n"
        "            raise DataError('notes', 'are lost', 'find them')\n"
        "        except DataError as error:\n"
        "            raise error from error"
    )
    install("cm3-notes", DATASET.format(build=build))
    assert main(ARGUMENTS) == 2
    assert printed() == "error: notes: are lost\n  next: find them\n"


def test_an_error_of_ours_that_reports_one_says_how(install: Install, printed: Capture) -> None:
    build = (
        "from cm3core.errors import DataError\n"
        "        try:\n"
        "            deep()\n"
        "        except KeyError as error:\n"
        "            raise DataError('notes', 'are lost', 'find them') from error"
    )
    install("cm3-notes", DATASET.format(build=build))
    assert main(ARGUMENTS) == 2
    assert tells(printed(), "error: notes: are lost ... CM3_TRACEBACK=1")


def test_a_plugin_from_a_file(install: Install, printed: Capture, tmp_path) -> None:
    path = tmp_path / "notes.py"
    path.write_text(DATASET.format(build="raise RuntimeError"), encoding="utf-8")
    assert main(["--plugin", str(path), *ARGUMENTS]) == 2
    assert tells(printed(), "error: plugin 'notes': failed with RuntimeError ... notes.py")


def test_what_builds_nothing_breaks_a_law(install: Install, printed: Capture) -> None:
    install("cm3-notes", DATASET.format(build="pass"), points="notes = throwaway_cm3_notes")
    assert main(ARGUMENTS) == 2
    assert tells(printed(), "error: plugin 'notes', dataset 'notes': breaks the law")


def test_an_exception_of_ours_stays_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cm3apps.cli.recipe.list_recipes", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["recipe", "list"])


def test_what_ends_a_command_with_exit_code_0_is_told(monkeypatch, capsys):
    """A library that gives up by sys.exit(0) has done nothing of what was asked."""

    def leaves(_):
        raise SystemExit(0)

    monkeypatch.setattr("cm3apps.cli.generate.run", leaves)
    assert main(["generate", "red", "-o", "out"]) == 2
    assert tells(capsys.readouterr().err, "error: cm3 generate: SystemExit: 0 ... CM3_TRACEBACK=1")
