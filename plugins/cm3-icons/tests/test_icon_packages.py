"""Packages of icons: hostile ones are refused, and what they say of their styles is read."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cm3core.errors import DataError
from cm3icons.data import read
from cm3icons.data.corpus import IconCorpus
from cm3icons.data.read import read_tarball
from cm3icons.data.user_build import fault, set_of_package
from icon_packages import package, tarball


def bomb(path: Path) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(5):
            file.write(bytes(2**20))


def with_link(path: Path) -> None:
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("package/icons.json")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)


def with_many(path: Path) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for number in range(1001):
            tar.addfile(tarfile.TarInfo(f"package/{number}"))


def changed(**changes: Any) -> Callable[[Path], Any]:
    return lambda path: tarball(path, package(**changes))


def with_icon(icon: Any, name: str = "bell") -> Callable[[Path], Any]:
    return changed(icons={"icons": {name: icon}})


@pytest.mark.parametrize(
    ("write", "cause"),
    [
        (bomb, "unpacks to more than 4,194,304 bytes"),
        (with_link, "its icons.json is a link or a folder"),
        (with_many, "holds more than 1000 files"),
        (
            lambda p: tarball(p, {"icons.json": b"[" * 10**6}),
            "its icons.json is nested deeper than 64 levels",
        ),
        (lambda p: tarball(p, {"icons.json": b"[]"}), "its icons.json is [], must be a mapping"),
        (lambda p: tarball(p, {"icons.json": b" " * 2**21}), "its icons.json has 2,097,152 bytes"),
        (lambda p: tarball(p, {"info.json": {}}), "has no icons.json"),
        (
            lambda p: p.write_bytes(b"x"),
            "is not a readable npm package (Not a gzipped file (b'x'))",
        ),
        (
            lambda p: p.write_bytes(gzip.compress(b"x" * 999)[:-9]),
            "is not a readable npm package (",
        ),
        (changed(icons={"prefix": "../up"}), "its prefix is not a plain name"),
        (changed(icons={"icons": {}}), "has no icons"),
        (changed(icons={"icons": [1]}), "'icons' is not an object"),
        (changed(icons={"aliases": {"x": 1}}), "'x' of 'aliases' is not an object"),
        (changed(icons={"aliases": {"x": {}}}), "an alias has no parent"),
        (
            changed(metadata={"categories": {"x": [1]}}),
            "a category holds a value that is not a name",
        ),
        (changed(metadata={"suffixes": {"x": 1}}), "'x' of 'suffixes' is not a text"),
        (with_icon({}), "the icon 'bell' has no body, or no plain name"),
        (with_icon({"body": ""}, "../bell"), "the icon '../bell' has no body, or no plain name"),
        (with_icon({"body": "", "width": 0}), "the width of 'bell' is 0"),
        (with_icon({"body": "", "left": "x"}), "the left of 'bell' is x"),
        (with_icon({"body": "", "height": 1e300}), "the height of 'bell' is 1e+300"),
    ],
)
def test_hostile_packages_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Any], cause: str
) -> None:
    monkeypatch.setattr(read, "MAX_UNPACKED_BYTES", 2**22)
    monkeypatch.setattr(read, "MAX_JSON_BYTES", 2**20)
    path = tmp_path / "x.tgz"
    write(path)
    with pytest.raises(DataError) as error:
        read_tarball(path)
    assert str(error.value).startswith(f"{path}: {cause}")
    assert "\n  next: " in str(error.value)


HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
LAUGHS = "".join(f'<g id="a{n}">{f"""<use href="#a{n + 1}"/>""" * 10}</g>' for n in range(20))


@pytest.mark.parametrize(
    ("inner", "why"),
    [
        ('<path d="M0 0h1"/>', None),
        ('<defs><path id="a"/></defs><use href="#a"/>', None),
        ('<image href="/etc/x.png"/>', "holds <image"),
        ('<filter><feImage xlink:href="x"/></filter>', "holds <feImage"),
        ("<script>x</script>", "holds <script"),
        ("<path", "is not well-formed XML"),
        ("&lol;", "is not well-formed XML"),
        ("<!ENTITY x>", "holds <!"),
        (LAUGHS, "has too many nested references"),
        ('<g id="a"><use href="#a"/></g>', "is nested too deeply"),
        ('<mask id="m"><g mask="url(#m)"/></mask>', "is nested too deeply"),
        ("<g>" * 150 + "</g>" * 150, "is nested too deeply"),
        ("<g>" * 200 + "</g>" * 200, "has elements nested deeper than 200 levels"),
        ('<s-v:image xmlns:s-v="http://www.w3.org/2000/svg"/>', "holds <image"),
        ("<path/>" * 10**5, "has 700,"),
    ],
)
def test_drawings_that_are_not_drawn(inner: str, why: str | None) -> None:
    found = fault(f"{HEAD}{inner}</svg>")
    assert found == why or (why is not None and found is not None and found.startswith(why))


@pytest.mark.slow
def test_every_bundled_drawing_may_be_drawn() -> None:
    corpus = IconCorpus()
    assert {fault(corpus.svg(index)) for index in range(0, len(corpus), 40)} == {None}


def test_endings_and_beginnings_become_style_words() -> None:
    suffixes = {
        "": "Regular",
        "fill": "24 Solid",
        "two": "Two-Tone Rounded",
        "x": "Wobbly",
        "24": "24",
    }
    files = package(metadata={"suffixes": suffixes, "prefixes": {"sharp": "Sharp"}})
    icon_set, unknown = set_of_package(files, "0" * 64, "MIT")
    assert icon_set.default == "outline"
    assert icon_set.endings == {"fill": "filled", "two": "duotone rounded"}
    assert icon_set.beginnings == {"sharp": "sharp"}
    assert unknown == ["x", "24"]
    assert (icon_set.title, icon_set.version, icon_set.author) == ("my set", "1.0.0", "A B")
    coloured, _ = set_of_package(package(info={"palette": True}), "0" * 64, "MIT")
    assert coloured.always == "colour"
