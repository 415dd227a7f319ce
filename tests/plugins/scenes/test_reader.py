"""The reader of scenes: what `draw` drew is read back exactly, also after a tokenizer; no wrong picture is judged right."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3plugins.image_tokenizers.patches import PatchTokenizerConfig
from cm3plugins.scenes.composing import RASTERS, Scene, box_of
from cm3plugins.scenes.config import ScenesConfig
from cm3plugins.scenes.keys import BACKGROUNDS, RasterName
from cm3plugins.scenes.measures import is_right, objects
from cm3plugins.scenes.reader import Reading, SceneReader, _Drawings, _Gains, corners_of, summaries
from cm3plugins.scenes.source import SceneSource
from messages import tells

SIZES: dict[RasterName, int] = {"fine": 64, "coarse": 32}
rasters = pytest.mark.parametrize("raster", sorted(SIZES))


@cache
def scenes(raster: RasterName, concepts: str = "quickstart") -> SceneSource:
    return ScenesConfig(
        raster=raster,
        image_size=SIZES[raster],
        styles=["noto"],
        concepts=concepts,
        num_scenes=10_000_000,
    ).build()


@cache
def reader(raster: RasterName, concepts: str = "quickstart") -> SceneReader:
    return SceneReader(scenes(raster, concepts).sprites, RASTERS[raster])


def is_exact(reading: Reading, scene: Scene) -> bool:
    wanted = sorted(objects(scene).elements())
    same = sorted(corners_of(reading)) == wanted and reading.background == scene.background
    return same and reading.is_whole


@given(
    st.integers(0, 9_999_999),
    st.sampled_from(sorted(SIZES)),
    st.sampled_from(["quickstart", "all"]),
)
def test_a_drawn_scene_is_read_back_exactly(number: int, raster: RasterName, concepts: str) -> None:
    source = scenes(raster, concepts)
    scene = source.scene(number)
    reading = reader(raster, concepts).read(source.pixels(scene))
    assert is_exact(reading, scene)
    assert is_right(reading, scene, source.raster)
    assert all(one.off < 1e-3 for one in reading.found)
    assert [one.corner[::-1] for one in reading.found] == sorted(
        one.corner[::-1] for one in reading.found
    )


@rasters
def test_larger_pictures_are_read_too(raster: RasterName) -> None:
    source = ScenesConfig(
        raster=raster, image_size=2 * SIZES[raster], styles=["noto"], concepts="quickstart"
    ).build()
    for number in range(5):
        scene = source.scene(number)
        assert is_exact(reader(raster).read(source.pixels(scene)), scene)


@rasters
def test_most_scenes_are_read_after_the_bundled_tokenizer(raster: RasterName) -> None:
    source, side = scenes(raster, "all"), SIZES[raster]
    tokenizer = PatchTokenizerConfig(
        resolution=side, codebook_size=4096, weights="bundled:scenes64"
    ).build()
    own = [source.scene(number) for number in range(60)]
    pictures = tokenizer.decode(tokenizer.encode(np.stack([source.pixels(one) for one in own])))
    read = [reader(raster, "all").read(picture) for picture in pictures]
    right = [is_exact(*pair) for pair in zip(read, own, strict=True)]
    assert np.mean(right) >= 0.95


@rasters
def test_the_two_stages_find_what_a_full_comparison_finds(raster: RasterName) -> None:
    """Of every drawing at every place, also in noise and in blurred pictures: bounds hold, and the best is the best."""
    source, side = scenes(raster), SIZES[raster]
    raw = source.pixels(source.scene(1))
    noise = np.random.default_rng(0).integers(0, 256, raw.shape, np.uint8)
    unit = side // source.raster.side
    for picture in (raw, blurred(raw), noise):
        off = picture.astype(np.float32) - np.array(BACKGROUNDS["silver"], np.float32)
        for units in source.raster.sizes.values():
            drawings: _Drawings = reader(raster)._drawings(units, unit, "silver")
            gains = _Gains(off, drawings)
            differences = drawings.differences(slice(None)).reshape(len(drawings.squares_K), -1)
            for place in range(len(gains.gain_P)):
                top, left = (n * unit for n in divmod(place, gains.columns))
                crop = off[top : top + units * unit, left : left + units * unit]
                wanted = (crop**2).sum() - ((crop.ravel() - differences) ** 2).sum(1)
                near = 1e-5 * (crop**2).sum() + 1
                assert gains.gain_P[place] >= wanted.max() - near
                if gains.gain_P[place] > 0:
                    gains.compare(place)
                    assert abs(gains.gain_P[place] - wanted.max()) <= near
                    assert wanted[gains.drawing_P[place]] >= wanted.max() - near


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4]))
def test_dot_products_of_summaries_are_bounds(seed: int, units: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(2, 3, 4, 4, 3)).astype(np.float32)
    exact = one.reshape(3, -1) @ other.reshape(3, -1).T
    assert (summaries(one, units) @ summaries(other, units).T >= exact - 1e-3).all()
    own = (summaries(one, units) ** 2).sum(1)
    np.testing.assert_allclose(own, (one**2).sum((1, 2, 3)), rtol=1e-4)


# ---- wrong pictures


def blurred(picture: PixelArray) -> PixelArray:
    soft = gaussian_filter(picture.astype(np.float32), (1, 1, 0), mode="nearest")
    found: PixelArray = np.rint(soft).astype(np.uint8)
    return found


def mixed(one: PixelArray, other: PixelArray) -> PixelArray:
    found: PixelArray = ((one.astype(np.uint16) + other) // 2).astype(np.uint8)
    return found


class Planted:
    """Wrong pictures of a scene whose objects have named places.

    Args:
        source: of the scenes.
        scene: the scene.
        other: another one.
        number: chooses what is changed.
    """

    def __init__(self, source: SceneSource, scene: Scene, other: Scene, number: int) -> None:
        self.source, self.scene, self.rng = source, scene, np.random.default_rng(number)
        self.picture, self.other = source.pixels(scene), source.pixels(other)
        self.colour = np.array(BACKGROUNDS[scene.background], np.uint8)

    def box(self, item: Any, corner: tuple[int, int] | None = None) -> tuple[slice, slice]:
        at = corner or item.corners[0]
        x0, y0, x1, y1 = box_of(self.source.raster, item.size, at, self.source.unit)
        return slice(y0, y1), slice(x0, x1)

    def some(self) -> Any:
        return self.scene.items[int(self.rng.integers(len(self.scene.items)))]

    def free(self, item: Any) -> tuple[slice, slice] | None:
        """A place without a picture where an object of the item's size has room."""
        every = [
            self.box(item, self.source.raster.corner(item.size, p))
            for p in self.source.raster.places
        ]
        boxes = [box for box in every if (self.picture[box] == self.colour).all()]
        return boxes[int(self.rng.integers(len(boxes)))] if boxes else None

    def blank(self) -> PixelArray:
        return np.broadcast_to(self.colour, self.picture.shape).copy()

    def blurred(self) -> PixelArray:
        return blurred(self.picture)

    def mixed(self) -> PixelArray:
        return mixed(self.picture, self.other)

    def ghost(self) -> PixelArray | None:
        """Doubled, half an object aside; two objects side by side cover each other's ghosts."""
        tops = [item.corners[0][1] for item in self.scene.items]
        if len(set(tops)) < len(tops):
            return None
        aside = self.source.raster.sizes["large"] * self.source.unit // 2
        return mixed(self.picture, np.roll(self.picture, aside, 1))

    def erased(self) -> PixelArray:
        found = self.picture.copy()
        found[self.box(self.some())] = self.colour
        return found

    def moved(self) -> PixelArray | None:
        item = self.some()
        free, found = self.free(item), self.picture.copy()
        if free is None:
            return None
        found[self.box(item)] = self.colour
        found[free] = self.picture[self.box(item)]
        return found

    def extra(self) -> PixelArray | None:
        item = self.some()
        free, found = self.free(item), self.picture.copy()
        if free is None:
            return None
        found[free] = self.picture[self.box(item)]
        return found

    def recoloured(self) -> PixelArray:
        names = [name for name in BACKGROUNDS if name != self.scene.background]
        name = names[int(self.rng.integers(len(names)))]
        return self.source.pixels(Scene(self.scene.items, name))

    def swapped(self) -> PixelArray | None:
        """Two objects of a size change places."""
        for one in self.scene.items:
            for other in self.scene.items:
                if one is not other and one.size == other.size:
                    found = self.picture.copy()
                    found[self.box(one)] = self.picture[self.box(other)]
                    found[self.box(other)] = self.picture[self.box(one)]
                    return found
        return None

    def halves(self) -> PixelArray | None:
        middle = self.picture.shape[1] // 2
        found = np.concatenate([self.picture[:, :middle], self.other[:, middle:]], 1)
        return None if np.array_equal(found, self.picture) else found

    def noise(self) -> PixelArray:
        return self.rng.integers(0, 256, self.picture.shape, np.uint8)


