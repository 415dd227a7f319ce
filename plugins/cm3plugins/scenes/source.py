"""Scenes as documents and records. A scene is a function of the config and its number, so that training resumes anywhere."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cm3core.document import Document, Image, PixelArray, Text
from cm3core.interfaces.dataset import DocumentSource, Provenance, SkippedRecord
from cm3core.interfaces.task import Record
from cm3plugins.datasets.emoji.packages import STYLE_PACKAGES
from cm3plugins.scenes.composing import RASTERS, Item, Scene, boxes_of, draw, plain
from cm3plugins.scenes.folder import folder_sprites
from cm3plugins.scenes.held_out import Composer, HeldOut
from cm3plugins.scenes.keys import BACKGROUNDS, Form, RasterName, SizeName
from cm3plugins.scenes.sprites import Sprites, emoji_sprites
from cm3plugins.scenes.wording import Change, Question, Words, change, question

#: Increased whenever a number stands for another scene.
_VERSION = 2
#: Scenes that are kept, so that a document's texts and pictures are composed once.
_KEPT = 4096


class Settings(Protocol):
    """The keys of the data set's config."""

    split: str
    form: Form
    sprites: str | None
    concepts: str
    styles: list[str]
    raster: RasterName
    max_concepts: int
    num_scenes: int
    image_size: int
    seed: int
    cache_dir: str | None


