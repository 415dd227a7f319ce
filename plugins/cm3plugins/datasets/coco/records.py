"""COCO's annotation files (pictures, annotations, categories, licences) and the records of each form."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3core.boxes import Boxes
from cm3core.errors import DataError
from cm3core.interfaces.dataset import Provenance
from cm3plugins.datasets.annotations import (
    file_at,
    folder_at,
    list_in,
    name_in,
    object_of,
    provenance_of,
    read_json,
    text_in,
)
from cm3plugins.datasets.coco import shapes
from cm3plugins.datasets.coco.settings import FEATURES, Settings
from cm3plugins.datasets.file_source import FoundRecord, boundary, existing, skipped
from cm3plugins.datasets.jsonl import PicturesOfLines

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import SkippedRecord
    from cm3plugins.datasets.pictures import PictureIndex, StoredPicture

#: An annotation: its place for messages, and its values.
Annotation = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Category:
    """A category: number, name and, for poses, its keypoints and the limbs between them (indices from 0)."""

    number: int
    name: str
    num_keypoints: int
    skeleton: tuple[tuple[int, int], ...]


@dataclass
class AnnotationFile:
    """A COCO file: pictures in order, their annotations, categories, licences, problems."""

    path: Path
    images: dict[str, Annotation] = field(default_factory=dict)
    annotations: dict[str, list[Annotation]] = field(default_factory=lambda: defaultdict(list))
    categories: dict[str, Category] = field(default_factory=dict)
    licences: dict[str, Any] = field(default_factory=dict)
    problems: list[DataError] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> AnnotationFile:
        """Read the file; raises `DataError` if it is not a COCO file."""
        found, whole = cls(path), object_of(str(path), read_json(path))
        for place, values in found._each("image", list_in(str(path), whole, "images")):
            if (name := str(values["id"])) in found.images:
                found.problems.append(
                    DataError(
                        place,
                        f"its id {name} is also the id of {found.images[name][0]}",
                        "keep one of the two",
                    )
                )
            else:
                found.images[name] = place, values
        for place, values in found._each("annotation", list_in(str(path), whole, "annotations")):
            if (name := str(values.get("image_id"))) in found.images:
                found.annotations[name].append((place, values))
            else:
                found.problems.append(
                    DataError(
                        place,
                        f"refers to the picture {name}, which is not in 'images'",
                        "add the picture, or remove the annotation",
                    )
                )
        for place, values in found._each("category", whole.get("categories") or []):
            try:
                found.categories[str(values["id"])] = _category(place, values)
            except DataError as error:
                found.problems.append(error)
        licences = whole.get("licenses")
        for one in licences if isinstance(licences, list) else []:
            if isinstance(one, dict):
                found.licences[str(one.get("id"))] = one
        return found

    def _each(self, noun: str, values: Any) -> Iterator[Annotation]:
        """Yield the values that are objects with an id; a panoptic annotation has its picture's id."""
        for number, value in enumerate(values if isinstance(values, list) else []):
            place = f"{self.path}, {noun} {number}"
            try:
                own = object_of(place, value)
                name_in(place, own, "image_id" if noun == "annotation" else "id")
                yield place, own
            except DataError as error:
                self.problems.append(error)

    def category_of(self, place: str, values: dict[str, Any]) -> Category:
        """Return the category of an annotation or a segment; raises `DataError` if there is none."""
        given = values.get("category_id")
        number = str(given)
        if number not in self.categories:
            raise DataError(
                place,
                f"has the category {given!r}, which is not in 'categories'",
                "add the category",
            )
        return self.categories[number]

    def provenance(self, values: dict[str, Any]) -> Provenance:
        """Return licence and address of a picture."""
        licence = self.licences.get(str(values.get("license")))
        return provenance_of(licence, values.get("flickr_url") or values.get("coco_url"))


def _category(place: str, values: dict[str, Any]) -> Category:
    number = values["id"]
    if not isinstance(number, int):
        raise DataError(place, f"its 'id' is {number!r}, not a number", "correct it")
    keypoints = values.get("keypoints")
    count = len(keypoints) if isinstance(keypoints, list) else 0
    limbs = values.get("skeleton")
    skeleton = []
    for limb in limbs if isinstance(limbs, list) else []:
        good = isinstance(limb, list) and len(limb) == 2
        if not good or not all(isinstance(end, int) and 1 <= end <= count for end in limb):
            raise DataError(
                place, f"its 'skeleton' has {limb!r}, but it has {count} keypoints", "correct it"
            )
        skeleton.append((limb[0] - 1, limb[1] - 1))
    return Category(number, text_in(place, values, "name"), count, tuple(skeleton))