def _told(scene: Scene) -> bool:
    return all(item.place for item in scene.items)


@rasters
@pytest.mark.parametrize(
    "wrong",
    [
        name
        for name, one in vars(Planted).items()
        if name[0] != "_" and name not in ("box", "some", "free")
    ],
)
def test_no_wrong_picture_is_judged_right(raster: RasterName, wrong: str) -> None:
    source = scenes(raster)
    told = [one for one in map(source.scene, range(60)) if _told(one)]
    tried = 0
    for number, (scene, other) in enumerate(pairwise(told)):
        make: Callable[[], PixelArray | None] = getattr(
            Planted(source, scene, other, number), wrong
        )
        picture = make()
        if picture is not None:
            tried += 1
            assert not is_right(reader(raster).read(picture), scene, source.raster)
    assert tried >= 8


@rasters
def test_a_ghost_less_than_a_unit_aside_may_pass(raster: RasterName) -> None:
    """A limit: it lies within the drawing, where the tokenizer's errors are as large. Most are refused."""
    source = scenes(raster)
    told = [one for one in map(source.scene, range(60)) if _told(one)]
    pictures = [source.pixels(one) for one in told]
    passed = [
        is_right(reader(raster).read(mixed(one, np.roll(one, 3, 1))), scene, source.raster)
        for one, scene in zip(pictures, told, strict=True)
    ]
    assert np.mean(passed) < 0.5


