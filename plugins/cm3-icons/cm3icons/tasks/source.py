"""The records of each form as data sets.

Pairs are versions of an icon, matched by name: another style, or with and without a badge. Scenes are two to four icons
in boxes, determined by split and number. Answers to questions about icons and scenes come from names and positions.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from PIL import Image as Pillow

from cm3core.boxes import Boxes, quarter_of
from cm3core.document import Document, Image, PixelArray, Text
from cm3core.errors import DataError
from cm3core.images import fit
from cm3core.interfaces.dataset import DocumentSource
from cm3icons.data import IconSourceConfig
from cm3icons.data.captions import caption
from cm3icons.data.sets import STYLE_WORDS
from cm3icons.data.splits import unit_hash
from cm3icons.tasks import source as questions
from cm3icons.tasks import source as scenes
from cm3plugins.datasets.conversations import ASSISTANT, USER

if TYPE_CHECKING:
    from cm3core.document import PixelArray
    from cm3core.interfaces.task import Record
    from cm3icons.data.corpus import IconCorpus, IconEntry
    from cm3icons.data.source import IconSource

#: Last word of a name -> the instructions that add and remove it.
BADGES = {
    "off": ("cross it out", "remove the slash"),
    "slash": ("cross it out", "remove the slash"),
    "plus": ("add a plus", "remove the plus"),
    "add": ("add a plus", "remove the plus"),
    "minus": ("add a minus", "remove the minus"),
    "check": ("add a check mark", "remove the check mark"),
    "lock": ("add a lock", "remove the lock"),
    "x": ("add a cross", "remove the cross"),
    "heart": ("add a heart", "remove the heart"),
    "star": ("add a star", "remove the star"),
    "alert": ("add an exclamation mark", "remove the exclamation mark"),
    "search": ("add a magnifying glass", "remove the magnifying glass"),
}


class Pair(NamedTuple):
    """Positions of two icons in the corpus, and the instruction that changes the first into the second."""

    source: int
    target: int
    instruction: str


def kind_of(pair: Pair) -> str:
    """Return how the two icons of a pair differ.

    >>> kind_of(Pair(0, 1, "make it filled")), kind_of(Pair(0, 1, "remove the slash"))
    ('style', 'badge')
    """
    return "style" if pair.instruction.startswith("make it ") else "badge"


def pairs_of(entries: Sequence[IconEntry]) -> list[Pair]:
    """Return all pairs of a corpus, in corpus order. If icons of a set have the same words and style, nothing
    distinguishes them, so only the first is used."""
    versions: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for index, entry in enumerate(entries):
        versions[entry.set_name, entry.words].setdefault(entry.style, index)
    return [*_styles(versions), *_badges(versions)]


def _styles(versions: dict[tuple[str, str], dict[str, int]]) -> Iterator[Pair]:
    """Yield pairs of every version with every other one of the same drawing."""
    for styles in versions.values():
        for before, source in styles.items():
            for after, target in styles.items():
                if before != after:
                    yield Pair(source, target, style_change(before, after))


def style_change(before: str, after: str) -> str:
    """Return the instruction that changes one style into another: new words, or else removed ones.

    >>> style_change("outline rounded", "filled rounded"), style_change("filled sharp", "filled")
    ('make it filled', 'make it not sharp')
    """
    new = [word for word in after.split() if word not in before.split()]
    gone = [word for word in before.split() if word not in after.split()]
    return f"make it {' '.join(new)}" if new else f"make it not {' '.join(gone)}"


def _badges(versions: dict[tuple[str, str], dict[str, int]]) -> Iterator[Pair]:
    """Yield pairs of a drawing without and with a badge, in the same style, in both directions."""
    for (set_name, words), styles in versions.items():
        plain, _, badge = words.rpartition(" ")
        if badge not in BADGES or (set_name, plain) not in versions:
            continue
        add, remove = BADGES[badge]
        for style, target in styles.items():
            source = versions[set_name, plain].get(style)
            if source is not None:
                yield Pair(source, target, add)
                yield Pair(target, source, remove)


#: A scene is a grid with this many cells per side and at most one icon per cell; an icon's size in cells.
_CELLS, _SMALLEST, _LARGEST = 2, 0.6, 0.95


class Placed(NamedTuple):
    """An icon of a scene: its position in the corpus, its name, and its box (x0, y0, x1, y1)."""

    icon: int
    name: str
    box: tuple[int, int, int, int]


def scene(
    split: str, number: int, pool: Sequence[tuple[int, str]], size: int
) -> tuple[Placed, ...]:
    """Return the icons of a scene, from left to right.

    Args:
        split, number: the scene.
        pool: (position in the corpus, name) of the icons to choose from.
        size: side of the picture in pixels.
    """
    rng = np.random.default_rng([zlib.crc32(split.encode()), number])
    cells = rng.permutation(_CELLS * _CELLS)[: int(rng.integers(2, _CELLS * _CELLS + 1))]
    placed: list[Placed] = []
    for cell in cells.tolist():
        index, name = pool[int(rng.integers(len(pool)))]
        side = size // _CELLS
        own = int(side * rng.uniform(_SMALLEST, _LARGEST))
        x0 = (cell % _CELLS) * side + int(rng.integers(side - own + 1))
        y0 = (cell // _CELLS) * side + int(rng.integers(side - own + 1))
        if name not in [other.name for other in placed]:
            placed.append(Placed(index, name, (x0, y0, x0 + own, y0 + own)))
    return tuple(sorted(placed, key=lambda one: one.box))


def boxes(placed: Sequence[Placed], size: int) -> Boxes:
    """Return the icons' boxes."""
    return Boxes(tuple((one.name, one.box) for one in placed), (size, size))


