"""The bundled emoji corpus: data files, splits, pictures, captions, documents, and the command that
rebuilds it."""

from __future__ import annotations

import errno
import json
import lzma
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Picture

from cm3core.document import Image, Text
from cm3core.errors import DataError, FileError, RecipeError
from cm3plugins.datasets.emoji import EmojiSourceConfig, build
from cm3plugins.datasets.emoji.atlas import COLUMNS, TILE
from cm3plugins.datasets.emoji.build import (
    Concept,
    assign_splits,
    clean_label,
    icon_svg,
    match_icons,
    names_of_concepts,
    read_concepts,
)
from cm3plugins.datasets.emoji.captions import DEFAULT_TEMPLATES, caption
from cm3plugins.datasets.emoji.corpus import (
    ASSETS,
    STYLES,
    EmojiCorpus,
    EmojiEntry,
    select_concepts,
)
from cm3plugins.datasets.emoji.packages import ALL_PACKAGES, NAMES_PACKAGE
from cm3plugins.datasets.vector.captions import CaptionTemplate
from cm3plugins.datasets.vector.files import data_hash
from cm3plugins.svg import render_svg, square_svg
from messages import tells

DATA_SHA256 = "d60adccc29289bd685bcdaa1fe589409759d27ff25256d83d68081f9427ed7ed"
FIXTURE = Path(__file__).parents[2] / "fixtures" / "emoji128"
APPLE = EmojiEntry(
    "noto/red-apple",
    "red-apple",
    "red apple",
    ("fruit", "school"),
    "noto",
    "food and drink",
    "train",
)


@pytest.fixture(scope="module")
def corpus() -> EmojiCorpus:
    return EmojiCorpus()


# --- data


def test_the_data_are_the_recorded_ones(corpus: EmojiCorpus) -> None:
    files = {path.name: path.read_bytes() for path in ASSETS.glob("*.xz")}
    assert data_hash(files) == corpus.data_sha256 == DATA_SHA256
    assert sum(map(len, files.values())) < 8e6
    assert corpus.manifest["packages"] == {package.spec: package.sha256 for package in ALL_PACKAGES}


def test_every_package_is_attributed() -> None:
    text = (ASSETS / "ATTRIBUTION.md").read_text()
    for package in ALL_PACKAGES:
        assert f"`{package.name}` {package.version}" in text
    licenses = set(re.findall(r"`([\w.-]+\.txt)`", text))
    assert licenses == {path.name for path in (ASSETS / "licenses").iterdir()}


def test_counts(corpus: EmojiCorpus) -> None:
    assert len(corpus) == 7225
    assert Counter(entry.split for entry in corpus.entries) == {
        "train": 6611,
        "comp": 314,
        "unseen": 300,
    }
    assert Counter(entry.style for entry in corpus.entries) == {
        "noto": 1671,
        "noto-v1": 1178,
        "fluent": 1592,
        "twemoji": 1652,
        "emojione": 1132,
    }
    assert len({entry.id for entry in corpus.entries}) == 7225
    assert (
        len({entry.concept for entry in corpus.entries})
        == len({entry.label for entry in corpus.entries})
        == 1674
    )


def test_labels_and_tags_are_clean(corpus: EmojiCorpus) -> None:
    for entry in corpus.entries:
        assert re.fullmatch(r"[\w' -]+", entry.label), entry
        assert entry.label == entry.label.lower().strip()
        assert entry.label not in entry.tags


def test_no_unseen_concept_is_trained(corpus: EmojiCorpus) -> None:
    unseen = {entry.concept for entry in corpus.entries if entry.split == "unseen"}
    assert len(unseen) == 60
    assert not unseen & {entry.concept for entry in corpus.entries if entry.split != "unseen"}
    people = {"man", "woman", "person", "men", "women", "people"}
    assert not [
        entry
        for entry in corpus.entries
        if entry.concept in unseen and people & set(entry.label.split())
    ]


def test_a_comp_concept_is_trained_in_another_style(corpus: EmojiCorpus) -> None:
    trained = {entry.concept for entry in corpus.entries if entry.split == "train"}
    assert {entry.concept for entry in corpus.entries if entry.split == "comp"} <= trained