@rasters
def test_a_blank_picture_is_whole_and_empty(raster: RasterName) -> None:
    side = SIZES[raster]
    for name, colour in BACKGROUNDS.items():
        blank = np.full((side, side, 3), colour, np.uint8)
        assert reader(raster).read(blank) == Reading((), name, True)


@rasters
def test_an_uneven_or_unknown_background_is_not_read(raster: RasterName) -> None:
    side = SIZES[raster]
    ramp: npt.NDArray[np.uint8] = np.linspace(0, 180, side).astype(np.uint8)
    uneven = np.broadcast_to(ramp[:, None, None], (side, side, 3)).copy()
    unknown = np.full((side, side, 3), (90, 0, 120), np.uint8)
    for picture in (uneven, unknown):
        assert reader(raster).read(picture) == Reading((), "", False)


@rasters
def test_what_is_no_drawing_makes_a_picture_not_whole(raster: RasterName) -> None:
    """A black square where nothing else is: the objects are still read."""
    source = scenes(raster)
    for number in range(10):
        scene = source.scene(number)
        picture = source.pixels(scene)
        unit = source.unit
        free = [
            (slice(y, y + unit), slice(x, x + unit))
            for y in range(0, SIZES[raster], unit)
            for x in range(0, SIZES[raster], unit)
            if all(
                not (x0 <= x < x1 and y0 <= y < y1)
                for item in scene.items
                for x0, y0, x1, y1 in (
                    box_of(source.raster, item.size, corner, unit) for corner in item.corners
                )
            )
        ]
        picture[free[-1]] = 0
        reading = reader(raster).read(picture)
        assert not reading.is_whole
        assert sorted(corners_of(reading)) == sorted(objects(scene).elements())


@pytest.mark.parametrize("shape", [(64, 48, 3), (60, 60, 3)])
def test_pictures_of_a_wrong_size_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError) as caught:
        reader("fine").read(np.zeros(shape, np.uint8))
    assert caught.value.place == "picture"
    assert tells(caught.value, f"picture ... {shape[0]} x {shape[1]} pixels ... multiple of 16")
