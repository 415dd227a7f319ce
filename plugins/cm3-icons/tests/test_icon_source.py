"""Data set `icons`: the kit, captions, choices, the cache, and wrong values."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import Image, Text, text_of
from cm3core.errors import CM3Error, DataError, RecipeError
from cm3core.interfaces.dataset import DocumentSource, Provenance
from cm3icons.data import SPLITS_OF, HeldOut, IconSourceConfig
from cm3icons.data import source as source_module
from cm3icons.data.captions import DEFAULT_TEMPLATES, FIELDS, caption, made_up_title
from cm3icons.data.corpus import IconCorpus, IconEntry
from cm3icons.data.sets import EMOJI_TITLES, STYLE_WORDS, all_sets
from cm3kits.dataset import DocumentSourceContract
from cm3plugins.datasets.emoji import EmojiSourceConfig
from cm3plugins.datasets.vector.captions import CaptionTemplate
from icon_corpora import write_corpus
from messages import tells
from profiles import examples

BELL = IconEntry("ph/bell-slash", "bell slash", "outline rounded", ("mute", "alarm"), "train")


class TestIcons(DocumentSourceContract):
    max_examples = examples(5)

    def make(self) -> DocumentSource:
        return IconSourceConfig(sets=["lucide", "emoji-noto"], split="unseen").build()


def pixels(source: Any, index: int) -> np.ndarray:
    picture = source.document(index)[1]
    assert isinstance(picture, Image)
    loaded: np.ndarray = picture.load()
    return loaded


# --- captions


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{words}, {style}, {set}", "bell slash, outline rounded, phosphor"),
        ("{style} {words}", "outline rounded bell slash"),
        ("a {words}", "a bell slash"),
        ("{other}", "bell slash"),
    ],
)
def test_captions_by_hand(template: str, expected: str) -> None:
    assert caption(BELL, None, [CaptionTemplate(template)]) == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{words}, {style}, {set}", "bell slash, phosphor"),
        ("{words}, {style}", "bell slash"),
        ("{style} {words}", "bell slash"),
        ("{style}", "bell slash"),
    ],
)
def test_a_caption_without_style_has_no_gap(template: str, expected: str) -> None:
    assert caption(BELL._replace(style=""), None, [CaptionTemplate(template)]) == expected


NAMES = st.lists(st.from_regex(r"[a-z0-9]{1,6}", fullmatch=True), min_size=1, max_size=3)
ENTRIES = st.builds(
    lambda set_name, words, style, tags: IconEntry(
        f"{set_name}/{'-'.join(words)}",
        " ".join(words),
        " ".join(word for word in STYLE_WORDS if word in style),
        tuple(" ".join(tag) for tag in tags),
        "train",
    ),
    st.sampled_from([*all_sets(), "emoji-noto", "mine"]),
    NAMES,
    st.sets(st.sampled_from(STYLE_WORDS), max_size=3),
    st.lists(NAMES, max_size=3),
)


@given(ENTRIES, st.integers(0, 2**32 - 1))
def test_a_caption_names_the_thing_and_is_a_function_of_the_generator(
    entry: IconEntry, seed: int
) -> None:
    drawn = caption(entry, np.random.default_rng(seed))
    assert drawn == caption(entry, np.random.default_rng(seed))
    assert any(name in drawn for name in (entry.words, *entry.tags))
    assert drawn == " ".join(drawn.split()).strip(", ")
    assert "{" not in drawn
    assert ", ," not in drawn
    assert caption(entry).startswith(entry.words)


def test_templates_are_drawn_by_weight() -> None:
    rng = np.random.default_rng(0)
    counts = Counter(caption(BELL._replace(tags=()), rng) for _ in range(4000))
    texts: Counter[str] = Counter()
    for template in DEFAULT_TEMPLATES:
        texts[caption(BELL, None, [template])] += round(template.weight * 100)
    assert set(counts) == set(texts)
    for text, percent in texts.items():
        share = percent / 100  # five standard deviations
        assert abs(counts[text] / 4000 - share) < 5 * (share * (1 - share) / 4000) ** 0.5


@given(st.integers(0, 2**32 - 1), st.sampled_from(["lucide", "phosphor", "Font Awesome 6"]))
def test_a_made_up_title_is_the_same_throughout_a_sequence(seed: int, title: str) -> None:
    captions = np.random.default_rng((seed, 0, 7))
    first = made_up_title(title, captions, 1.0)
    captions.random(5)  # what other captions draw
    assert made_up_title(title, captions, 1.0) == first != title
    assert made_up_title("tabler", captions, 1.0) != first
    assert first.isalpha()
    assert 4 <= len(first) <= 8
    assert made_up_title(title, captions, 0.0) == title


def test_a_share_of_sequences_renames_sets() -> None:
    titles = [made_up_title("lucide", np.random.default_rng(seed), 0.25) for seed in range(2000)]
    renamed = [title for title in titles if title != "lucide"]
    assert abs(len(renamed) / 2000 - 0.25) < 5 * (0.25 * 0.75 / 2000) ** 0.5
    assert len(set(renamed)) > 0.9 * len(renamed)


def test_only_captions_of_training_rename_sets() -> None:
    values: dict[str, Any] = {"split": "unseen", "sets": ["lucide"]}
    plain, renamed = (IconSourceConfig(**values, renamed_share=share).build() for share in (0, 1))
    assert renamed.document(3) == plain.document(3)
    assert [*renamed.texts()] == [*plain.texts()]
    assert renamed.quick_fingerprint == plain.quick_fingerprint
    own, made_up = (
        [text_of(source.document(index, np.random.default_rng(9))) for index in range(40)]
        for source in (plain, renamed)
    )
    assert any("lucide" in text for text in own)
    assert not any("lucide" in text for text in made_up)
    title = made_up_title("lucide", np.random.default_rng(9), 1.0)
    assert made_up == [text.replace("lucide", title) for text in own]


# --- documents and choices


@pytest.mark.parametrize("style", EMOJI_TITLES)
def test_an_emoji_has_the_provenance_of_the_emoji_corpus(style: str) -> None:
    """The sets `emoji-STYLE` are no npm packages of their own; CC-BY-4.0 asks for the author's name."""
    emoji = EmojiSourceConfig(concepts="all", styles=[style], split="all").build()
    icons = IconSourceConfig(sets=[f"emoji-{style}"], split="all").build()
    assert icons.provenance(0) == replace(emoji.provenance(0), collection=f"emoji-{style}")
    assert icons.provenance(0).attribution


