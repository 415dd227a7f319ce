"""What `cm3 plugin check` may be given: files, source folders, installed distributions, and what is none
of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from checked_plugins import GOOD, WriteFile, verdict_of
from cm3apps.cli.main import main
from cm3apps.plugin_check.checking import Options, check
from cm3apps.plugin_check.targets import find_targets
from cm3apps.plugin_check.worker import Report, Verdict
from cm3core.errors import PluginError
from cm3core.plugins.discovery import GROUP
from messages import tells

PROJECT = f"""\
[project]
name = "cm3-mine"
version = "0.3"
dependencies = ["cm3leon>=0.1"]

[project.entry-points."{GROUP}"]
mine = "cm3_mine"
"""


@pytest.mark.slow
def test_a_source_folder(write: WriteFile, tmp_path: Path) -> None:
    write(PROJECT, "project/pyproject.toml")
    write(GOOD, "project/src/cm3_mine/__init__.py")
    (report,) = check("project", Options(quick=True))
    assert (report.name, report.version, report.origin) == ("mine", "0.3", "project, cm3_mine")
    assert report.verdicts[0] == Verdict(
        "install",
        "",
        "warn",
        "cm3-mine is not installed: the code in project/src is checked",
        "pip install -e project",
    )
    assert verdict_of(report.verdicts, "defaults", "text_tokenizer/characters")[0] == "ok"


@pytest.mark.parametrize(
    ("project", "module", "expected"),
    [
        (
            PROJECT.replace("cm3leon>", "other>"),
            "cm3_mine.py",
            Verdict(
                "install",
                "",
                "warn",
                "cm3-mine does not depend on cm3leon",
                'add "cm3leon" to dependencies in pyproject.toml',
            ),
        ),
        (
            PROJECT.replace('"cm3_mine"', '"cm3_mime"'),
            "cm3_mine.py",
            Verdict(
                "install",
                "",
                "fail",
                "pyproject.toml declares mine = cm3_mime, but the folder has no module cm3_mime",
                "correct the entry point's value, or add the module",
            ),
        ),
        (
            PROJECT.split("\n\n")[0],
            "cm3_mine.py",
            Verdict(
                "install",
                "",
                "fail",
                f"cm3-mine declares no entry point in the group {GROUP!r}, so cm3 does not "
                "find the plugin",
                f'write `cm3-mine = "my_package"` below [project.entry-points."{GROUP}"] in pyproject.toml, and reinstall it',
            ),
        ),
    ],
)
def test_a_project_that_is_not_right(
    project: str, module: str, expected: Verdict, write: WriteFile, tmp_path: Path
) -> None:
    write(project, "project/pyproject.toml")
    write(GOOD, f"project/{module}")
    (target,) = find_targets(str(tmp_path / "project"))
    assert expected in target.verdicts


def test_places_of_a_module(write: WriteFile, tmp_path: Path) -> None:
    write(
        PROJECT + '[tool.hatch.build.targets.wheel]\npackages = ["deep/er/cm3_mine"]\n',
        "project/pyproject.toml",
    )
    write(GOOD, "project/deep/er/cm3_mine/__init__.py")
    (target,) = find_targets("project")
    assert target.paths == (str(Path("project/deep/er").absolute()),)


def install(
    folder: Path, name: str, source: str, points: str, requires: str = "Requires-Dist: cm3leon\n"
) -> None:
    """A distribution as an installer writes it."""
    (folder / f"{name}_module.py").write_text(source, encoding="utf-8")
    info = folder / f"{name}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n{requires}", encoding="utf-8"
    )
    (info / "entry_points.txt").write_text(points, encoding="utf-8")


@pytest.mark.slow
def test_installed_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    install(tmp_path, "cm3_mine", GOOD, f"[{GROUP}]\nmine = cm3_mine_module\n")
    install(
        tmp_path, "cm3_rest", GOOD, "[console_scripts]\nrest = cm3_rest_module:f\n", requires=""
    )
    for argument in ("cm3-mine", "mine", "cm3_mine_module"):
        (report,) = (
            check(argument, Options(quick=True))
            if argument == "cm3-mine"
            else [
                Report(target.name, target.version, target.origin, target.verdicts)
                for target in find_targets(argument)
            ]
        )
        assert (report.name, report.version, report.origin) == (
            "mine",
            "1.5",
            "cm3_mine, cm3_mine_module",
        )
        assert report.verdicts[0] == Verdict(
            "install", "", "ok", "cm3_mine 1.5 declares mine = cm3_mine_module"
        )
        if argument == "cm3-mine":
            assert verdict_of(report.verdicts, "names", "")[0] == "ok"  # it is no clash with itself
    (target,) = find_targets("cm3_rest")
    assert (target.module, target.verdicts[0].status) == ("", "fail")
    (target,) = find_targets("cm3_rest_module")
    assert (target.name, target.module, target.verdicts[0].status) == (
        "cm3_rest_module",
        "cm3_rest_module",
        "warn",
    )
    with pytest.raises(PluginError) as caught:
        find_targets("cm3-mime")
    assert tells(caught.value, "cm3-mime: no distribution, entry point, module, folder")


@pytest.mark.slow
def test_two_plugins_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    install(tmp_path, "cm3_mine", GOOD, f"[{GROUP}]\nmine = cm3_mine_module\n")
    install(tmp_path, "cm3_other", GOOD, f"[{GROUP}]\nmine = cm3_other_module\n")
    (report,) = check("cm3-other", Options(quick=True))
    assert verdict_of(report.verdicts, "names", "") == (
        "fail",
        "another plugin is called 'mine': cm3_mine, cm3_mine_module",
        "rename the entry point in the group 'cm3core.plugins', or the file",
    )


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("./nowhere.py", "./nowhere.py: there is no such file\n  next: correct the path"),
        ("./nowhere", "./nowhere: there is no such file or folder\n  next: correct the path"),
        (
            "./note.txt",
            "./note.txt: is not a Python file\n  next: give a .py file, or a folder with pyproject.toml",
        ),
        (
            "./project/cm3_mine",
            "./project/cm3_mine: the folder has no pyproject.toml\n"
            "  next: give the folder that has one, or a .py file (did you mean TMP/project?)",
        ),
        (
            "bundeld",
            "bundeld: no distribution, entry point, module, folder or file has this name\n"
            "  next: did you mean 'bundled'?; give a folder or file by its path",
        ),
        (
            "./broken",
            "broken/pyproject.toml: is not valid TOML: Expected '=' after a key in a key/value "
            "pair (at line 1, column 4)\n"
            "  next: correct the file",
        ),
        (
            "./odd",
            "odd/pyproject.toml: [project] or its entry points in 'cm3core.plugins' are not a "
            "table of strings\n"
            '  next: write `mine = "my_package"` below [project.entry-points."cm3core.plugins"]',
        ),
    ],
)
def test_arguments_that_mean_nothing(
    argument: str,
    expected: str,
    write: WriteFile,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    write(PROJECT, "project/pyproject.toml")
    write(GOOD, "project/cm3_mine/__init__.py")
    write("no value", "broken/pyproject.toml")
    write("text", "note.txt")
    write(PROJECT.replace('mine = "cm3_mine"', "mine = 3"), "odd/pyproject.toml")
    assert main(["plugin", "check", argument]) == 2
    assert (
        capsys.readouterr()
        .err.replace(str(tmp_path.resolve()), "TMP")
        .replace(str(tmp_path), "TMP")
        == f"error: {expected}\n"
    )
