"""The bundled icon corpus: data files, licences, splits, drawings, renderings, damage."""

from __future__ import annotations

import json
import lzma
import os
import re
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import DataError
from cm3icons.data import corpus as entries_module
from cm3icons.data.comparison import NEAR, shrink
from cm3icons.data.corpus import (
    IconCorpus,
    IconEntries,
    IconEntry,
    read_entries,
    read_manifest,
)
from cm3icons.data.sets import (
    ASSETS,
    PERMITTED_LICENCES,
    SET_NAME,
    STYLE_WORDS,
    all_sets,
    style_words,
)
from cm3icons.data.splits import SPLITS, parts
from cm3icons.data.write import attribution
from cm3plugins.datasets.emoji.packages import STYLE_PACKAGES
from cm3plugins.datasets.vector import files as files_module
from cm3plugins.datasets.vector.files import compress, data_hash
from icon_corpora import ROWS, write_corpus
from messages import tells


@pytest.fixture(scope="module")
def corpus() -> IconCorpus:
    return IconCorpus()


def thing_of(entry: IconEntry) -> frozenset[str]:
    words = tuple(entry.words.split())
    return parts(words) or frozenset(words)


@pytest.fixture(scope="module")
def things(corpus: IconCorpus) -> dict[str, set[frozenset[str]]]:
    """Split -> the parts of its things."""
    found: dict[str, set[frozenset[str]]] = defaultdict(set)
    for entry in corpus.entries:
        found[entry.split].add(thing_of(entry))
    return found


def pairs_of(things: set[frozenset[str]]) -> set[tuple[str, str]]:
    return {pair for thing in things for pair in combinations(sorted(thing), 2)}


# --- data


def test_the_data_are_those_of_the_manifest(corpus: IconCorpus) -> None:
    manifest = json.loads((ASSETS / "manifest.json").read_text())
    files = {name: (ASSETS / name).read_bytes() for name in manifest["files"]}
    assert data_hash(files) == corpus.data_sha256
    assert {name: len(data) for name, data in files.items()} == manifest["files"]
    assert sum(map(len, files.values())) < 10e6
    assert corpus.manifest.packages == {s.package.spec: s.sha256 for s in all_sets().values()}
    splits = Counter(entry.split for entry in corpus.entries)
    assert splits == corpus.manifest.num_of_split
    assert set(splits) == set(SPLITS)


def test_ids_are_unique_names_of_sets_and_icons(corpus: IconCorpus) -> None:
    assert len({entry.id for entry in corpus.entries}) == len(corpus) > 100_000
    assert all(SET_NAME.fullmatch(half) for entry in corpus.entries for half in entry.id.split("/"))
    assert {entry.set_name for entry in corpus.entries} == {
        *all_sets(),
        *(f"emoji-{style}" for style in STYLE_PACKAGES),
    }


def test_words_styles_and_tags_are_clean(corpus: IconCorpus) -> None:
    for entry in corpus.entries:
        assert entry.words == " ".join(entry.words.lower().split()) != ""
        assert entry.style == " ".join(style_words(entry.style)) != ""
        assert all(tag == " ".join(tag.lower().split()) != "" for tag in entry.tags)
    assert {word for entry in corpus.entries for word in entry.style.split()} == set(STYLE_WORDS)


def test_every_icon_has_a_licence_whose_text_is_shipped(corpus: IconCorpus) -> None:
    licences = {corpus.licence(index) for index in range(len(corpus))}
    assert licences <= set(PERMITTED_LICENCES)
    assert licences == {path.stem for path in (ASSETS / "licenses").iterdir()}
    assert corpus.licence(corpus.index("emoji-twemoji/red-apple")) == "CC-BY-4.0"


def test_every_set_is_attributed(corpus: IconCorpus) -> None:
    of_set = Counter(entry.set_name for entry in corpus.entries)
    shipped = (ASSETS / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert sorted(shipped.splitlines()) == sorted(attribution(of_set).splitlines())


@pytest.mark.slow
def test_every_entry_has_a_drawing(corpus: IconCorpus) -> None:
    for index in range(len(corpus)):
        svg = corpus.svg(index)
        assert svg.startswith("<svg ")
        assert svg.endswith("</svg>")


def test_reading_twice_shares_the_entries() -> None:
    assert IconCorpus().entries is IconCorpus().entries


def test_entries_are_read_again_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    (tmp_path / "corpus").mkdir()
    folder = write_corpus(tmp_path / "corpus")
    manifest = read_manifest(folder, "")
    first = list(read_entries(folder, manifest, ""))
    [kept] = (tmp_path / "cache" / "icons").glob("entries-*.txt")
    with monkeypatch.context() as patch:
        patch.setattr(entries_module, "unpack_lines", None)
        again = read_entries(folder, manifest, "")
    assert [again[0], again[-1], *again[1:]] == [first[0], first[-1], *first[1:]]
    assert list(again) == first
    for damage in (
        b"",
        b"\xff",
        kept.read_bytes()[:-9],
        kept.read_bytes()[:-2],
        kept.read_bytes() + b"\0",
    ):
        kept.write_bytes(damage)
        assert list(read_entries(folder, manifest, "")) == first


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=3)


