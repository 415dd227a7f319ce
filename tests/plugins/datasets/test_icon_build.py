"""Building icon corpora: the bundled one from pinned packages, and a user's by `cm3 icons build`."""

from __future__ import annotations

import gzip
import io
import json
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3core.cli.main import main
from cm3core.document import Text
from cm3core.errors import DataError
from cm3core.interfaces.dataset import Provenance
from cm3plugins.datasets.icons import IconSourceConfig, build, comparison, read, user_sets
from cm3plugins.datasets.icons import corpus as corpus_module
from cm3plugins.datasets.icons.comparison import drop_duplicates, small_pictures
from cm3plugins.datasets.icons.corpus import IconCorpus
from cm3plugins.datasets.icons.described import set_of_package
from cm3plugins.datasets.icons.names import IconName, parts
from cm3plugins.datasets.icons.read import Drawing, open_set, read_tarball
from cm3plugins.datasets.icons.sets import ASSETS, PERMITTED_LICENCES, all_sets
from cm3plugins.datasets.icons.splits import Decided, assign_splits, decided_by, thing_of
from cm3plugins.datasets.icons.trusted_svg import fault
from cm3plugins.datasets.icons.user_build import build as build_folder
from cm3plugins.datasets.icons.write import corpus_files
from cm3plugins.datasets.vector.files import compress

NAMES = ["bell", "lock", "user", "star", "cloud", "file", "heart", "home"]


def body(seed: int) -> str:
    """A drawing of 16 squares that looks like no other."""
    cells = np.random.default_rng(seed).permutation(64)[:24]
    return "".join(
        f'<path d="M{2 * (c % 8)} {2 * (c // 8)}h2v2h-2z" fill="currentColor"/>' for c in cells
    )


def package(prefix: str = "mine", **changes: Any) -> dict[str, Any]:
    """JSON files of a package with two styles of each name."""
    icons = {
        f"{name}{ending}": {"body": body(hash_of(prefix, name, ending))}
        for name in NAMES
        for ending in ("", "-solid")
    }
    files: dict[str, Any] = {
        "icons.json": {"prefix": prefix, "icons": icons, "width": 16, "height": 16},
        "info.json": {"name": "My Set!", "license": {"spdx": "MIT"}, "author": {"name": "A | B"}},
        "metadata.json": {"suffixes": {"": "Regular", "solid": "Solid"}},
        "package.json": {"version": "1.0.0"},
    }
    for name, change in changes.items():
        files[f"{name}.json"] = {**files[f"{name}.json"], **change}
    return files


def hash_of(*names: str) -> int:
    return int.from_bytes("".join(names).encode(), "big") % 2**63


