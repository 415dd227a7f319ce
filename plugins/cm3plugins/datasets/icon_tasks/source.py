"""The records of each form as data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cm3core.document import Document, Image, PixelArray, Text
from cm3core.errors import DataError
from cm3core.images import fit
from cm3core.interfaces.dataset import DocumentSource
from cm3plugins.datasets.conversations import ASSISTANT, USER
from cm3plugins.datasets.icon_tasks import questions, scenes
from cm3plugins.datasets.icon_tasks.pairs import Pair, kind_of, pairs_of
from cm3plugins.datasets.icons.captions import caption
from cm3plugins.datasets.icons.config import IconSourceConfig
from cm3plugins.datasets.icons.splits import unit_hash

if TYPE_CHECKING:
    from cm3core.interfaces.task import Record
    from cm3plugins.datasets.icons.corpus import IconCorpus
    from cm3plugins.datasets.icons.source import IconSource


#: Begin what changes an outline into a version that it is the structure of.
_FILLS = ("make it filled", "make it duotone", "make it colour")
#: What the form "structure" calls its conditions.
OUTLINE = "an outline"


class Settings(Protocol):
    """What the forms read of their config."""

    split: str
    path: str | None
    things_share: float
    num_scenes: int
    image_size: int
    cache_dir: str | None

    @property
    def form(self) -> str:
        """Which form."""

    @property
    def changes(self) -> str:
        """Which pairs."""

    @property
    def asks(self) -> str:
        """Which questions."""


#: By corpus, split, share of things and size of the picture: the scenes by number, which a process draws
#: up once for all forms.
_SCENES: dict[tuple[str, str, str, int], dict[int, tuple[scenes.Placed, ...]]] = {}
#: Scenes of each that are kept: some 60 MB.
_MAX_SCENES = 100_000
_PAIRS: dict[str, list[Pair]] = {}


def _pairs_of(corpus: IconCorpus) -> list[Pair]:
    """The corpus' pairs, which a process makes once, not again for every form and split."""
    if corpus.data_sha256 not in _PAIRS:
        _PAIRS[corpus.data_sha256] = pairs_of(corpus.entries)
    return _PAIRS[corpus.data_sha256]


class IconRecords(DocumentSource):
    """Base of the forms: icons of the corpus, and documents that show all fields in their order.

    Args:
        config: its split and size.
    """

    def __init__(self, config: Settings) -> None:
        self.config = config
        self.icons: IconSource = IconSourceConfig(
            split="all",
            path=config.path,
            image_size=config.image_size,
            cache_dir=config.cache_dir,
        ).build()
        self.entries = self.icons.corpus.entries

    def is_in(self, index: int, *splits: str) -> bool:
        """Whether an icon is in one of the splits, and among the share of things."""
        entry, share = self.entries[index], self.config.things_share
        return entry.split in splits and (share >= 1 or unit_hash("share", entry.words) < share)

    def picture(self, index: int) -> Image:
        """An icon's picture."""
        return next(part for part in self.icons.document(index) if isinstance(part, Image))

    def checked(self, items: list[Any]) -> list[Any]:
        """The items; raises `DataError` if there are none."""
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
        return hashlib.sha256(" ".join(keys).encode()).hexdigest()


class Edits(IconRecords):
    """Pairs of versions."""

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
    """An outline to another version."""

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
    """Several icons at boxes."""

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
        """The scene's icons."""
        found = self._scenes.get(index)
        if found is None:
            split, size = self.config.split, self.config.image_size
            found = scenes.scene(split, index, self.pool, size)
            if index < _MAX_SCENES:
                self._scenes[index] = found
        return found

    def scene_picture(self, index: int) -> Image:
        """The scene's picture, drawn when it is loaded."""
        placed, size = self.placed(index), self.config.image_size
        keys = " ".join(f"{self.entries[one.icon].id}@{one.box}" for one in placed)
        digest = hashlib.sha256(keys.encode()).hexdigest()[:24]

        def load() -> PixelArray:
            pictures = [self.picture(one.icon).load() for one in placed]
            return scenes.draw(placed, pictures, size)

        return Image(f"icon-scene-{self.icons.corpus.data_sha256[:16]}-{size}px/{digest}", load)

    def content_keys(self, index: int) -> frozenset[str]:
        """The icons' too: what a scene is made of would be found for its parts."""
        return super().content_keys(index).union(*self._icon_keys(index))

    def _icon_keys(self, index: int) -> list[frozenset[str]]:
        """The content keys of each icon of a scene."""
        return [self.icons.content_keys(one.icon) for one in self.placed(index)]

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        placed = self.placed(index)
        return {
            "caption": scenes.in_words([one.name for one in placed]),
            "objects": scenes.boxes(placed, self.config.image_size),
            "image": self.scene_picture(index),
        }


class Grounding(Scenes):
    """Where one icon of a scene is."""

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        placed = self.placed(index)
        one = placed[index % len(placed) if rng is None else int(rng.integers(len(placed)))]
        return {
            "image": self.scene_picture(index),
            "phrase": one.name,
            "objects": scenes.boxes([one], self.config.image_size),
        }


class Questions(Scenes):
    """Questions about the icons of the split, then about scenes; or about scenes alone."""

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
    """Base of the forms whose records are of one icon each: all icons of the split."""

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
    """Two questions about an icon, one after the other."""

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        rng = np.random.default_rng(index) if rng is None else rng
        place = self.icons_in_split[index]
        entry = self.entries[place]
        asked, told = questions.about_icon(entry, rng)
        question, answer = questions.about_icon(entry, rng)
        conversation = f"{asked} {ASSISTANT} {told} {USER} {question}"
        return {"image": self.picture(place), "conversation": conversation, "answer": answer}


class SuperResolution(OneIcon):
    """An icon of half the side, enlarged again as any picture is that a model is given, to the icon."""

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        whole = self.picture(self.icons_in_split[index])
        return {
            "source": Image(f"{whole.key}/half", lambda: blurred(whole.load())),
            "target": whole,
        }


def halved(pixels: PixelArray) -> PixelArray:
    """The picture at half its height and width, uint8 [H // 2, W // 2, 3]."""
    height, width = pixels.shape[:2]
    return fit(pixels, (height // 2, width // 2))


def blurred(pixels: PixelArray) -> PixelArray:
    """The picture as it is seen when it is given at half its height and width: `halved`, and enlarged."""
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