@pytest.mark.slow
def test_no_two_of_a_sample_are_equal(corpus: EmojiCorpus) -> None:
    """Symbols and letters, where the packages repeat themselves most, held-out pictures against all
    their like."""
    indices = [
        i for i, entry in enumerate(corpus.entries) if entry.category in ("symbols", "flags")
    ]
    pixels = Counter(corpus.render(index, 64).tobytes() for index in indices)
    assert max(pixels.values()) == 1


def test_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "entries.jsonl.xz").write_bytes(lzma.compress(b"x" * 99)[:-20])
    with pytest.raises(DataError) as caught:
        EmojiCorpus(tmp_path)
    assert tells(caught.value, f"{tmp_path}/entries.jsonl.xz: the file is damaged (Compressed data")


# --- splits


def _concepts(count: int) -> list[Concept]:
    return [Concept(f"c{n}", f"thing{n}", (), "objects") for n in range(count)]


@given(st.permutations([(concept.concept, style) for concept in _concepts(80) for style in STYLES]))
def test_splits_do_not_depend_on_order(cells: list[tuple[str, str]]) -> None:
    concepts = _concepts(80)
    expected = assign_splits(sorted(cells), concepts)
    assert assign_splits(cells, concepts[::-1]) == expected
    assert Counter(expected.values())["unseen"] == 60 * 5


def test_variants_and_near_twins_are_never_unseen() -> None:
    labels = [
        "man farmer",
        "woman farmer",
        "tiger",
        "tiger face",
        "red apple",
        "green apple",
        "one o'clock",
        "pear",
    ]
    concepts = [Concept(label, label, (), "objects") for label in labels]
    splits = assign_splits([(label, style) for label in labels for style in STYLES], concepts)
    assert {concept for (concept, _), split in splits.items() if split == "unseen"} == {"pear"}


# --- pictures