def tarball(path: Path, files: dict[str, Any]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> IconCorpus:
    """A small corpus in place of the bundled one: holds out `home`, `bell` with `lock`, and a drawing."""
    folder = tmp_path / "bundled"
    folder.mkdir()
    rows = [
        ("one/home", "home", "unseen"),
        ("one/bell-lock", "bell lock", "compose"),
        ("mine/star", "star", "comp"),
        ("one/star", "star", "train"),
        ("one/bell", "bell", "train"),
        ("one/lock", "lock", "train"),
    ]
    entries = [
        {"id": id_, "words": words, "style": "outline", "tags": [], "split": split}
        for id_, words, split in rows
    ]
    svgs = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">{body(n)}</svg>'
        for n in range(len(rows))
    ]
    for name, lines in (
        ("entries", entries),
        ("svg-one", svgs[:2] + svgs[3:]),
        ("svg-mine", svgs[2:3]),
    ):
        data = compress("".join(json.dumps(line) + "\n" for line in lines))
        (folder / f"{name}.jsonl.xz").write_bytes(data)
    manifest = {
        "data_sha256": str(tmp_path),
        "num_entries": len(rows),
        "num_of_split": {},
        "packages": {},
        "licences": {"one": "MIT", "mine": "MIT"},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    small = IconCorpus(folder)
    monkeypatch.setattr(
        corpus_module,
        "IconCorpus",
        lambda path=ASSETS: small if path == ASSETS else IconCorpus(path),
    )
    return small


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def drawing(name: str, svg_seed: int, set_name: str = "one") -> Drawing:
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">{body(svg_seed)}</svg>'
    return Drawing(f"{set_name}/{name}", set_name, IconName((name,), ("outline",)), (), svg)


# --- the bundled corpus


def test_duplicates_are_dropped_and_give_their_names() -> None:
    drawings = [drawing("bell", 1), drawing("alarm", 1), drawing("lock", 2)]
    broken = Drawing("one/x", "one", IconName(("x",), ()), (), "<svg>")
    white = Drawing("one/y", "one", IconName(("y",), ()), (), drawings[0].svg.split(">")[0] + "/>")
    everything = [*drawings, broken, white]
    small_ND = small_pictures([d.svg for d in everything])
    rows, kept, near, counts = drop_duplicates(everything, small_ND)
    assert rows == [0, 2]
    assert [(d.id, d.tags) for d in kept] == [("one/bell", ("alarm",)), ("one/lock", ())]
    assert near == {0: set()}
    assert counts == {"not rendered": 1, "empty": 1, "same as another": 1}


def test_the_same_drawings_give_the_same_bytes() -> None:
    drawings = [drawing("bell", 1, "lucide"), drawing("lock", 2, "lucide")]
    splits = ["train", "unseen"]
    files = corpus_files(drawings, splits, ["lucide"], {})
    assert files == corpus_files(drawings, splits, ["lucide"], {})
    assert list(files) == ["entries.jsonl.xz", "svg-lucide.jsonl.xz", "manifest.json"]


def test_the_bundled_corpus_has_these_files() -> None:
    made = {"ATTRIBUTION.md", "entries.jsonl.xz", "manifest.json"}
    made |= {f"svg-{name}.jsonl.xz" for name in all_sets()}
    assert {path.name for path in ASSETS.iterdir()} - made == {
        "brands.txt",
        "licenses",
        "sets.toml",
    }


def test_build_without_npm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.main(["--tarballs", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/none: iconify-json-material-symbols-1.2.98.tgz and "
        f"{len(all_sets()) - 1} more are not there, and npm is not installed to fetch them\n"
        "  next: install npm, or put the tarballs there yourself and give the folder with "
        "--tarballs\n"
    )


def test_a_pinned_package_with_another_checksum(tmp_path: Path) -> None:
    lucide = all_sets()["lucide"]
    path = tarball(tmp_path / lucide.package.tarball, package("lucide"))
    with pytest.raises(DataError) as error:
        open_set(tmp_path, lucide)
    assert str(error.value).startswith(f"{path}: SHA-256 is ")
    assert f"expected {lucide.sha256}\n  next: delete the file and run npm pack" in str(error.value)


# --- packages from anyone


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
        (lambda p: tarball(p, {"icons.json": b"[" * 10**6}), "its icons.json is nested too deeply"),
        (lambda p: tarball(p, {"icons.json": b"[]"}), "its icons.json is no table"),
        (lambda p: tarball(p, {"icons.json": b" " * 2**21}), "its icons.json has 2,097,152 bytes"),
        (lambda p: tarball(p, {"info.json": {}}), "holds no icons.json"),
        (lambda p: p.write_bytes(b"x"), "is no readable npm package (Not a gzipped file (b'x'))"),
        (lambda p: p.write_bytes(gzip.compress(b"x" * 999)[:-9]), "is no readable npm package ("),
        (changed(icons={"prefix": "../up"}), "its prefix is no plain name"),
        (changed(icons={"icons": {}}), "holds no icons"),
        (changed(icons={"icons": [1]}), "'icons' is no table"),
        (changed(icons={"aliases": {"x": 1}}), "'x' of 'aliases' is no table"),
        (changed(icons={"aliases": {"x": {}}}), "an alias has no parent"),
        (changed(metadata={"categories": {"x": [1]}}), "a category holds what is no name"),
        (changed(metadata={"suffixes": {"x": 1}}), "'x' of 'suffixes' is no text"),
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
        ("<path", "is no well-formed SVG"),
        ("&lol;", "is no well-formed SVG"),
        ("<!ENTITY x>", "holds <!"),
        (LAUGHS, "is drawn too often by references"),
        ('<g id="a"><use href="#a"/></g>', "is nested too deeply"),
        ('<mask id="m"><g mask="url(#m)"/></mask>', "is nested too deeply"),
        ("<g>" * 200 + "</g>" * 200, "is nested too deeply"),
        ("<path/>" * 10**5, "has 700,"),
    ],
)
def test_drawings_that_are_not_drawn(inner: str, why: str | None) -> None:
    found = fault(f"{HEAD}{inner}</svg>")
    assert found == why or (why is not None and found is not None and found.startswith(why))


def test_every_bundled_drawing_may_be_drawn() -> None:
    corpus = IconCorpus()
    assert {fault(corpus.svg(index)) for index in range(0, len(corpus), 40)} == {None}


# --- sets that describe themselves


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


# --- splits that another corpus decides


THINGS = st.lists(
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True), min_size=1, max_size=60
)