@dataclass(frozen=True)
class Shown:
    """A picture of the file with its annotations; `size`: (height, width) in pixels, upright."""

    file: AnnotationFile
    name: str
    picture: StoredPicture
    annotations: Sequence[Annotation]
    captions: tuple[str, ...]
    provenance: Provenance

    @property
    def size(self) -> tuple[int, int]:
        return self.picture.height, self.picture.width

    def record(self, place: str, suffix: str = "", **fields: Any) -> FoundRecord:
        """Return a record with fields in this order."""
        return FoundRecord(
            f"{self.name}{suffix}",
            place,
            tuple(fields.values()),
            self.provenance,
            names=tuple(fields),
            group=self.name,
        )

    def caption_of(self, categories: Sequence[Category]) -> tuple[str, ...]:
        """Return the picture's captions, or the names of the categories in it."""
        names = list(dict.fromkeys(category.name for category in categories))
        named = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)
        return self.captions or (named,)


def records(config: Settings, index: PictureIndex) -> Iterator[FoundRecord | SkippedRecord]:
    """See `COCOConfig.scan`."""
    file = AnnotationFile.read(existing(config.path, folder=False))
    captions, problems = _captions_of(config)
    problems = [*file.problems, *problems]
    folder = folder_at(config.pictures, "pictures")
    inside = boundary(folder, config.allow_outside)
    pictures = PicturesOfLines(folder, inside, index, "the pictures' folder")
    form = _Forms(config, file, index)
    for name, (place, values) in file.images.items():
        try:
            picture = pictures.picture(place, values.get("file_name"), "file_name")
            _check_size(place, values, picture)
            shown = Shown(
                file,
                name,
                picture,
                file.annotations.get(name, ()),
                captions.get(name, ()),
                file.provenance(values),
            )
            yield from form.records(shown, place)
        except DataError as error:
            yield skipped(error)
    yield from map(skipped, problems)


def _captions_of(config: Settings) -> tuple[dict[str, tuple[str, ...]], list[DataError]]:
    """Return picture -> captions from another file, and its problems."""
    if not config.captions:
        return {}, []
    file = AnnotationFile.read(file_at(config.captions, "captions"))
    problems, found = list(file.problems), {}
    for name, given in file.annotations.items():
        found[name] = tuple(_texts(given, problems))
    return found, problems


def _texts(annotations: Sequence[Annotation], problems: list[DataError]) -> Iterator[str]:
    """Yield the captions of annotations; add invalid ones to the problems."""
    for place, values in annotations:
        try:
            yield text_in(place, values, "caption")
        except DataError as error:
            problems.append(error)


def _check_size(place: str, values: dict[str, Any], picture: StoredPicture) -> None:
    """Raise `DataError` if the file states another size, since coordinates would be wrong."""
    stated = values.get("width"), values.get("height")
    if stated not in ((None, None), (picture.width, picture.height)):
        raise DataError(
            place,
            f"states that the picture has {stated[0]!r} x {stated[1]!r} pixels, but it has {picture.width} x "
            f"{picture.height}, upright",
            "use the annotated picture, and state its size when upright",
        )


