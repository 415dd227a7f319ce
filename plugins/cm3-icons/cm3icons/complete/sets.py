"""The set to complete: a folder of a user's SVG files, or a set of the model's memory. What it has, and its hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from cm3core.errors import DataError, close_match
from cm3icons.complete.hand import Hand
from cm3icons.data import IconSourceConfig
from cm3icons.data.sets import all_sets
from cm3plugins.datasets.svg_folder.names import KINDS, kind_of, style_of
from cm3plugins.datasets.svg_folder.reading import SvgFile, parsed
from cm3plugins.datasets.svg_folder.source import Chosen, SvgFolder
from cm3run.words import words_of

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import DocumentSource, DocumentSourceConfig, SkippedRecord

#: Fewer drawings don't show a hand.
LEAST = 5
#: The most drawings of a set of the memory from which its hand is measured.
_MEASURED = 400
#: Share of a folder's drawings from which it has one style: of six folders looked at, four had 76 to 89% in one kind, and
#: two that have most things in several styles 54 and 55%.
_PREVAILING = 0.7
#: Drawings of a larger folder whose kinds are looked at first: each takes milliseconds.
_LOOKED_AT = 300
#: Pixels per side of the pictures of a folder's drawings.
_SIDE = 64


@dataclass(frozen=True, eq=False)
class OwnSet:
    """A set of icons in one hand.

    Args:
        place: how the command names it.
        source: its drawings as documents.
        hand: measured from them.
        style, title: how captions name its style and the set.
        places: what the set has: a thing, as its words -> index into the source; None: the drawing can't be used.
        skipped: files that can't be used.
        folder: of its files; None: a set of the memory.
        note: what users should know about the choice of its drawings; "": nothing.
    """

    place: str
    source: DocumentSource
    hand: Hand
    style: str
    title: str
    places: Mapping[tuple[str, ...], int | None]
    skipped: Sequence[SkippedRecord]
    folder: Path | None = None
    note: str = ""

    def caption(self, name: str) -> str:
        """The caption of a thing in this set, which is the prompt for it."""
        return ", ".join(filter(None, (name, self.style, self.title)))

    def has(self, name: str) -> bool:
        """Whether the set has a thing of this name already."""
        return tuple(words_of(name)) in self.places

    def index(self, name: str) -> int | None:
        """Position of the drawing of this name; None: there is none, or it can't be used."""
        return self.places.get(tuple(words_of(name)))


def open_set(
    name: str,
    memory: DocumentSourceConfig | None,
    style: str | None,
    title: str | None,
    *,
    is_folder: bool | None = None,
) -> OwnSet:
    """Open a set.

    Args:
        name: a folder, or a set of the memory.
        memory: the model's memory; None: it has none.
        style, title: instead of the set's own in captions.
        is_folder: whether the name is that of a folder; None: it is if there is one now.

    Raises:
        DataError: there is neither such a folder nor such a set, or it has too few usable drawings.
    """
    # the bundled sets alone: a stranger's model may name any path for its corpus
    known = all_sets() if isinstance(memory, IconSourceConfig) else {}
    if Path(name).is_dir() if is_folder is None else is_folder:
        found = _of_folder(name, style, title)
    elif name in known:
        found = _of_memory(name, style, title)
    else:
        cause = "is neither a folder nor a set of the model's memory"
        hint = f"; {close_match(name, known)}" if known else ""
        step = "name a folder of SVG files"
        raise DataError(
            f"SET {name}", cause + hint, step + (", or a set such as lucide" if known else "")
        )
    return found


def _of_folder(name: str, style: str | None, title: str | None) -> OwnSet:
    source = SvgFolder(name, Chosen("all", 0.0, style, title), _SIDE)
    _check_number(name, len(source), source.skipped)
    source, note = _in_one_style(source, style)
    places: dict[tuple[str, ...], int | None] = {tuple(words_of(one)): None for one in source.names}
    places |= {tuple(words_of(one.name)): index for index, one in enumerate(source.entries)}
    return OwnSet(
        name,
        source,
        Hand.of([one.file for one in source.entries]),
        source.style,
        source.title,
        places,
        source.skipped,
        source.folder,
        note,
    )