def test_documents_of_the_source() -> None:
    source = IconSourceConfig(sets=["lucide"], image_size=32).build()
    index = [source.id(i) for i in range(len(source))].index("lucide/bell-off")
    text, picture = source.document(index)
    assert text == Text("bell off, outline rounded, lucide")
    assert isinstance(picture, Image)
    assert picture.key.endswith("-32px/lucide/bell-off")
    assert source.group(index) == "bell off"
    assert source.provenance(index) == Provenance(
        "ISC",
        f"npm @iconify-json/lucide {all_sets()['lucide'].version}",
        "Lucide Contributors",
        "lucide",
        "bell-off",
        "https://github.com/lucide-icons/lucide",
    )
    corpus = source.corpus
    assert np.array_equal(picture.load(), corpus.render(corpus.index("lucide/bell-off"), 32))
    assert source.document(index, np.random.default_rng(3))[1] == picture
    assert not source.skipped


@pytest.mark.parametrize("held_out", SPLITS_OF)
def test_splits_partition_all(held_out: HeldOut) -> None:
    of_split = {
        split: {source.id(i) for i in range(len(source))}
        for split in SPLITS_OF[held_out]
        for source in [IconSourceConfig(split=split, held_out=held_out).build()]
    }
    whole = of_split.pop("all")
    assert sum(map(len, of_split.values())) == len(whole) == len(IconCorpus())
    assert set().union(*of_split.values()) == whole


def test_sets_styles_and_a_share_of_things() -> None:
    source = IconSourceConfig(sets=["ph", "solar"], styles=["rounded", "duotone"]).build()
    entries = [source.entry(i) for i in range(len(source))]
    assert {entry.set_name for entry in entries} == {"ph", "solar"}
    assert all({"rounded", "duotone"} <= set(entry.style.split()) for entry in entries)
    whole = IconSourceConfig().build()
    some = IconSourceConfig(things_share=0.1).build()
    things, chosen = ({s.group(i) for i in range(len(s))} for s in (whole, some))
    assert 0.08 < len(chosen) / len(things) < 0.12
    assert len(some) == sum(whole.group(i) in chosen for i in range(len(whole)))


def test_fingerprint_names_the_pictures_not_the_captions() -> None:
    base = {"sets": ["eva"]}
    changes: list[dict[str, Any]] = [
        {},
        {"templates": ["{words}"], "template_weights": [1.0]},
        {"image_size": 32},
        {"split": "near"},
        {"held_out": "by_name"},
    ]
    prints = [IconSourceConfig(**base, **change).build().fingerprint for change in changes]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4