class SceneSource(DocumentSource):
    """Documents of one form of the data set `scenes`.

    Args:
        config: its keys.
        sprites: the drawings.

    Raises:
        DataError: the split has too few concepts.
    """

    def __init__(self, config: Settings, sprites: Sprites) -> None:
        self.config, self.sprites = config, sprites
        self.raster = RASTERS[config.raster]
        self.unit = config.image_size // self.raster.side
        self.held_out = HeldOut(sprites)
        sizes: Sequence[SizeName] = list(self.raster.sizes)
        self.words = Words(sprites.labels, self.held_out.several_styles, len(sizes) > 1)
        # plain pictures of `valid` are those of `train`, which its scenes are composed of
        self._drawings = list(self.held_out.drawings(config.split))
        self._plain = list(itertools.product(BACKGROUNDS, self._drawings, sizes))
        self.composer = Composer(
            self.held_out, config.split, self.raster, config.seed, config.max_concepts
        )
        self.scene = lru_cache(_KEPT)(self._scene)
        self.change = lru_cache(_KEPT)(partial(change, self.composer, self.words))

    def __len__(self) -> int:
        return len(self._plain) if self.config.form == "plain" else self.config.num_scenes

    def id(self, index: int) -> str:
        """Style, concept, size and background of a plain picture; else the form, split and number. White isn't named: of
        equally good documents the first by its id is retrieved, and a prompt that names no background means white."""
        if self.config.form == "plain":
            background, place, size = self._plain[index]
            sprite = self.sprites.all[place]
            name = f"{sprite.style}/{sprite.concept}/{size}"
            return name if background == "white" else f"{name}/{background}"
        return f"{self.config.form}/{self.config.split}/{index}"

    def _scene(self, index: int) -> Scene:
        """The scene of a document; of an edit, the scene that it leads to."""
        if self.config.form == "plain":
            background, place, size = self._plain[index]
            sprite = self.sprites.all[place]
            return plain(self.raster, (sprite.concept, sprite.style), size, background)
        return (
            self.change(index).after if self.config.form == "edit" else self.composer.scene(index)
        )

    def question(self, index: int) -> Question:
        """The question about a scene."""
        return question(self.composer, self.words, self.scene(index), index)

    def asked(self, index: int) -> Item:
        """The item that a record of the form "grounding" asks for."""
        items = self.scene(index).items
        return items[int(self.composer.rng(index, "grounding").integers(len(items)))]

    def hidden(self, index: int) -> tuple[Item, Scene]:
        """The object that a record of the form "part" has the box of, and the scene without it."""
        scene = self.scene(index)
        places = [(number, c) for number, item in enumerate(scene.items) for c in item.corners]
        number, corner = places[int(self.composer.rng(index, "part").integers(len(places)))]
        item = scene.items[number]
        left = replace(item, corners=tuple(one for one in item.corners if one != corner))
        items = (*scene.items[:number], left, *scene.items[number + 1 :])
        rest = replace(scene, items=tuple(one for one in items if one.corners), relation=None)
        return replace(item, corners=(corner,)), rest

    def picture(self, scene: Scene) -> Image:
        """The picture of a scene, drawn when needed."""
        shown = [(one.concept, one.style, one.size, one.corners) for one in scene.items]
        text = json.dumps([self._key, scene.background, sorted(shown)])
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        return Image(f"scene-{name}", partial(self.pixels, scene))

    def pixels(self, scene: Scene) -> PixelArray:
        """Draw a scene, uint8 [image_size, image_size, 3]."""
        drawings: dict[tuple[str, str, SizeName], npt.NDArray[np.uint8]] = {}
        for item in scene.items:
            own = self.sprites.pixels(self.raster.sizes[item.size] * self.unit)
            index = self.sprites.by_name[item.concept, item.style]
            drawings[item.concept, item.style, item.size] = own[index]
        return draw(scene, self.raster, drawings, self.unit)

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        """The fields of the form."""
        form, scene = self.config.form, self.scene(index)
        if form == "edit":
            one: Change = self.change(index)
            before, after = self.picture(one.before), self.picture(one.after)
            return {"source": before, "instruction": one.instruction, "target": after}
        picture = self.picture(scene)
        if form == "plain":
            return {"image": picture, "caption": self.words.name(scene.items[0], scene.background)}
        if form == "question":
            asked = self.question(index)
            return {"image": picture, "question": asked.question, "answer": asked.answer}
        boxes = partial(boxes_of, self.raster, labels=self.words.labels, unit=self.unit)
        if form == "boxes":
            things = ", ".join(self.words.thing(item) for item in scene.items)
            return {"caption": things, "objects": boxes(scene.items), "image": picture}
        if form == "grounding":
            item = self.asked(index)
            label = self.words.labels[item.concept]
            return {"image": picture, "phrase": label, "objects": boxes([item])}
        caption = self.words.caption(scene, rng)
        if form == "part":
            return {"image": picture, "caption": caption, "part": boxes([self.hidden(index)[0]])}
        return {"image": picture, "caption": caption}

    def truth(self, index: int) -> Mapping[str, Any]:
        """The scene as JSON values (`Scene.truth`); of an edit also its kind and the scene before, of a question its kind,
        of a phrase its concept, of a part the scene before it was there."""
        found = self.scene(index).truth
        if self.config.form == "edit":
            one = self.change(index)
            found |= {"kind": one.kind, "before": one.before.truth}
        elif self.config.form == "question":
            found |= {"kind": self.question(index).kind}
        elif self.config.form == "grounding":
            found |= {"phrase": self.asked(index).concept}
        elif self.config.form == "part":
            found |= {"before": self.hidden(index)[1].truth}
        return found

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        record = self.record(index, rng)
        if self.config.form in ("scene", "plain"):  # a text, then its picture
            return (Text(record["caption"]), record["image"])
        return tuple(
            one if isinstance(one, Image) else Text(str(getattr(one, "text", one)))
            for one in record.values()
        )

    def group(self, index: int) -> str:
        """The concept of a plain picture."""
        return self.scene(index).items[0].concept if self.config.form == "plain" else ""

    def provenance(self, index: int) -> Provenance:
        """That of a plain picture's drawing; of a scene, those of all drawings that it is composed from, together."""
        return (
            self._composed
            if self.config.form != "plain"
            else self.sprites.provenance(self._plain[index][1])
        )

    def provenances(self) -> Mapping[Provenance, int]:
        """Without composing a scene."""
        if self.config.form != "plain":
            return {self._composed: len(self)}
        each = len(self) // len(self._drawings)
        found = Counter(self.sprites.provenance(index).shared for index in self._drawings)
        return {one: number * each for one, number in found.items()}

    @cached_property
    def _composed(self) -> Provenance:
        return _together([self.sprites.provenance(index).shared for index in self._drawings])

    @property
    def skipped(self) -> list[SkippedRecord]:
        return list(self.sprites.skipped)

    @cached_property
    def _key(self) -> str:
        config = self.config
        return f"scenes-{_VERSION}-{self.sprites.sha256[:16]}-{config.raster}-{config.image_size}px"

    @property
    def fingerprint(self) -> str:
        """Hash of the keys, the drawings and the version; no scene is composed."""
        config = self.config
        keys = [self._key, config.form, config.split, config.seed, config.max_concepts, len(self)]
        return hashlib.sha256(json.dumps(keys).encode()).hexdigest()

    @property
    def content_fingerprint(self) -> str:
        """Texts are a function of the same."""
        return self.fingerprint


def sprites_of(config: Settings) -> Sprites:
    """The drawings that a config names; made once a process for equal keys."""
    if config.sprites is not None:
        return folder_sprites(config.sprites, tuple(config.styles), config.cache_dir)
    styles = tuple(config.styles) or tuple(STYLE_PACKAGES)
    return emoji_sprites(styles, config.concepts, config.cache_dir)


def _together(parts: Sequence[Provenance]) -> Provenance:
    """One provenance of several."""
    different = list(dict.fromkeys(parts))
    if len(different) == 1:
        return different[0]

    def joined(values: Iterable[str], by: str) -> str:
        return by.join(dict.fromkeys(value for value in values if value))

    return Provenance(
        joined((one.licence for one in different), " AND "),
        joined((one.source for one in different), ", "),
        joined((one.attribution for one in different), "; "),
        joined((one.collection for one in different), ", "),
    )