def draw(placed: Sequence[Placed], pictures: Sequence[PixelArray], size: int) -> PixelArray:
    """Draw a scene on white, uint8 [size, size, 3]."""
    whole = np.full((size, size, 3), 255, np.uint8)
    for one, picture in zip(placed, pictures, strict=True):
        x0, y0, x1, y1 = one.box
        small = Pillow.fromarray(picture).resize((x1 - x0, y1 - y0), Pillow.Resampling.LANCZOS)
        whole[y0:y1, x0:x1] = np.asarray(small)
    return whole


def in_words(names: Sequence[str]) -> str:
    """Join names in a phrase.

    >>> in_words(["bell", "key", "lock"])
    'bell, key and lock'
    """
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


#: Words of a name for drawings that are crossed out.
_CROSSED = ("off", "slash")
_NUMBERS = ("none", "one", "two", "three", "four")


def about_icon(entry: IconEntry, rng: np.random.Generator) -> tuple[str, str]:
    """Draw a question about an icon and its answer: its name, its style, a slash. Questions about a style have
    equally many yes and no answers."""
    kind = int(rng.integers(4))
    if kind == 0 or not entry.style:
        return "What is it?", entry.words
    if kind == 1:
        return "Is it crossed out?", _yes(any(word in _CROSSED for word in entry.words.split()))
    if kind == 2:
        return "In what style is it drawn?", entry.style
    own = entry.style.split()
    others = [word for word in STYLE_WORDS if word not in own]
    word = str(rng.choice(own if rng.integers(2) else others))
    return f"Is it {word}?", _yes(word in own)


def about_scene(
    placed: Sequence[Placed], size: int, absent: Callable[[], str], rng: np.random.Generator
) -> tuple[str, str]:
    """Draw a question about a scene of `size` pixels per side and its answer: how many objects, where one is,
    whether one is there; `absent`: names that are rarely in the scene."""
    kind = int(rng.integers(3))
    names = [one.name for one in placed]
    if kind == 0 or len(placed) < 2:
        return "How many things are there?", _NUMBERS[len(placed)]
    if kind == 1:
        there = bool(rng.integers(2))
        name = str(rng.choice(names)) if there else absent()
        return f"Is there a {name}?", _yes(name in names)
    return where(placed, size, rng)


def where(placed: Sequence[Placed], size: int, rng: np.random.Generator) -> tuple[str, str]:
    """Return a question where an object of a scene is, and the quarter as its answer."""
    one = placed[int(rng.integers(len(placed)))]
    return f"Where is the {one.name}?", quarter_of(one.box, size)


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


#: Start of instructions that change an outline into a version with the same structure.
_FILLS = ("make it filled", "make it duotone", "make it colour")
#: Name of conditions in the form "structure".
OUTLINE = "an outline"


class Settings(Protocol):
    """The config keys used by the forms."""

    split: str
    path: str | None
    things_share: float
    num_scenes: int
    image_size: int
    cache_dir: str | None

    @property
    def held_out(self) -> Literal["closed", "by_name"]:
        """Which splits the corpus has."""

    @property
    def form(self) -> str:
        """The form."""

    @property
    def changes(self) -> str:
        """Which pairs to use."""

    @property
    def asks(self) -> str:
        """Which questions to use."""


#: By corpus, way of holding out, split, share of objects and picture size: the scenes by number, which a process creates once for
#: all forms.
_SCENES: dict[tuple[str, str, str, str, int], dict[int, tuple[scenes.Placed, ...]]] = {}
#: Number of scenes cached for each: about 60 MB.
_MAX_SCENES = 100_000
_PAIRS: dict[str, list[Pair]] = {}


def _pairs_of(corpus: IconCorpus) -> list[Pair]:
    """Return the corpus' pairs, computed once per process for all forms and splits."""
    if corpus.data_sha256 not in _PAIRS:
        _PAIRS[corpus.data_sha256] = pairs_of(corpus.entries)
    return _PAIRS[corpus.data_sha256]


