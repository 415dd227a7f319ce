"""Measure the data set `scenes`, its reader and its retrieval, and write docs/figures/scenes.json:
`python docs/_scenes.py [--num N]`. `python docs/_generate.py` then writes the tables of scenes.md.

1. Scenes composed and drawn a second.
2. How often the reader reads a scene exactly: every object in concept, style, size and corner, the background, and that
   nothing else is there; of pictures as they are drawn, and after the bundled image tokenizer.
3. How often it reads a spoiled picture as a scene that it was made of; it should never.
4. How often the first two documents show both things of a prompt that names two.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from cm3core.document import PixelArray, Text
from cm3plugins.image_tokenizers.patches import PatchTokenizerConfig
from cm3plugins.retrievers import BM25RetrieverConfig
from cm3plugins.scenes.composing import Scene
from cm3plugins.scenes.config import ScenesConfig
from cm3plugins.scenes.measures import objects
from cm3plugins.scenes.reader import SceneReader
from cm3plugins.scenes.source import SceneSource

FILE = Path(__file__).parent / "figures" / "scenes.json"
#: Raster -> keys of the data set, and the weights of its image tokenizer.
RASTERS: Mapping[str, tuple[dict[str, Any], str]] = {
    "fine": ({"raster": "fine", "image_size": 64}, "bundled:scenes64"),
    "coarse": ({"raster": "coarse", "image_size": 32}, "bundled:scenes64"),
}
RETRIEVERS: Mapping[str, dict[str, Any]] = {
    "words": {},
    "phrases": {"terms": "phrases"},
    "phrases, coverage": {"terms": "phrases", "coverage": True},
    "phrases, coverage, b 0.3": {"terms": "phrases", "coverage": True, "b": 0.3},
}


def _blurred(a_HWC: PixelArray, _: PixelArray) -> PixelArray:
    return np.asarray(Image.fromarray(a_HWC).filter(ImageFilter.GaussianBlur(1)))


def _ghost(a_HWC: PixelArray, _: PixelArray) -> PixelArray:
    twice = 2 * a_HWC.astype(np.uint16) + np.roll(a_HWC, (3, 5), (0, 1))
    return (twice // 3).astype(np.uint8)


def _halves(a_HWC: PixelArray, b_HWC: PixelArray) -> PixelArray:
    half = a_HWC.shape[1] // 2
    return np.concatenate([a_HWC[:, :half], b_HWC[:, half:]], 1)


#: Ways to spoil a picture, uint8 [H, W, 3], with the help of another.
SPOILED: Mapping[str, Callable[[PixelArray, PixelArray], PixelArray]] = {
    "blank": lambda a, b: np.full_like(a, 255),
    "blurred": _blurred,
    "mixed": lambda a, b: ((a.astype(np.uint16) + b) // 2).astype(np.uint8),
    "ghost": _ghost,
    "halves": _halves,
}


def reads(reader: SceneReader, pixels_HWC: PixelArray, scene: Scene) -> bool:
    """Whether a reading is exactly the scene."""
    reading = reader.read(pixels_HWC)
    found = Counter((one.concept, one.style, one.size, one.corner) for one in reading.found)
    return reading.is_whole and reading.background == scene.background and found == objects(scene)


def of_raster(name: str, num: int) -> dict[str, Any]:
    """The figures of a raster."""
    keys, weights = RASTERS[name]
    size = keys["image_size"]
    tokenizer = PatchTokenizerConfig(resolution=size, codebook_size=4096, weights=weights).build()
    found: dict[str, Any] = {"read": {}, "read_after_codes": {}}
    for split in ("valid", "unseen"):
        source = ScenesConfig(split=split, num_scenes=num, **keys).build()
        source.pixels(source.composer.scene(num))  # renders the drawings
        started = time.perf_counter()
        scenes = [source.scene(index) for index in range(num)]
        pictures = [source.pixels(scene) for scene in scenes]
        found.setdefault("scenes_a_second", num / (time.perf_counter() - started))
        reader = SceneReader(source.sprites, source.raster)
        decoded = [tokenizer.decode(tokenizer.encode(one[None]))[0] for one in pictures]
        for key, shown in (("read", pictures), ("read_after_codes", decoded)):
            right = [reads(reader, *one) for one in zip(shown, scenes, strict=True)]
            found[key][split] = float(np.mean(right))
        if split == "valid":
            found["spoiled"] = {
                way: _fooled(reader, pictures, scenes, spoil) for way, spoil in SPOILED.items()
            }
        else:
            found["retrieval"] = _found_both(source, keys)
    return found


def _fooled(
    reader: SceneReader,
    pictures: list[PixelArray],
    scenes: list[Scene],
    spoil: Callable[[PixelArray, PixelArray], PixelArray],
) -> float:
    """Share of spoiled pictures that are read as one of the scenes they are made of. A picture that nothing changed, such as
    half of it and an equal half, isn't counted."""
    fooled = []
    for (a, own), (b, other) in itertools.pairwise(zip(pictures, scenes, strict=True)):
        pixels_HWC = spoil(a, b)
        if not (np.array_equal(pixels_HWC, a) or np.array_equal(pixels_HWC, b)):
            fooled.append(any(reads(reader, pixels_HWC, one) for one in (own, other)))
    return float(np.mean(fooled))


def _found_both(source: SceneSource, keys: dict[str, Any]) -> dict[str, float]:
    """Share of the scenes of two different things for which the first two documents show both."""
    memory = ScenesConfig(form="plain", split="all", **keys).build()
    asked = [index for index in range(len(source)) if len(source.scene(index).items) == 2]
    queries = [(Text(source.record(index)["caption"]),) for index in asked]
    found = {}
    for name, options in RETRIEVERS.items():
        results = BM25RetrieverConfig(**options).build(memory, None).retrieve(queries, 2)
        both = []
        for index, documents in zip(asked, results, strict=True):
            shown = {
                (item.concept, item.style)
                for one in documents
                for item in memory.scene(one.index).items
            }
            both.append({(item.concept, item.style) for item in source.scene(index).items} <= shown)
        found[name] = float(np.mean(both))
    return {"num": len(asked), **found}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure the data set scenes and its reader.")
    parser.add_argument("--num", type=int, default=1000, metavar="N", help="scenes of each split")
    num = parser.parse_args().num
    figures = {"num": num, **{name: of_raster(name, num) for name in RASTERS}}
    FILE.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(FILE)