@settings(max_examples=50)
@given(THINGS, THINGS)
def test_nothing_that_is_held_out_is_trained_elsewhere(
    first: list[list[str]], second: list[list[str]]
) -> None:
    words = [[tuple(name) for name in names] for names in (first, second)]
    ids = [[f"set/{'-'.join(n)}-{i}" for i, n in enumerate(names)] for names in words]
    before = assign_splits(ids[0], words[0], {})
    kept = [i for i, split in enumerate(before) if split is not None]
    decided = decided_by(
        [ids[0][i] for i in kept], [words[0][i] for i in kept], [str(before[i]) for i in kept]
    )
    after = assign_splits(ids[1], words[1], {}, decided)
    other = decided_by(
        [id_ for id_, split in zip(ids[1], after, strict=True) if split],
        [name for name, split in zip(words[1], after, strict=True) if split],
        [split for split in after if split],
    )
    for one, two in ((decided, other), (other, decided)):
        assert not one.unseen & two.trained
        assert not one.comp & two.trained_ids
    assert not decided.pairs & other.trained_pairs
    for name, split in zip(words[1], after, strict=True):
        if split == "compose":  # at least one of its pairs is held out in both
            assert not set(combinations(sorted(parts(name)), 2)) <= decided.trained_pairs


def test_near_duplicates_of_what_is_held_out_are_left_out() -> None:
    decided = Decided(unseen=frozenset({"home"}), comp=frozenset({"s/star"}))
    splits = assign_splits(
        ["s/home", "s/house", "s/star", "t/star"],
        [("home",), ("house",), ("star",), ("star",)],
        {0: {1}, 1: {0}},
        decided,
    )
    assert splits == ["unseen", None, "comp", "train"]
    lonely = assign_splits(["s/star"], [("star",)], {}, decided)
    assert lonely == [None]


# --- the command


