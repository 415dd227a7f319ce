"""Which concepts and combinations are held out of training, by hashes of their names."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cm3core.errors import DataError
from cm3plugins.scenes.composing import Raster, Scene, at_places, related, several
from cm3plugins.scenes.keys import BACKGROUNDS, RELATIONS, Arrangement
from cm3plugins.scenes.sprites import Sprites

#: Share of concepts in split `unseen`; of those with several styles, the ones of which a style is held out; of concepts with a
#: relation or a number.
UNSEEN, APART, COMBINED = 0.2, 0.4, 0.1
#: Share of scenes that mix two styles, of those that could; of scenes on white.
_TWO_STYLES, _WHITE = 0.2, 0.5
#: Scenes that are composed before a split is said to have none.
TRIES = 3000
#: How often each arrangement occurs.
_OFTEN: dict[Arrangement, float] = {"single": 0.15, "places": 0.4, "relation": 0.3, "count": 0.15}


def unit_hash(*names: str) -> float:
    """A number in 0..1 that depends on nothing but the names."""
    digest = hashlib.sha256("\0".join(("scenes", *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


@dataclass(frozen=True)
class HeldOut:
    """What the splits are made of.

    Args:
        sprites: the drawings.
    """

    sprites: Sprites

    @cached_property
    def several_styles(self) -> bool:
        """Whether captions must name the style."""
        return len(self.sprites.styles) > 1

    def is_unseen(self, concept: str) -> bool:
        """Whether no picture and no document of training has the concept, in any style."""
        return unit_hash("unseen", concept) < UNSEEN

    def flags(self, scene: Scene) -> frozenset[str]:
        """The splits `unseen`, `comp` and `counts` whose rule an item of the scene meets."""
        found = set()
        for place, item in enumerate(scene.items):
            if self.is_unseen(item.concept):
                found.add("unseen")
            if self.is_apart(item.concept, item.style):
                found.add("comp")
            relation = scene.relation if place == 0 else None
            if relation and unit_hash("relation", item.concept, relation) < COMBINED:
                found.add("comp")
            number = len(item.corners)
            if number > 1 and unit_hash("count", item.concept, str(number)) < COMBINED:
                found.add("counts")
        return frozenset(found)

    def is_apart(self, concept: str, style: str) -> bool:
        """Whether training never has the concept in this style, though in others."""
        styles = self._styles[concept]
        if len(styles) < 2 or unit_hash("has a style apart", concept) >= APART:
            return False
        return style == styles[int(unit_hash("style apart", concept) * len(styles))]

    @cached_property
    def _styles(self) -> dict[str, list[str]]:
        """Concept -> the styles that it has."""
        found: dict[str, list[str]] = {}
        for concept, style in self.sprites.by_name:
            found.setdefault(concept, []).append(style)
        return found

    def admits(self, scene: Scene, split: str) -> bool:
        """Whether a scene belongs to a split."""
        flags = self.flags(scene)
        if split == "all":
            return True
        if split == "unseen":
            return all(self.is_unseen(item.concept) for item in scene.items)
        return flags == ({split} if split in ("comp", "counts") else frozenset())

    def drawings(self, split: str) -> list[int]:
        """The usable drawings that a split's scenes and documents may have."""
        every = self.sprites.usable
        if split == "all":
            return list(every)
        unseen = split == "unseen"
        return [
            index
            for index in every
            if self.is_unseen((one := self.sprites.all[index]).concept) == unseen
            and (unseen or split in ("comp", "counts") or not self.is_apart(one.concept, one.style))
        ]