def test_red_apple_is_red_on_white(corpus: EmojiCorpus) -> None:
    for style in STYLES:
        picture = corpus.render(corpus.index(f"{style}/red-apple"), 48)
        assert picture.shape == (48, 48, 3)
        assert picture.dtype == np.uint8
        assert (picture[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
        red, green, blue = picture[26:34, 16:32].reshape(-1, 3).mean(0)
        assert red > 160
        assert max(green, blue) < 100


def test_a_wide_drawing_is_centred_in_its_square() -> None:
    svg = square_svg(
        '<rect width="4" height="2" fill="#0000ff"/>', left=0, top=0, width=4, height=2
    )
    picture = render_svg(svg, 4)
    blue, white = [0, 0, 255], [255, 255, 255]
    assert picture.tolist() == [[white] * 4, [blue] * 4, [blue] * 4, [white] * 4]


def _square(color: str) -> str:
    return square_svg(
        f'<rect width="2" height="2" fill="{color}"/>', left=0, top=0, width=2, height=2
    )


@pytest.fixture
def small_corpus(tmp_path: Path) -> EmojiCorpus:
    concepts = _concepts(2)
    pictures = [
        (concepts[0], "noto", _square("#ff0000")),
        (concepts[1], "fluent", _square("#00ff00")),
    ]
    for name, data in build.data_files(concepts, pictures).items():
        (tmp_path / name).write_bytes(data)
    return EmojiCorpus(tmp_path)


def test_render_all_is_cached_and_survives_a_cut_file(
    small_corpus: EmojiCorpus, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first = small_corpus.render_all(3, cache)
    assert isinstance(first, np.memmap)
    assert first[:, 1, 1].tolist() == [[255, 0, 0], [0, 255, 0]]
    path = small_corpus.cache_path(3, cache)
    written = path.stat().st_mtime_ns
    small_corpus.render_all(3, cache)
    assert path.stat().st_mtime_ns == written
    assert small_corpus.render_all(5, cache).shape == (2, 5, 5, 3)
    path.write_bytes(path.read_bytes()[:-1])
    assert np.array_equal(small_corpus.render_all(3, cache), first)
    assert sorted(item.name for item in path.parent.iterdir()) == sorted(
        small_corpus.cache_path(size, cache).name for size in (3, 5)
    )


def test_a_full_disk_is_reported_before_the_first_picture(
    small_corpus: EmojiCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing to a mapped file without blocks would end the process with SIGBUS."""

    def full(file: int, offset: int, num_bytes: int) -> None:
        assert num_bytes == 2 * 3 * 3 * 3
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(FileError, match="No space left on device"):
        small_corpus.render_all(3, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_cache_folder_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, small_corpus: EmojiCorpus
) -> None:
    monkeypatch.setenv("CM3_CACHE", "/somewhere")
    digest = small_corpus.data_sha256[:16]
    assert re.fullmatch(
        rf"/somewhere/emoji/64px-{digest}-resvg_py-[\w.]+\.npy", str(small_corpus.cache_path(64))
    )


# --- concepts


def test_quickstart_and_concrete_lists(corpus: EmojiCorpus) -> None:
    quickstart = select_concepts("quickstart", corpus)
    concrete = select_concepts("concrete", corpus)
    assert len(quickstart) == 100
    starter = select_concepts("starter", corpus)
    assert len(starter) == 40
    assert "red-apple" in starter < quickstart
    assert quickstart < concrete
    assert len(concrete) == 322
    styles = Counter(entry.concept for entry in corpus.entries if entry.split != "unseen")
    assert all(styles[concept] == 5 for concept in quickstart)


def test_own_list_of_concepts(corpus: EmojiCorpus, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("# fruit\nRed apple\n\npear  # a concept\ntiger-face\n")
    assert select_concepts(str(path), corpus) == {"red-apple", "pear", "tiger-face"}
    path.write_text("pear\nred aple\n")
    with pytest.raises(DataError) as caught:
        select_concepts(str(path), corpus)
    assert tells(caught.value, f"{path}, line 2: the emoji corpus ... 'red aple' ... 'red apple'")
    with pytest.raises(DataError) as caught:
        select_concepts("quikstart", corpus)
    assert tells(caught.value, "dataset.concepts: 'quikstart' is neither ... 'quickstart'")


# --- captions


@pytest.mark.parametrize(
    ("template", "label", "expected"),
    [
        ("{label}, {style} style", "red apple", "red apple, noto style"),
        ("a {label}", "red apple", "a red apple"),
        ("a {label}", "octopus", "an octopus"),
        ("a {label}", "unicorn", "a unicorn"),
        ("a {label}", "umbrella", "an umbrella"),
        ("a {label} in {style} style", "airplane", "an airplane in noto style"),
        ("A {category} picture: {tags}", "pear", "A food and drink picture: fruit, school"),
        ("a drawing of {label}", "owl", "a drawing of owl"),
    ],
)
def test_captions_by_hand(template: str, label: str, expected: str) -> None:
    entry = EmojiEntry("noto/x", "x", label, APPLE.tags, "noto", APPLE.category, "train")
    assert caption(entry, None, [CaptionTemplate(template)]) == expected


@given(st.integers(0, 2**32 - 1))
def test_a_caption_is_a_function_of_the_generator(seed: int) -> None:
    drawn = [caption(APPLE, np.random.default_rng(seed)) for _ in range(2)]
    assert drawn[0] == drawn[1]
    known = {"red apple, noto style", "red apple", "a red apple", "a red apple in noto style"}
    assert drawn[0] in known


def test_templates_are_drawn_by_weight() -> None:
    rng = np.random.default_rng(0)
    counts = Counter(caption(APPLE, rng) for _ in range(4000))
    shares = [0.7, 0.1, 0.1, 0.1]
    texts = [caption(APPLE, None, [template]) for template in DEFAULT_TEMPLATES]
    for text, share in zip(texts, shares, strict=True):  # five standard deviations
        assert abs(counts[text] / 4000 - share) < 5 * (share * (1 - share) / 4000) ** 0.5


# --- documents


def test_documents_of_the_source(corpus: EmojiCorpus) -> None:
    source = EmojiSourceConfig(
        concepts="quickstart", styles=["noto", "fluent"], image_size=32, cache_dir="/nowhere"
    ).build()
    index = [source.id(i) for i in range(len(source))].index("noto/red-apple")
    assert source.group(index) == "red-apple"
    text, picture = source.document(index)
    assert text == Text("red apple, noto style")
    assert isinstance(picture, Image)
    assert picture.key.endswith("-32px/noto/red-apple")
    assert np.array_equal(picture.load(), corpus.render(corpus.index("noto/red-apple"), 32))
    again = source.document(index, np.random.default_rng(3))
    assert again == source.document(index, np.random.default_rng(3))
    assert again[1] == picture
    assert not source.skipped


def test_splits_of_the_source_partition_all() -> None:
    ids = {
        split: [source.id(i) for i in range(len(source))]
        for split in ("train", "comp", "unseen", "all")
        for source in [EmojiSourceConfig(split=split).build()]
    }
    assert sorted(ids["train"] + ids["comp"] + ids["unseen"]) == sorted(ids["all"])


def test_fingerprint_names_the_pictures_not_the_captions() -> None:
    base = EmojiSourceConfig(concepts="quickstart")
    other_text = EmojiSourceConfig(
        concepts="quickstart", templates=["{label}"], template_weights=[1.0]
    )
    other_size = EmojiSourceConfig(concepts="quickstart", image_size=32)
    other_split = EmojiSourceConfig(concepts="quickstart", split="comp")
    prints = [config.build().fingerprint for config in (base, other_text, other_size, other_split)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"split": "trian"},
            "dataset.split: the emoji corpus ... 'trian' ... 'train'",
        ),
        (
            {"styles": ["notto"]},
            "dataset.styles: the emoji corpus ... 'notto' ... 'noto'",
        ),
        (
            {"image_size": 0},
            "dataset.image_size: is 0, must ... least 1",
        ),
        (
            {"templates": ["{label}"]},
            "dataset.template_weights: 4 weights for 1",
        ),
        (
            {"templates": ["{lable}"], "template_weights": [1.0]},
            "dataset.templates: the template '{lable}' ... 'label'",
        ),
        (
            {"templates": ["{label}"], "template_weights": [0.0]},
            "dataset.templates: the template '{label}' ... weight 0.0",
        ),
    ],
)
def test_wrong_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        EmojiSourceConfig(**values).build()
    assert tells(caught.value, message)


def test_the_config_is_light() -> None:
    code = "import sys, cm3plugins.datasets.emoji; sys.exit(bool({'torch', 'resvg_py', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- rebuilding


def test_join_by_code_point_and_by_name() -> None:
    names = {
        "🍎": {"name": "red apple", "slug": "red_apple", "group": "Food & Drink"},
        "☎\ufe0f": {"name": "telephone", "slug": "telephone", "group": "Objects"},
        "🇫🇷": {"name": "flag France", "slug": "flag_france", "group": "Flags"},
        "🎯": {"name": "bullseye", "slug": "bullseye", "group": "Activities"},
    }
    concepts = read_concepts(names, {"🍎": ["red_apple", "fruit", ":)", "fruit"]})
    assert list(concepts)[:4] == ["1f34e", "260e", "1f3af", "1f1e6"]
    assert concepts["1f34e"] == Concept("red-apple", "red apple", ("fruit",), "food and drink")
    known = names_of_concepts(names, concepts, [{"1f3af": "direct-hit"}])
    with_codepoints = match_icons(
        {}, {"1f34e": "apple", "260e": "phone", "1f1eb-1f1f7": "flag"}, known
    )
    assert with_codepoints == {"1f34e": "apple", "260e": "phone"}
    icons = {
        "icons": {"direct-hit": {}, "phone": {}, "odd": {}},
        "aliases": {"telephone": {"parent": "phone"}},
    }
    assert match_icons(icons, {}, known) == {"1f3af": "direct-hit", "260e": "phone"}


def test_clean_label() -> None:
    assert clean_label("Japanese “free of charge” button") == "japanese free of charge button"
    assert clean_label("woman’s boot") == "woman's boot"
    assert clean_label("family man, woman, boy") == "family man woman boy"


def test_mirrored_alias() -> None:
    body = '<rect width="1" height="2" fill="#ff0000"/>'
    icons = {"width": 2, "height": 2, "icons": {"left": {"body": body}}}
    icons["aliases"] = {"right": {"parent": "left", "hFlip": True}}
    left, right = render_svg(icon_svg(icons, "left"), 2), render_svg(icon_svg(icons, "right"), 2)
    assert left[0].tolist() == [[255, 0, 0], [255, 255, 255]]
    assert np.array_equal(right, left[:, ::-1])


def test_exact_duplicates_are_dropped_and_bytes_repeat() -> None:
    concepts = _concepts(3)
    pictures = [
        (concept, "noto", _square(color))
        for concept, color in zip(concepts, ["red", "#ff0000", "blue"], strict=True)
    ]
    kept = build.drop_duplicates(pictures)
    assert [concept.concept for concept, _, _ in kept] == ["c0", "c2"]
    assert build.data_files(concepts, kept) == build.data_files(concepts, kept)


def test_build_without_npm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.main(["--tarballs", str(tmp_path / "none")]) == 2
    assert tells(
        capsys.readouterr().err, f"error: {tmp_path}/none: iconify-json-noto-1.2.9.tgz and 6"
    )


def test_build_with_another_tarball(tmp_path: Path) -> None:
    (tmp_path / NAMES_PACKAGE.tarball).write_bytes(b"")
    with pytest.raises(DataError) as caught:
        build.open_package(tmp_path, NAMES_PACKAGE)
    assert tells(
        caught.value,
        f"{tmp_path}/unicode-emoji-json-0.9.0.tgz: SHA-256 is e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    )


# --- the fixture of 128 tiles


@pytest.mark.parametrize("size", [1, 32, 100])
def test_the_renderer_draws_at_the_size_asked_for(size: int) -> None:
    """resvg_py below 0.2.2 draws at the document's own size."""
    svg = square_svg(
        '<rect width="128" height="128" fill="#0f0"/>', left=0, top=0, width=128, height=128
    )
    assert render_svg(svg, size).shape == (size, size, 3)


def test_fixture_holds_the_corpus_pictures(corpus: EmojiCorpus) -> None:
    facts = json.loads((FIXTURE / "captions.json").read_text())
    with Picture.open(FIXTURE / "atlas.png") as picture:
        atlas = np.asarray(picture)
    assert atlas.shape == (8 * TILE, COLUMNS * TILE, 3)
    assert (facts["tile"], facts["columns"], len(facts["tiles"])) == (TILE, COLUMNS, 128)
    for position, tile in enumerate(facts["tiles"]):
        index = corpus.index(tile["id"])
        entry = corpus.entries[index]
        assert tile["caption"] == caption(entry)
        assert entry.split == "train"
        row, column = divmod(position, COLUMNS)
        pixels = atlas[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        difference = np.abs(pixels.astype(int) - corpus.render(index, TILE))
        assert difference.mean() < 1  # another version of the renderer may smooth edges otherwise
    assert {path.name for path in FIXTURE.iterdir()} >= {"Apache-2.0.txt", "MIT-fluentui-emoji.txt"}


def test_a_source_draws_only_its_own_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole corpus takes minutes, a recipe on 40 concepts needs a thirtieth of it."""
    drawn: list[int] = []

    def render(corpus: EmojiCorpus, index: int, size: int) -> np.ndarray:
        drawn.append(index)
        return np.full((size, size, 3), index % 251, np.uint8)

    monkeypatch.setattr(EmojiCorpus, "render", render)
    config = EmojiSourceConfig(concepts="starter", image_size=4, cache_dir=str(tmp_path))
    source = config.build()
    loaded = [pixels_of(source, index) for index in range(len(source))]
    assert set(drawn) == {source.corpus.index(source.id(index)) for index in range(len(source))}
    assert len(drawn) <= 64 + len(source) < len(source.corpus)
    for index, pixels in enumerate(loaded):
        expected = source.corpus.index(source.id(index)) % 251
        assert pixels.shape == (4, 4, 3)
        assert (pixels == expected).all()
    drawn.clear()
    again = config.build()
    for index in range(len(again)):
        assert np.array_equal(pixels_of(again, index), loaded[index])
    assert drawn == []
    (whole,) = (tmp_path / "emoji").iterdir()
    assert whole != source.corpus.cache_path(4, tmp_path)
    source.corpus.render_all(4, tmp_path)
    drawn.clear()
    whole_used = config.build()
    assert np.array_equal(pixels_of(whole_used, 5), loaded[5])
    assert drawn == []


def pixels_of(source: Any, index: int) -> np.ndarray:
    picture = source.document(index)[1]
    assert isinstance(picture, Image)
    pixels: np.ndarray = picture.load()
    return pixels