def test_the_command_builds_what_the_data_set_reads(
    tmp_path: Path, bundled: IconCorpus, capsys: pytest.CaptureFixture[str]
) -> None:
    files = package(metadata={"suffixes": {"": "Regular", "solid": "Wobbly"}})
    icons = files["icons.json"]["icons"]
    icons["bell-lock"] = {"body": body(3000)}
    icons["empty"] = {"body": "<g/>"}
    icons["broken"] = {"body": "<path"}
    icons["copy"] = {"body": body(hash_of("mine", "cloud", ""))}
    icons["twin"] = {"body": body(0)}  # looks like one/home, which is held out
    out = tmp_path / "out"
    assert main(["icons", "build", str(tarball(tmp_path / "x.tgz", files)), "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "mine 1.0.0: " in printed
    assert (
        "1 endings or beginnings are no known style and stay words of the names: solid" in printed
    )
    assert "left out, is empty: 1 (mine/empty)" in printed
    assert "left out, is no well-formed SVG: 1 (mine/broken)" in printed
    assert "left out, same as another: 1" in printed
    assert "left out, look like what the bundled corpus holds out: 1" in printed
    corpus = IconCorpus(out)
    of_id = {entry.id: entry for entry in corpus.entries}
    assert of_id["mine/home"].split == "unseen"
    assert "mine/twin" not in of_id
    assert of_id["mine/cloud"].tags == ("copy",)
    assert of_id["mine/cloud-solid"].words == "cloud solid"
    trained = {parts(tuple(e.words.split())) for e in corpus.entries if e.split == "train"}
    assert not [thing for thing in trained if {"bell", "lock"} <= thing or thing == "home"]
    source = IconSourceConfig(path=str(out), image_size=16, split="all").build()
    index = [source.id(i) for i in range(len(source))].index("mine/cloud")
    assert source.document(index)[0] == Text("cloud, outline, my set")
    assert source.provenance(index) == Provenance("MIT", "npm @iconify-json/mine 1.0.0", "A B")
    assert sorted(contents(out)) == [
        "ATTRIBUTION.md",
        "entries.jsonl.xz",
        "manifest.json",
        "svg-mine.jsonl.xz",
    ]
    assert "| `mine` | 1.0.0 |" in (out / "ATTRIBUTION.md").read_text()


def test_refused_sets_are_named_and_the_others_built(
    tmp_path: Path, bundled: IconCorpus, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(name: str, *arguments: Any, **changes: Any) -> str:
        return str(tarball(tmp_path / name, package(*arguments, **changes)))

    good = write("good.tgz")
    again = write("again.tgz")
    gpl = write("gpl.tgz", "gnu", info={"license": {"spdx": "GPL-3.0"}})
    none = write("none.tgz", "none", info={"license": "all mine"})
    out = tmp_path / "out"
    assert main(["icons", "build", good, again, gpl, none, str(tmp_path), "-o", str(out)]) == 1
    printed = capsys.readouterr()
    permitted = ", ".join(PERMITTED_LICENCES)
    assert printed.err == (
        f"error: {again}: holds the set mine a second time\n  next: give one version of it\n"
        f"error: {gpl}: its licence is GPL-3.0, which is not permitted\n"
        f"  next: use sets under {permitted}, or for your own use: --allow-licence GPL-3.0\n"
        f"error: {none}: its licence is not stated, which is not permitted\n"
        f"  next: use sets under {permitted}\n"
        f"error: {tmp_path}: is no file\n"
        "  next: run npm pack @iconify-json/SET, and name its file\n"
    )
    assert printed.out.endswith("4 of 5 packages were refused, see above\n")
    assert set(IconCorpus(out).manifest.licences) == {"mine"}
    mine = ["icons", "build", gpl, "-o", str(tmp_path / "own")]
    assert main(mine) == 2
    assert not (tmp_path / "own").exists()
    assert main([*mine, "--allow-licence", "GPL-3.0"]) == 0
    assert IconCorpus(tmp_path / "own").manifest.licences == {"gnu": "GPL-3.0"}


def test_a_bundled_set_in_another_version(tmp_path: Path, bundled: IconCorpus) -> None:
    lucide = all_sets()["lucide"]
    for version, cause in (
        ("9.9.9", f"is lucide 9.9.9; the one that is known is {lucide.version}\n"),
        (lucide.version, f"is lucide {lucide.version} with another checksum: "),
    ):
        files = package("lucide", package={"version": version})
        path = tarball(tmp_path / "x.tgz", files)
        with pytest.raises(DataError) as error:
            user_sets.read_set(path, any_version=False, licences=())
        assert str(error.value).startswith(f"{path}: {cause}")
        assert "read it all the same: --any-version" in str(error.value)
        given = user_sets.read_set(path, any_version=True, licences=())
        assert given.icon_set.version == version
        assert given.icon_set.default == lucide.default


def test_folders_that_hold_something_are_left_alone(
    tmp_path: Path, bundled: IconCorpus, capsys: pytest.CaptureFixture[str]
) -> None:
    good = str(tarball(tmp_path / "good.tgz", package()))
    assert main(["icons", "build", good, "-o", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}: holds other files, such as bundled\n  next: name a new folder\n"
    )
    out = str(tmp_path / "out")
    assert main(["icons", "build", good, "-o", out]) == 0
    capsys.readouterr()
    assert main(["icons", "build", good, "-o", out]) == 2
    assert capsys.readouterr().err == (
        f"error: {out}: already holds a corpus\n  next: name another folder, or delete this one\n"
    )


KILLED = """\
import os, signal, sys
from pathlib import Path
from cm3core.cli.main import main
from cm3plugins.datasets.icons import comparison, corpus
small = corpus.IconCorpus(Path(sys.argv[1]))
corpus.IconCorpus = lambda: small
render, drawn = comparison.render_svg, []
def counted(svg, size):
    drawn.append(svg)
    if len(drawn) > 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return render(svg, size)
comparison.render_svg = counted
main(sys.argv[2:])
"""


def test_a_killed_build_resumes_with_equal_bytes(
    tmp_path: Path, bundled: IconCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [str(tarball(tmp_path / f"{name}.tgz", package(name))) for name in ("mine", "other")]
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = ["icons", "build", *sets, "-o"]
    code = [sys.executable, "-c", KILLED, str(tmp_path / "bundled"), *command, str(out)]
    assert subprocess.run(code, check=False).returncode == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    with pytest.raises(DataError):
        IconCorpus(out)
    assert len(list((out / ".unfinished").glob("*.npy"))) == 1  # the first set
    drawn: list[str] = []
    render = comparison.render_svg
    monkeypatch.setattr(
        comparison, "render_svg", lambda svg, size: (drawn.append(svg), render(svg, size))[1]
    )
    assert main([*command, str(out)]) == 0
    assert len(drawn) == 2 * len(NAMES) + 3  # the second set, and what is held out
    assert main([*command, str(whole)]) == 0
    assert contents(out) == contents(whole)


def test_nothing_left_is_reported(tmp_path: Path, bundled: IconCorpus) -> None:
    files = package(icons={"icons": {"home": {"body": "<g/>"}}})
    given = user_sets.read_set(tarball(tmp_path / "x.tgz", files), any_version=False, licences=())
    with pytest.raises(DataError) as error:
        build_folder([given], tmp_path / "out", bundled)
    assert str(error.value) == (
        "cm3 icons build: no icon is left of 1 (1 empty)\n  next: give other sets"
    )


def test_things_are_the_same_whatever_the_order_of_words() -> None:
    assert thing_of(("lock", "bells")) == thing_of(("bell", "lock")) == "bell lock"
