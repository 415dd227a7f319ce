"""The tables and the picture of docs/icons.md, made from the bundled icon corpus.

`python docs/_generate.py` writes the tables, `python docs/_icons.py` the picture.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

from cm3core.images import PixelArray, save_png
from cm3icons.data.captions import caption
from cm3icons.data.closed import CLOSED_SPLITS
from cm3icons.data.corpus import IconCorpus
from cm3icons.data.sets import STYLE_WORDS
from cm3icons.data.splits import SPLITS
from cm3run.sheets import grid

COMMAND = "python docs/_icons.py"
PICTURE = Path(__file__).parent / "images" / "icons-corpus.png"
HELD_OUT = Path(__file__).parent / "figures" / "held-out.json"
COPIED = Path(__file__).parent / "figures" / "closed.json"
ANSWERS = Path(__file__).parent / "figures" / "answers.json"
SIZE = 64
NUM_COLUMNS = 9
THING = "lock"
"""Shown in many versions."""


def tables() -> dict[str, list[str]]:
    """The tables of the page, by name: their lines."""
    corpus = IconCorpus()
    return {
        "closed splits": _closed_splits(),
        "copied": _copied(),
        "answers": _answers(),
        "splits": _splits(corpus),
        "held out": _held_out(),
        "styles": _styles(corpus),
        "sets": _sets(corpus),
    }


def _splits(corpus: IconCorpus) -> list[str]:
    things = defaultdict(set)
    for entry in corpus.entries:
        things[entry.split].add(entry.words)
    meaning = {
        "train": "the rest",
        "comp": "held-out drawings; `train` has the name in another set or style",
        "compose": "held-out pairs of words; `train` has both, never in one name",
        "unseen": "held-out names, in every version",
    }
    return ["| split | icons | names | |", "| --- | --- | --- | --- |"] + [
        f"| `{split}` | {corpus.manifest.num_of_split[split]:,} | {len(things[split]):,} | "
        f"{meaning[split]} |"
        for split in SPLITS
    ]


def _closed_splits() -> list[str]:
    corpus = IconCorpus(held_out="closed")
    things = defaultdict(set)
    for entry in corpus.entries:
        things[entry.split].add(entry.words)
    number = Counter(corpus.entries.splits)
    meaning = {
        "train": "the rest",
        "unseen": "objects, by word; no name or tag in `train` has the word, contains it or means it",
        "compose": "two words together; `train` has each of them, never both in one name or tag",
        "restyle": "an object in one designer's sets; other designers draw it in `train`",
        "variant": "a set's own other drawing, such as `bell off` or `bell` filled; its base is in `train`",
        "strangers": "whole sets",
        "near": "neither trained nor a test case: shows something that is held out, or looks too common",
    }
    return ["| split | icons | names | |", "| --- | --- | --- | --- |"] + [
        f"| `{split}` | {number[split]:,} | {len(things[split]):,} | {meaning[split]} |"
        for split in CLOSED_SPLITS
    ]


#: What is right for the prompts of docs/figures/answers.json.
_RIGHT = {
    "train": "found",
    "restyle": "restyled",
    "variant": "restyled or composed",
    "strangers": "restyled or composed",
    "unseen": "composed",
    "compose": "composed",
    "everyday": "of 60 everyday prompts, in other words than the names",
}


def _answers() -> list[str]:
    """What captions of each split are answered with."""
    counts = json.loads(ANSWERS.read_text(encoding="utf-8"))["counts"]
    rows = [
        "| captions of | right | found | restyled | composed |",
        "| --- | --- | --- | --- | --- |",
    ]
    for split, own in counts.items():
        told = " | ".join(str(own.get(kind, 0)) for kind in ("found", "restyled", "composed"))
        name = f"`{split}`" if split != "everyday" else "(everyday)"
        rows.append(f"| {name} | {_RIGHT[split]} | {told} |")
    return rows


def _copied() -> list[str]:
    """What copies of training icons score, as `docs/_closed.py` measured it."""
    found = json.loads(COPIED.read_text(encoding="utf-8"))
    return [
        "| `held_out` | split | icons | R@1 | R@5 | nearly the true drawing |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| `{way}` | `{split}` | {own['num']} | {own['r1']:.3f} | {own['r5']:.3f} | "
            f"{own['near_copies']:.1%} |"
            for way, splits in found["copied"].items()
            for split, own in splits.items()
        ),
    ]


def _held_out() -> list[str]:
    """What "held out by name" means, as `docs/_held_out.py` measured it."""
    found = json.loads(HELD_OUT.read_text(encoding="utf-8"))
    names, pictures = found["names"], found["pictures"]
    things = (names["things"], "objects of `unseen`")
    near = ", ".join(
        f"`{pair['held_out']}` and `{pair['train']}`" for pair in pictures["near_duplicates"]
    )
    return [
        "| held out by name, but | of | number |",
        "| --- | --- | --- |",
        *(
            f"| {what} | {of:,} {unit} | {number:,} ({number / of:.{0 if number > of / 100 else 2}%}) |"
            for what, of, unit, number in (
                ("the name is a tag of a `train` icon", *things, names["things_tagged"]),
                (
                    "the name is part of a longer one in `train` (fuel pump diesel)",
                    *things,
                    names["things_inside"],
                ),
                ("one of the two", *things, names["things_either"]),
                ("one of the two", names["icons"], "icons of `unseen`", names["icons_either"]),
                (
                    "`train` has the same drawing in another place or size",
                    pictures["comp_icons"],
                    "icons of `comp`",
                    pictures["comp_same_drawing"],
                ),
                (
                    f"`train` has nearly the same picture ({near})",
                    pictures["held_out_icons"],
                    "held-out icons",
                    len(pictures["near_duplicates"]),
                ),
            )
        ),
    ]


def _styles(corpus: IconCorpus) -> list[str]:
    number = Counter(word for entry in corpus.entries for word in entry.style.split())
    return ["| word | icons |", "| --- | --- |"] + [
        f"| `{word}` | {number[word]:,} |" for word in STYLE_WORDS
    ]


def _sets(corpus: IconCorpus) -> list[str]:
    """One row for each licence."""
    sets: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(entry.set_name for entry in corpus.entries):
        title = corpus.manifest.title(name)
        shown = f"`{name}`" if title == name else f"`{name}` ({title})"
        sets[corpus.manifest.licences[name]].append(shown)
    return ["| licence | sets (name in captions) |", "| --- | --- |"] + [
        f"| {licence} | {', '.join(names)} |" for licence, names in sorted(sets.items())
    ]


def picture(corpus: IconCorpus) -> PixelArray:
    """One thing in versions of different styles and sets, and samples of the splits, with their captions."""
    versions = [i for i, entry in enumerate(corpus.entries) if entry.words == THING]
    chosen: dict[tuple[str, str], int] = {}
    for index in versions:
        entry = corpus.entries[index]
        chosen.setdefault((entry.style, corpus.title(index)), index)
    shown = _spread(sorted(chosen.values()), 2 * NUM_COLUMNS)
    rows, labels = (
        [shown[:NUM_COLUMNS], shown[NUM_COLUMNS:]],
        [f"{THING}, in some of {len(versions)} versions", ""],
    )
    for split in SPLITS:
        of_split = [i for i, entry in enumerate(corpus.entries) if entry.split == split]
        rows.append(_spread(of_split, NUM_COLUMNS))
        labels.append(split)
    return grid(
        [[corpus.render(index, SIZE) for index in row] for row in rows],
        row_labels=labels,
        captions=[[caption(corpus.entries[index]) for index in row] for row in rows],
        scale=1,
        gap=12,
        font_size=11,
        label_width=80,
    )


def _spread(indices: list[int], num: int) -> list[int]:
    """Some of them, evenly."""
    step = max(len(indices) / num, 1)
    return [indices[int((position + 0.5) * step)] for position in range(min(num, len(indices)))]


if __name__ == "__main__":
    save_png(PICTURE, picture(IconCorpus()))