class IconRecords(DocumentSource):
    """Base of the forms: icons of the corpus, and documents with all fields in order.

    Args:
        config: its split and size.
    """

    def __init__(self, config: Settings) -> None:
        self.config = config
        self.icons: IconSource = IconSourceConfig(
            split="all",
            held_out=config.held_out,
            path=config.path,
            image_size=config.image_size,
            cache_dir=config.cache_dir,
        ).build()
        self.entries = self.icons.corpus.entries

    def is_in(self, index: int, *splits: str) -> bool:
        """Whether an icon is in one of the splits and in the share of objects."""
        entry, share = self.entries[index], self.config.things_share
        return entry.split in splits and (share >= 1 or unit_hash("share", entry.words) < share)

    def picture(self, index: int) -> Image:
        """Return an icon's picture."""
        return next(part for part in self.icons.document(index) if isinstance(part, Image))

    def checked(self, items: list[Any]) -> list[Any]:
        """Return the items; raises `DataError` if there are none."""
        if not items:
            raise DataError(
                "dataset",
                f"no record of the form {self.config.form!r} is in split {self.config.split!r}",
                "raise dataset.things_share",
            )
        return items

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        return tuple(
            value if isinstance(value, Image) else Text(str(getattr(value, "text", value)))
            for value in self.record(index, rng).values()
        )

    @property
    def fingerprint(self) -> str:
        keys = [self.icons.fingerprint, self.config.form, self.config.split]
        keys += [str(self.config.things_share), str(self.config.num_scenes), str(len(self))]
        keys += [one for one in (self.config.changes, self.config.asks) if one != "all"]
        keys += ["closed"] if self.config.held_out == "closed" else []
        return hashlib.sha256(" ".join(keys).encode()).hexdigest()