def _in_one_style(source: SvgFolder, style: str | None) -> tuple[SvgFolder, str]:
    """Of a folder that mixes drawings in lines with filled ones, those of the asked or the most frequent kind, and a note
    on it; else all: where one kind prevails, drawings of the other kind are of the same hand."""
    asked = next((one for one in KINDS if style is not None and one in style.split()), None)
    parts = [source.entries]
    if len(source.entries) > _LOOKED_AT:  # at random: names in order alternate between kinds
        parts.insert(0, Random(0).sample(source.entries, _LOOKED_AT))
    for entries in parts:
        kinds = [kind_of(one.file) for one in entries]
        counts = Counter(kinds)
        kind = asked or counts.most_common(1)[0][0]
        if counts[kind] >= _PREVAILING * len(kinds):
            return source, ""
    if counts[kind] < LEAST:
        return source, ""
    part = source.only([one for one, own in zip(source.entries, kinds, strict=True) if own == kind])
    others = [one for one in KINDS if one != kind and counts[one] >= LEAST]
    if style is None:
        part.style = style_of([one.file for one in part.entries])
    note = f"{source.folder} has {len(kinds):,} drawings; the {len(part):,} in the style {kind!r} show the hand"
    return part, note + (
        f"; --style takes another: {', '.join(map(repr, others))}" if others else ""
    )


def _check_number(name: str, number: int, skipped: Sequence[SkippedRecord]) -> None:
    """Raise `DataError` for a folder with too few drawings that can be used, with the usual reason."""
    if number >= LEAST:
        return
    have = "no drawing" if number == 0 else "1 drawing" if number == 1 else f"{number} drawings"
    cause = f"has {have} that can be used, and a hand shows in {LEAST} or more"
    causes = Counter(one.cause for one in skipped)
    if causes:
        [(usual, times)] = causes.most_common(1)
        cause += f"; {sum(causes.values())} files were skipped, {times} of them because: {usual}"
    raise DataError(f"SET {name}", cause, "name a folder with more plain SVG files in one colour")


def _of_memory(name: str, style: str | None, title: str | None) -> OwnSet:
    """A set of the memory in one style: the asked one, else the most frequent."""
    config = IconSourceConfig(split="all", sets=[name])
    every = config.build()
    styles = Counter(every.entry(index).style for index in range(len(every)))
    plain = Counter({one: number for one, number in styles.items() if "colour" not in one.split()})
    if not plain:
        cause = "is drawn in colours, and drawings in several colours are not possible yet"
        raise DataError(f"SET {name}", cause, "name another set")
    note = ""
    if style is None:
        [(style, _)] = plain.most_common(1)
        if others := [repr(one) for one in styles if one != style]:
            note = f"{name} is completed in the style {style!r}; --style takes another: {', '.join(others)}"
    elif style not in styles:
        cause = f"has no drawings in the style {style!r}; {close_match(style, styles)}"
        raise DataError(f"SET {name}", cause, f"use one of {', '.join(map(repr, styles))}")
    unwanted = {word for one in styles for word in one.split()} - set(style.split())
    source = replace(
        config, styles=[*style.split(), *(f"-{one}" for one in sorted(unwanted))]
    ).build()
    step = max(1, len(source) // _MEASURED)
    files = list(_plain(source.original(index).content for index in range(0, len(source), step)))
    if not files:
        cause = "has only drawings with more than plain shapes, which show no hand"
        raise DataError(f"SET {name}", cause, "name another set")
    places: dict[tuple[str, ...], int | None] = {}
    for index in range(len(source)):
        places.setdefault(tuple(words_of(source.group(index))), index)
    return OwnSet(
        name,
        source,
        Hand.of(files),
        style,
        source.corpus.manifest.title(name) if title is None else title,
        places,
        (),
        None,
        note,
    )


def _plain(contents: Iterable[bytes]) -> Iterator[SvgFile]:
    """Yield those drawings that are plain shapes in one paint; a hand shows in these."""
    for content in contents:
        with suppress(DataError):
            yield parsed(content)