@given(st.lists(st.builds(IconEntry, *[ANY_TEXT] * 3, st.lists(ANY_TEXT).map(tuple), ANY_TEXT)))
def test_packed_entries_are_the_same_or_are_not_packed(rows: list[IconEntry]) -> None:
    entries = IconEntries.of(rows)
    assert list(entries) == [entries[index] for index in range(len(entries))] == rows
    if (packed := entries.packed()) is not None:
        again = IconEntries.unpacked(packed)
        assert again is not None
        assert list(again) == rows


def test_an_unknown_id_is_named_with_the_nearest(corpus: IconCorpus) -> None:
    with pytest.raises(DataError) as error:
        corpus.index("lucide/bell-of")
    assert tells(error.value, "icon corpus: has no picture 'lucide/bell-of'")


# --- splits


def test_no_unseen_thing_is_elsewhere(things: dict[str, set[frozenset[str]]]) -> None:
    assert len(things["unseen"]) > 500
    for split in ("train", "comp", "compose"):
        assert not things["unseen"] & things[split]


def test_a_comp_drawing_shows_a_thing_of_train(things: dict[str, set[frozenset[str]]]) -> None:
    assert things["comp"] <= things["train"]


def test_parts_of_compose_are_seen_but_never_together(
    things: dict[str, set[frozenset[str]]],
) -> None:
    seen, words = pairs_of(things["train"]), frozenset[str]().union(*things["train"])
    assert len(things["compose"]) > 300
    for thing in things["compose"]:
        held_out = [pair for pair in combinations(sorted(thing), 2) if pair not in seen]
        assert any(set(pair) <= words for pair in held_out), thing


@pytest.mark.slow
def test_near_duplicates_are_on_one_side_on_a_sample(corpus: IconCorpus) -> None:
    """Half of two sets: no held-out thing almost looks like another thing of train."""
    chosen = [
        index
        for index, entry in enumerate(corpus.entries)
        if entry.set_name in ("lucide", "octicon")
    ][::2]
    grey_NHW = np.stack([corpus.render(index, 64).min(2) for index in chosen])
    assert len(np.unique(grey_NHW, axis=0)) == len(chosen)
    small_ND = shrink(grey_NHW).astype(np.float64)
    squares_N = np.square(small_ND).sum(1)
    distance_NN = squares_N[:, None] + squares_N - 2 * small_ND @ small_ND.T
    first, second = np.nonzero(np.triu(distance_NN <= NEAR, 1))
    for i, j in zip(first, second, strict=True):
        one, other = corpus.entries[chosen[i]], corpus.entries[chosen[j]]
        if one.split != other.split:
            assert thing_of(one) == thing_of(other), (one, other)


# --- pictures