def test_quick_fingerprint_changes_with_captions_too(monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"sets": ["eva"]}
    changes: list[dict[str, Any]] = [
        {},
        {"templates": ["{words}"], "template_weights": [1.0]},
        {"image_size": 32},
        {"split": "near"},
        {"held_out": "by_name"},
        {"sets": ["lucide"]},
    ]
    prints = [IconSourceConfig(**base | change).build().quick_fingerprint for change in changes]
    assert len(set(prints)) == len(changes)
    assert IconSourceConfig(**base).build().quick_fingerprint == prints[0]
    monkeypatch.setattr(source_module, "caption", lambda entry, *_: f"{entry.words} differently")
    assert IconSourceConfig(**base).build().quick_fingerprint != prints[0]


# --- cache


def test_a_look_at_some_draws_only_these_and_a_whole_cache_serves_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def render(corpus: IconCorpus, index: int, size: int) -> np.ndarray:
        drawn.append(index)
        return np.full((size, size, 3), index % 251, np.uint8)

    monkeypatch.setattr(IconCorpus, "render", render)
    monkeypatch.setattr(source_module, "DRAW_ALL_AFTER", 8)
    config = IconSourceConfig(
        sets=["eva", "emoji-noto"], split="unseen", image_size=2, cache_dir=str(tmp_path)
    )
    source = config.build()
    for index in range(8):
        pixels(source, index)
    assert len(drawn) == 8
    assert not list(tmp_path.iterdir())
    loaded = [pixels(source, index) for index in range(len(source))]
    assert len(drawn) == 8 + len(source)
    for index, picture in enumerate(loaded):
        assert (picture == source.corpus.index(source.id(index)) % 251).all()
    drawn.clear()
    again = config.build()
    assert all(np.array_equal(pixels(again, i), loaded[i]) for i in range(len(again)))
    source.corpus.pictures(2, tmp_path)
    drawn.clear()
    other = IconSourceConfig(sets=["lucide"], image_size=2, cache_dir=str(tmp_path)).build()
    assert (pixels(other, 3) == source.corpus.index(other.id(3)) % 251).all()
    assert drawn == []


# --- wrong values


KNOWN_SETS = ", ".join((*all_sets(), *(f"emoji-{style}" for style in EMOJI_TITLES)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"split": "unsen"},
            "dataset.split: is 'unsen' ... 'unseen'",
        ),
        (
            {"sets": ["lucid"]},
            f"dataset.sets: the icon corpus ... 'lucid' ... 'lucide' ... {KNOWN_SETS}",
        ),
        (
            {"styles": ["outlined"]},
            "dataset.styles: the icon corpus ... 'outlined' ... 'outline'",
        ),
        (
            {"image_size": 0},
            "dataset.image_size: is 0, must ... least 1",
        ),
        (
            {"renamed_share": 1.5},
            "dataset.renamed_share: is 1.5, must be at most 1",
        ),
        (
            {"templates": ["{words}"]},
            "dataset.template_weights: 7 weights for 1",
        ),
        (
            {"templates": ["{word}"], "template_weights": [1.0]},
            f"dataset.templates: the template '{{word}}' ... 'words' ... {', '.join(FIELDS)}",
        ),
        (
            {"templates": [], "template_weights": []},
            "dataset.templates: there is no caption template",
        ),
    ],
)
def test_wrong_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        IconSourceConfig(**values).build()
    assert tells(caught.value, message)


def test_a_choice_that_leaves_nothing() -> None:
    with pytest.raises(DataError) as caught:
        IconSourceConfig(sets=["lucide"], styles=["filled"]).build()
    assert tells(caught.value, "dataset: no icon is ... 'train' ... 'lucide' ... 'filled'")


def test_a_path_that_holds_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(CM3Error) as caught:
        IconSourceConfig(path=str(tmp_path)).build()
    assert tells(caught.value, f"{tmp_path}/manifest.json: the file can't be read (No")


def test_a_set_that_the_folder_lacks_is_named(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    with pytest.raises(CM3Error) as caught:
        IconSourceConfig(path=str(tmp_path), sets=["onn"]).build()
    assert tells(caught.value, "dataset.sets: the icon corpus ... 'onn' ... 'one'")
    source = IconSourceConfig(path=str(tmp_path), sets=["one"]).build()
    assert source.document(0)[0] == Text("bell, outline, Set One")