class Composer:
    """Composes the scenes of a split by number.

    Args:
        held_out: what is held out.
        split: the split.
        raster: where objects may be.
        seed: other scenes for other seeds.
        most: concepts of a scene at most.

    Raises:
        DataError: the split has fewer than four concepts of one style.
    """

    def __init__(
        self, held_out: HeldOut, split: str, raster: Raster, seed: int, most: int = 4
    ) -> None:
        self.most = most
        self.held_out, self.split, self.raster, self.seed = held_out, split, raster, seed
        sprites = held_out.sprites
        self.by_style: dict[str, list[str]] = {}
        for index in held_out.drawings(split):
            self.by_style.setdefault(sprites.all[index].style, []).append(
                sprites.all[index].concept
            )
        few = [style for style in sprites.styles if len(self.by_style.get(style, [])) < 4]
        if few:
            raise DataError(
                f"dataset, style {few[0]!r}",
                f"has {len(self.by_style.get(few[0], []))} concepts in split {split!r}; scenes need 4 (a fifth of all "
                "concepts are those of the split unseen, and drawings that look alike count once)",
                "give more drawings, name other styles (dataset.styles), or use split all",
            )
        self._known = {style: frozenset(own) for style, own in self.by_style.items()}
        weights = np.array([len(own) for own in self.by_style.values()], np.float64)
        self._bounds = np.cumsum(weights / weights.sum())

    def rng(self, number: int, use: str = "scene") -> np.random.Generator:
        """The generator of a scene: a function of seed, split, number and use."""
        return np.random.default_rng(
            [self.seed, zlib.crc32(self.split.encode()), zlib.crc32(use.encode()), number]
        )

    def scene(self, number: int) -> Scene:
        """The scene with this number."""
        rng = self.rng(number)
        for _ in range(TRIES):
            scene = self.any_scene(rng)
            if self.admits(scene):
                return scene
        raise self.found_none("scene")

    def admits(self, scene: Scene, split: str | None = None) -> bool:
        """Whether a scene belongs to a split, by default the composer's. A plain picture, which is a document, never does."""
        middle = self.raster.middle
        if all(item.corners == (middle[item.size],) for item in scene.items):
            return False
        return self.held_out.admits(scene, self.split if split is None else split)

    def found_none(self, form: str) -> DataError:
        """The error of a split that has no such record."""
        return DataError(
            f"dataset, split {self.split!r}",
            f"has no record of the form {form!r}: {TRIES:,} were composed, and none belongs to it",
            "use more styles or concepts, or another split",
        )

    def any_scene(self, rng: np.random.Generator, arrangement: Arrangement | None = None) -> Scene:
        """A scene of the split's concepts, whether or not the split admits it."""
        if arrangement is None:
            names = list(_OFTEN)
            arrangement = names[
                int(np.searchsorted(np.cumsum(list(_OFTEN.values())), rng.random()))
            ]
            if self.split == "counts" and arrangement in ("single", "places"):
                arrangement = "count"
        if self.most < 2 and arrangement in ("places", "relation"):
            arrangement = "single"
        raster, relation = self.raster, None
        most = len(raster.offsets["large"])
        if arrangement == "single":
            items = at_places(raster, self.named(1, rng), rng)
        elif arrangement == "places":
            number = min((2, 2, 3, 4)[int(rng.integers(4))], self.most)
            items = at_places(raster, self.named(number, rng), rng)
        elif arrangement == "relation":
            relation = RELATIONS[int(rng.integers(len(RELATIONS)))]
            counts = [1, 1]
            if rng.random() < 0.4 or self.split == "counts":
                counts[int(rng.integers(2))] = int(rng.integers(2, most + 1))
            items = related(raster, self.named(2, rng), counts, relation, rng)
        else:
            number = int(rng.integers(2, 4))
            items = [several(raster, self.named(1, rng)[0], number, rng)]
        return Scene(tuple(items), self.background(rng), relation)

    def named(self, number: int, rng: np.random.Generator) -> list[tuple[str, str]]:
        """Different concepts, mostly in one style."""
        styles = list(self.by_style)
        mixed = number > 1 and len(styles) > 1 and rng.random() < _TWO_STYLES
        style = self.style(rng)
        found: list[tuple[str, str]] = []
        while len(found) < number:
            own = self.style(rng) if mixed else style
            concept = self.concept(own, rng)
            if concept not in (name for name, _ in found):
                found.append((concept, own))
        return found

    def style(self, rng: np.random.Generator) -> str:
        """A style, as often as it has concepts."""
        return list(self.by_style)[int(np.searchsorted(self._bounds, rng.random()))]

    def concept(self, style: str, rng: np.random.Generator) -> str:
        """A concept of a style."""
        own = self.by_style[style]
        return own[int(rng.integers(len(own)))]

    def background(self, rng: np.random.Generator) -> str:
        """A background: white as often as all others together."""
        others: Sequence[str] = [name for name in BACKGROUNDS if name != "white"]
        if rng.random() < _WHITE:
            return "white"
        return others[int(rng.integers(len(others)))]

    def has(self, concept: str, style: str) -> bool:
        """Whether the split has a concept in a style."""
        return concept in self._known.get(style, ())
