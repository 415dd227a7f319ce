"""Building icon corpora: the bundled one from pinned packages, and a user's by `cm3 icons build`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cm3apps.cli.main import main
from cm3core.document import Text
from cm3core.errors import DataError
from cm3core.interfaces.dataset import Provenance
from cm3icons.data import IconSourceConfig, build, comparison
from cm3icons.data import corpus as corpus_module
from cm3icons.data import user_build as user_sets
from cm3icons.data.comparison import drop_duplicates, small_pictures
from cm3icons.data.corpus import IconCorpus
from cm3icons.data.read import Drawing, open_set
from cm3icons.data.sets import ASSETS, all_sets
from cm3icons.data.splits import IconName, parts
from cm3icons.data.user_build import build as build_folder
from cm3icons.data.write import corpus_files
from cm3plugins.datasets.vector.files import compress
from icon_packages import NAMES, body, hash_of, package, tarball
from messages import tells


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
        lambda path=ASSETS, way="by_name": small if path == ASSETS else IconCorpus(path, way),
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
        "logos.txt",
        "closed.json.xz",
        "copies.json.xz",
        "licenses",
        "sets.toml",
    }


def test_build_without_npm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.main(["--tarballs", str(tmp_path / "none")]) == 2
    assert tells(
        capsys.readouterr().err,
        f"error: {tmp_path}/none: iconify-json-material-symbols-1.2.98.tgz and {len(all_sets()) - 1}",
    )


def test_a_pinned_package_with_another_checksum(tmp_path: Path) -> None:
    lucide = all_sets()["lucide"]
    path = tarball(tmp_path / lucide.package.tarball, package("lucide"))
    with pytest.raises(DataError) as error:
        open_set(tmp_path, lucide)
    assert str(error.value).startswith(f"{path}: SHA-256 is ")
    assert f"expected {lucide.sha256}\n  next: delete the file and run npm pack" in str(error.value)


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
    assert "1 prefixes or suffixes are not known styles and stay in the names: solid" in printed
    assert "left out, is empty: 1 (mine/empty)" in printed
    assert "left out, is not well-formed XML: 1 (mine/broken)" in printed
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
    assert source.provenance(index) == Provenance(
        "MIT", "npm @iconify-json/mine 1.0.0", "A B", "mine", "cloud"
    )
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
    assert tells(printed.err, f"error: {again}: holds the set mine a second ... {gpl} ... GPL-3.0")
    assert printed.out.endswith("4 of 5 packages were rejected, see above\n")
    assert set(IconCorpus(out).manifest.licences) == {"mine"}
    mine = ["icons", "build", gpl, "-o", str(tmp_path / "own")]
    assert main(mine) == 2
    assert not (tmp_path / "own").exists()
    assert main([*mine, "--allow-licence", "GPL-3.0"]) == 0
    assert IconCorpus(tmp_path / "own").manifest.licences == {"gnu": "GPL-3.0"}


def test_a_bundled_set_in_another_version(tmp_path: Path, bundled: IconCorpus) -> None:
    lucide = all_sets()["lucide"]
    for version, cause in (
        ("9.9.9", f"is lucide 9.9.9; the known version is {lucide.version}\n"),
        (lucide.version, f"is lucide {lucide.version} with another checksum: "),
    ):
        files = package("lucide", package={"version": version})
        path = tarball(tmp_path / "x.tgz", files)
        with pytest.raises(DataError) as error:
            user_sets.read_set(path, any_version=False, licences=())
        assert str(error.value).startswith(f"{path}: {cause}")
        assert "read it anyway: --any-version" in str(error.value)
        given = user_sets.read_set(path, any_version=True, licences=())
        assert given.icon_set.version == version
        assert given.icon_set.default == lucide.default


def test_folders_that_hold_something_are_left_alone(
    tmp_path: Path, bundled: IconCorpus, capsys: pytest.CaptureFixture[str]
) -> None:
    good = str(tarball(tmp_path / "good.tgz", package()))
    assert main(["icons", "build", good, "-o", str(tmp_path)]) == 2
    assert tells(capsys.readouterr().err, f"error: {tmp_path}: holds other files, such as bundled")
    out = str(tmp_path / "out")
    assert main(["icons", "build", good, "-o", out]) == 0
    capsys.readouterr()
    assert main(["icons", "build", good, "-o", out]) == 2
    assert tells(capsys.readouterr().err, f"error: {out}: already holds a corpus")


KILLED = """\
import os, signal, sys
from pathlib import Path
from cm3apps.cli.main import main
from cm3icons.data import comparison, corpus
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


@pytest.mark.slow
def test_a_killed_build_resumes_with_equal_bytes(
    tmp_path: Path, bundled: IconCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
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
    assert tells(error.value, "cm3 icons build: none of 1 ... 1")