def test_grey_icons_are_grey_and_coloured_ones_coloured(corpus: IconCorpus) -> None:
    bell = corpus.render(corpus.index("lucide/bell-off"), 48)
    assert bell.shape == (48, 48, 3)
    assert bell.dtype == np.uint8
    assert (bell[..., :1] == bell).all()
    assert (bell[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    assert bell.min() == 0
    apple = corpus.render(corpus.index("emoji-noto/red-apple"), 48)
    red, green, _ = apple[26:34, 16:32].reshape(-1, 3).mean(0)
    assert red > 160 > 100 > green


def test_renderings_are_cached_grey_and_coloured_apart(tmp_path: Path) -> None:
    corpus, cache = IconCorpus(write_corpus(tmp_path)), tmp_path / "cache"
    assert not corpus.is_rendered(3, cache)
    pictures = corpus.pictures(3, cache)
    assert corpus.is_rendered(3, cache)
    assert [pictures[index][1, 1].tolist() for index in range(3)] == [
        [128, 128, 128],
        [255, 0, 0],
        [0, 0, 0],
    ]
    shapes = {path.parent.name: np.load(path).shape for path in cache.rglob("*.npy")}
    assert shapes == {"icons": (2, 3, 3), "icons-in-colour": (1, 3, 3, 3)}


def test_a_cache_of_some_is_another_file(tmp_path: Path) -> None:
    corpus, cache = IconCorpus(write_corpus(tmp_path)), tmp_path / "cache"
    some = corpus.pictures(3, cache, [2, 1])
    assert not corpus.is_rendered(3, cache)
    assert not corpus.is_rendered(3, cache, [0, 1])
    assert some[2].max() == 0
    assert some[1][0, 0].tolist() == [255, 0, 0]
    with pytest.raises(KeyError):
        some[0]


def test_all_are_one_file_whoever_asks_for_them(tmp_path: Path) -> None:
    """A source of all icons, in its own order, and the whole corpus: not drawn twice."""
    corpus, cache = IconCorpus(write_corpus(tmp_path)), tmp_path / "cache"
    listed = corpus.pictures(3, cache, [2, 0, 1])
    assert corpus.is_rendered(3, cache)
    whole = corpus.pictures(3, cache)
    for index in range(3):
        np.testing.assert_array_equal(listed[index], whole[index])
    assert len(list(cache.rglob("*.npy"))) == 2
    corpus.pictures(3, cache, [0, 1])  # all coloured ones, and some of the others
    assert len(list(cache.rglob("*.npy"))) == 3


def test_a_cut_cache_is_drawn_again(tmp_path: Path) -> None:
    corpus, cache = IconCorpus(write_corpus(tmp_path)), tmp_path / "cache"
    before = corpus.pictures(3, cache)[0]
    (path,) = (cache / "icons").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert not corpus.is_rendered(3, cache)
    assert np.array_equal(corpus.pictures(3, cache)[0], before)
    assert [item.name for item in (cache / "icons").iterdir()] == [path.name]


def test_killed_drawing_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    write_corpus(tmp_path)
    code = (
        "import sys, time; from pathlib import Path\n"
        "from cm3icons.data.corpus import IconCorpus\n"
        "corpus = IconCorpus(Path(sys.argv[1]))\n"
        "def stay(index, size): print('drawing', flush=True); time.sleep(60)\n"
        "corpus.render = stay\n"
        "corpus.pictures(3, sys.argv[2])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), str(cache)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"drawing\n"
        os.kill(process.pid, signal.SIGKILL)
    corpus = IconCorpus(tmp_path)
    assert not corpus.is_rendered(3, cache)
    assert corpus.pictures(3, cache)[0][0, 0].tolist() == [128, 128, 128]
    assert len([path for path in cache.rglob("*") if path.is_file()]) == 2


# --- damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def entries(*rows: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(compress("".join(json.dumps(row) + "\n" for row in rows)))

    return write


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("name", "damage", "cause"),
    [
        ("manifest.json", Path.unlink, "the file can't be read (No such file or directory)"),
        ("manifest.json", cut, "is not the manifest of an icon corpus (is not JSON"),
        (
            "manifest.json",
            lambda p: p.write_text(DEEP),
            "is not the manifest of an icon corpus (is nested",
        ),
        (
            "manifest.json",
            lambda p: p.write_text("[]"),
            "is not the manifest of an icon corpus (is [], must",
        ),
        ("entries.jsonl.xz", Path.unlink, "the file can't be read (No such file or directory)"),
        (
            "entries.jsonl.xz",
            cut,
            "the file is damaged (Compressed data ended before the end-of-stream marker was reached)",
        ),
        ("entries.jsonl.xz", entries(*ROWS[:2]), "holds 2 entries, but the manifest states 3"),
        ("entries.jsonl.xz", entries(*ROWS, ROWS[0]), "the file is damaged (an id occurs twice)"),
        (
            "entries.jsonl.xz",
            entries({"id": "one/x"}),
            "the file is damaged (line 1: has no 'words')",
        ),
        (
            "entries.jsonl.xz",
            entries(ROWS[0] | {"words": 3}),
            "the file is damaged (line 1: words is 3, must be a text)",
        ),
        (
            "entries.jsonl.xz",
            entries(ROWS[0] | {"split": "trian"}),
            "the file is damaged (there is no split 'trian')",
        ),
        (
            "entries.jsonl.xz",
            entries(ROWS[0] | {"id": "../etc/x"}),
            "the file is damaged (the manifest has no licence for '..')",
        ),
    ],
)
def test_damage_of_entries_and_manifest_is_named(
    tmp_path: Path, name: str, damage: Callable[[Path], Any], cause: str
) -> None:
    write_corpus(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(DataError) as error:
        IconCorpus(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / name}: {cause}")
    assert error.value.next_step == "build it again with `cm3 icons build`"


@pytest.mark.parametrize(
    ("damage", "place", "cause"),
    [
        (Path.unlink, "", "the file can't be read (No such file or directory)"),
        (lambda p: p.write_bytes(lzma.compress(b"\xff")), "", "the file is damaged"),
        (entries("<svg>"), "", "holds 1 drawings, not 2"),
        (lambda p: p.write_bytes(compress("x\ny\n")), ", line 1", "is not JSON"),
    ],
)
def test_damage_of_drawings_is_named(
    tmp_path: Path, damage: Callable[[Path], Any], place: str, cause: str
) -> None:
    write_corpus(tmp_path)
    path = tmp_path / "svg-one.jsonl.xz"
    damage(path)
    corpus = IconCorpus(tmp_path)
    corpus.render(1, 3)  # another set's drawing is not concerned
    with pytest.raises(DataError, match=re.escape(f"{path}{place}: {cause}")):
        corpus.render(0, 3)


def test_a_file_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path)
    monkeypatch.setattr(files_module, "MAX_UNPACKED_BYTES", 2**16)
    (tmp_path / "entries.jsonl.xz").write_bytes(compress("x" * 2**17))
    with pytest.raises(DataError, match=r"it unpacks to more than 65,536 bytes"):
        IconCorpus(tmp_path)