class Edits(IconRecords):
    """Edits: pairs of versions of an icon."""

    def __init__(self, config: Settings) -> None:
        super().__init__(config)
        self.pairs = self.checked(
            [
                pair
                for pair in _pairs_of(self.icons.corpus)
                if config.changes in ("all", kind_of(pair))
                and self.is_in(pair.target, config.split)
                and self.is_in(pair.source, config.split, "train")
            ]
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def id(self, index: int) -> str:
        pair = self.pairs[index]
        source, target = self.entries[pair.source].id, self.entries[pair.target].id
        return f"{source}>{target.partition('/')[2]}"

    def group(self, index: int) -> str:
        return str(self.entries[self.pairs[index].target].words)

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        pair = self.pairs[index]
        return {
            "source": self.picture(pair.source),
            "instruction": pair.instruction,
            "target": self.picture(pair.target),
        }


class Structures(IconRecords):
    """From an outline to another version of the icon."""

    def __init__(self, config: Settings) -> None:
        super().__init__(config)
        self.pairs = self.checked(
            [
                pair
                for pair in _pairs_of(self.icons.corpus)
                if "outline" in self.entries[pair.source].style
                and pair.instruction.startswith(_FILLS)
                and self.is_in(pair.target, config.split)
                and self.is_in(pair.source, config.split, "train")
            ]
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def id(self, index: int) -> str:
        pair = self.pairs[index]
        return f"{self.entries[pair.source].id}>{self.entries[pair.target].id}"

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        pair = self.pairs[index]
        return {
            "feature": OUTLINE,
            "condition": self.picture(pair.source),
            "caption": caption(self.entries[pair.target], rng),
            "image": self.picture(pair.target),
        }


class Scenes(IconRecords):
    """Several icons in boxes."""

    def __init__(self, config: Settings) -> None:
        super().__init__(config)
        self.pool: list[tuple[int, str]] = self.checked(
            [
                (index, entry.words)
                for index, entry in enumerate(self.entries)
                if self.is_in(index, config.split)
            ]
        )

        key = (
            self.icons.corpus.data_sha256,
            config.held_out,
            config.split,
            str(config.things_share),
            config.image_size,
        )
        self._scenes = _SCENES.setdefault(key, {})

    def __len__(self) -> int:
        return self.config.num_scenes

    def id(self, index: int) -> str:
        return f"{self.config.split}-scene-{index}"

    def placed(self, index: int) -> tuple[scenes.Placed, ...]:
        """Return the scene's icons."""
        found = self._scenes.get(index)
        if found is None:
            split, size = self.config.split, self.config.image_size
            found = scenes.scene(split, index, self.pool, size)
            if index < _MAX_SCENES:
                self._scenes[index] = found
        return found

    def scene_picture(self, index: int) -> Image:
        """Return the scene's picture, drawn when it is loaded."""
        placed, size = self.placed(index), self.config.image_size
        keys = " ".join(f"{self.entries[one.icon].id}@{one.box}" for one in placed)
        digest = hashlib.sha256(keys.encode()).hexdigest()[:24]

        def load() -> PixelArray:
            pictures = [self.picture(one.icon).load() for one in placed]
            return scenes.draw(placed, pictures, size)

        return Image(f"icon-scene-{self.icons.corpus.data_sha256[:16]}-{size}px/{digest}", load)

    def content_keys(self, index: int) -> frozenset[str]:
        """Content keys of the scene and its icons, which would otherwise be retrieved for it."""
        return super().content_keys(index).union(*self._icon_keys(index))

    def _icon_keys(self, index: int) -> list[frozenset[str]]:
        """Return the content keys of each icon of a scene."""
        return [self.icons.content_keys(one.icon) for one in self.placed(index)]

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        placed = self.placed(index)
        return {
            "caption": scenes.in_words([one.name for one in placed]),
            "objects": scenes.boxes(placed, self.config.image_size),
            "image": self.scene_picture(index),
        }


class Grounding(Scenes):
    """Locate one icon of a scene."""

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        placed = self.placed(index)
        one = placed[index % len(placed) if rng is None else int(rng.integers(len(placed)))]
        return {
            "image": self.scene_picture(index),
            "phrase": one.name,
            "objects": scenes.boxes([one], self.config.image_size),
        }


class Questions(Scenes):
    """Questions about the icons of the split, then about scenes; or only about scenes."""

    @cached_property
    def _num_icons(self) -> int:
        return len(self.pool) if self.config.asks == "all" else 0

    def __len__(self) -> int:
        return self._num_icons + self.config.num_scenes

    def id(self, index: int) -> str:
        if index < self._num_icons:
            return str(self.entries[self.pool[index][0]].id)
        return super().id(index - self._num_icons)

    def _icon_keys(self, index: int) -> list[frozenset[str]]:
        number = index - self._num_icons
        return [] if number < 0 else super()._icon_keys(number)

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        rng = np.random.default_rng(index) if rng is None else rng
        number = index - self._num_icons
        if number < 0:
            place = self.pool[index][0]
            image = self.picture(place)
            question, answer = questions.about_icon(self.entries[place], rng)
        else:

            def absent() -> str:
                return self.pool[int(rng.integers(len(self.pool)))][1]

            image = self.scene_picture(number)
            placed, size = self.placed(number), self.config.image_size
            if self.config.asks == "where":
                question, answer = questions.where(placed, size, rng)
            else:
                question, answer = questions.about_scene(placed, size, absent, rng)
        return {"image": image, "question": question, "answer": answer}


class OneIcon(IconRecords):
    """Base of the forms with one icon per record: all icons of the split."""

    def __init__(self, config: Settings) -> None:
        super().__init__(config)
        self.icons_in_split: list[int] = self.checked(
            [index for index in range(len(self.entries)) if self.is_in(index, config.split)]
        )

    def __len__(self) -> int:
        return len(self.icons_in_split)

    def id(self, index: int) -> str:
        return f"{self.config.form}/{self.entries[self.icons_in_split[index]].id}"

    def group(self, index: int) -> str:
        return str(self.entries[self.icons_in_split[index]].words)


class Chat(OneIcon):
    """Two successive questions about an icon."""

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        rng = np.random.default_rng(index) if rng is None else rng
        place = self.icons_in_split[index]
        entry = self.entries[place]
        asked, told = questions.about_icon(entry, rng)
        question, answer = questions.about_icon(entry, rng)
        conversation = f"{asked} {ASSISTANT} {told} {USER} {question}"
        return {"image": self.picture(place), "conversation": conversation, "answer": answer}


class SuperResolution(OneIcon):
    """From an icon shrunk to half its side, and enlarged like any input picture, to the original."""

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        whole = self.picture(self.icons_in_split[index])
        return {
            "source": Image(f"{whole.key}/half", lambda: blurred(whole.load())),
            "target": whole,
        }


def halved(pixels: PixelArray) -> PixelArray:
    """Shrink a picture to half its height and width, uint8 [H // 2, W // 2, 3]."""
    height, width = pixels.shape[:2]
    return fit(pixels, (height // 2, width // 2))


def blurred(pixels: PixelArray) -> PixelArray:
    """Return the picture as the model sees it at half its height and width: `halved`, then enlarged."""
    return fit(halved(pixels), pixels.shape[:2])


#: Form -> its records.
SOURCES: Mapping[str, Callable[[Settings], DocumentSource]] = {
    "edit": Edits,
    "structure": Structures,
    "scene": Scenes,
    "grounding": Grounding,
    "question": Questions,
    "chat": Chat,
    "super_resolution": SuperResolution,
}