class _Forms:
    """Makes the records of each form from a picture."""

    def __init__(self, config: Settings, file: AnnotationFile, index: PictureIndex) -> None:
        self.config, self.file = config, file
        self.feature = (config.feature or FEATURES.get(config.form, ""),)
        folder = config.path.removesuffix(".json")
        self.segments: PicturesOfLines | None = None
        panoptic = any(
            "segments_info" in values for found in file.annotations.values() for _, values in found
        )
        if config.form == "segmentation" and (panoptic or config.segments):
            pngs = folder_at(config.segments or folder, "segments")
            inside = boundary(pngs, config.allow_outside)
            self.segments = PicturesOfLines(pngs, inside, index, "the segments' folder")

    def records(self, shown: Shown, place: str) -> Iterator[FoundRecord | SkippedRecord]:
        """Yield the records of a picture."""
        made: Iterator[FoundRecord | SkippedRecord] = getattr(self, f"_{self.config.form}")(
            shown, place
        )
        return made

    def _caption(self, shown: Shown, place: str) -> Iterator[FoundRecord | SkippedRecord]:
        problems: list[DataError] = []
        captions = tuple(_texts(shown.annotations, problems))
        yield from map(skipped, problems)
        if captions:
            yield shown.record(place, image=shown.picture, caption=captions)
        elif not problems:
            raise DataError(place, "has no caption", "write one, or remove the picture")

    def _boxes(self, shown: Shown) -> Iterator[tuple[Category, DataError | Boxes]]:
        """Yield the boxes of each category, without crowds, in the order of their positions; or an invalid
        box's error."""
        found: dict[Category, list[tuple[float, float, float, float]]] = defaultdict(list)
        wrong: dict[Category, DataError] = {}
        for place, values in shown.annotations:
            category = shown.file.category_of(place, values)
            if not values.get("iscrowd"):
                try:
                    found[category].append(shapes.box_of(place, values, shown.size))
                except DataError as error:
                    wrong.setdefault(category, error)
        for category in dict.fromkeys([*found, *wrong]):
            boxes = tuple((category.name, box) for box in sorted(found[category]))
            yield category, wrong.get(category) or Boxes(boxes, shown.size)

    def _grounding(self, shown: Shown, place: str) -> Iterator[FoundRecord | SkippedRecord]:
        for category, boxes in self._boxes(shown):
            if isinstance(boxes, DataError):
                yield skipped(boxes)
            elif boxes.text:  # a model sees only the centre
                yield shown.record(
                    place,
                    f"/{category.name}",
                    image=shown.picture,
                    phrase=(category.name,),
                    objects=(boxes.text,),
                )

    def _objects(self, shown: Shown, place: str) -> Iterator[FoundRecord | SkippedRecord]:
        objects: list[tuple[str, tuple[float, float, float, float]]] = []
        categories: list[Category] = []
        for category, boxes in self._boxes(shown):
            if isinstance(boxes, DataError):
                raise boxes
            if boxes.text:
                categories.append(category)
                objects += boxes.objects
        if objects:
            yield shown.record(
                place,
                caption=shown.caption_of(categories),
                objects=(Boxes(tuple(objects), shown.size).text,),
                image=shown.picture,
            )

    def _condition(
        self, shown: Shown, place: str, condition: shapes.DrawnPicture, categories: list[Category]
    ) -> FoundRecord:
        return shown.record(
            place,
            feature=self.feature,
            condition=condition,
            caption=shown.caption_of(categories),
            image=shown.picture,
        )

    def _segmentation(self, shown: Shown, place: str) -> Iterator[FoundRecord | SkippedRecord]:
        if self.segments is not None:
            for own_place, values in shown.annotations:
                yield from self._panoptic(shown, own_place, values)
            return
        segments, categories = [], []
        for own_place, values in shown.annotations:
            category = shown.file.category_of(own_place, values)
            categories.append(category)
            segments.append((category.number, shapes.segment_of(own_place, values, shown.size)))
        if not segments:
            return
        # small segments are in front of large ones
        size = shown.size
        segments.sort(key=lambda one: -_extent(one[1]))
        drawn = shapes.drawn(
            ["segments", size, segments], lambda: shapes.draw_segments(segments, size)
        )
        yield self._condition(shown, place, drawn, categories)

    def _panoptic(
        self, shown: Shown, place: str, values: dict[str, Any]
    ) -> Iterator[FoundRecord | SkippedRecord]:
        assert self.segments is not None
        png = self.segments.picture(place, values.get("file_name"), "file_name")
        if (png.width, png.height) != (shown.picture.width, shown.picture.height):
            raise DataError(
                place,
                f"its PNG has {png.width} x {png.height} pixels, but the picture has {shown.picture.width} x "
                f"{shown.picture.height}",
                "use the PNG of this picture",
            )
        categories: list[Category] = []
        numbers: dict[int, int] = {}
        for number, value in enumerate(list_in(place, values, "segments_info")):
            here = f"{place}, segment {number}"
            info = object_of(here, value)
            categories.append(shown.file.category_of(here, info))
            own = info.get("id")
            if isinstance(own, bool) or not isinstance(own, int):
                raise DataError(here, f"its 'id' is {own!r}, not a number", "correct it")
            numbers[own] = categories[-1].number
        if not categories:
            return
        drawn = shapes.drawn(
            ["panoptic", png.key, sorted(numbers.items())],
            lambda: shapes.draw_panoptic(png.load(), numbers, png.place),
        )
        yield self._condition(shown, place, drawn, categories)

    def _pose(self, shown: Shown, place: str) -> Iterator[FoundRecord | SkippedRecord]:
        people: list[tuple[shapes.Joint, ...]] = []
        categories: list[Category] = []
        for own_place, values in shown.annotations:
            category = shown.file.category_of(own_place, values)
            joints = shapes.joints_of(own_place, values, shown.size, category.num_keypoints)
            if any(seen for _, _, seen in joints):
                categories.append(category)
                people.append(joints)
        if not people:
            return
        if len(set(categories)) > 1:
            raise DataError(
                place, "has poses of several categories", "annotate one category per picture"
            )
        size, skeleton = shown.size, categories[0].skeleton
        drawn = shapes.drawn(
            ["pose", size, skeleton, people], lambda: shapes.draw_poses(people, skeleton, size)
        )
        yield self._condition(shown, place, drawn, categories)


def _extent(segment: shapes.Segment) -> float:
    """Return a segment's approximate size: pixels of its runs, or of its polygons' bounding box."""
    total = 0.0
    for number, part in enumerate(segment):
        if isinstance(part, tuple):
            total += (max(part[::2]) - min(part[::2])) * (max(part[1::2]) - min(part[1::2]))
        elif number % 2:  # odd runs belong to the segment
            total += part
    return total
