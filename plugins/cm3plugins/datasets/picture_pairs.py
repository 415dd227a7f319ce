"""Data set `picture_pairs`: two pictures and a text, in the formats of published data sets.

instruct_pix2pix   seeds.json: [[NAME, [SEED, ...]], ...]; NAME/prompt.json with "edit", NAME/SEED_0.jpg
                   before it and NAME/SEED_1.jpg after (timothybrooks/instruct-pix2pix, edit_dataset.py)
magicbrush         edit_turns.json: [{"input", "mask", "output", "instruction"}, ...], the pictures in
                   images/ID; or Parquet with the columns img_id, turn_index, source_img, mask_img,
                   instruction, target_img
controlnet         prompt.json: lines {"source", "target", "prompt"} (lllyasviel/ControlNet, fill50k)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cm3core.errors import DataError
from cm3core.interfaces.reach import READS, TEXT, Outside
from cm3plugins.datasets.annotations import (
    Numbered,
    name_in,
    object_of,
    read_json,
    text_in,
)
from cm3plugins.datasets.file_source import (
    MAX_TEXT_BYTES,
    FileSourceConfig,
    FoundRecord,
    Picture,
    boundary,
    check_inside,
    existing,
    found_or_skipped,
    is_unicode,
    read_utf8,
    skipped,
    type_name,
)
from cm3plugins.datasets.hub_data import TABLES, local
from cm3plugins.datasets.jsonl import PicturesOfLines
from cm3plugins.datasets.table import Row, picture_of, rows
from cm3run.json_text import parse_json

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import SkippedRecord
    from cm3plugins.datasets.pictures import PictureIndex

#: Columns of MagicBrush's Parquet files, and of its JSON file.
_MAGICBRUSH = {"source": "source_img", "mask": "mask_img", "target": "target_img"}
_MAGICBRUSH_JSON = {"source": "input", "mask": "mask", "target": "output"}
#: Aspect ratios that differ by no more count as equal, since sizes are rounded.
_SAME_SHAPE = 0.01

Records = Iterator["FoundRecord | SkippedRecord"]


@dataclass(kw_only=True)
class PicturePairsConfig(FileSourceConfig):
    """Pairs of pictures with a text, in published formats: edits, and pictures with a structure.

    Args:
        format: "instruct_pix2pix" and "magicbrush" have the fields source, instruction, target
            (MagicBrush also mask); "controlnet" has feature, condition, caption, image.
        path: the data set's folder, or its file: seeds.json, edit_turns.json, a .parquet file,
            prompt.json.
        feature: for "controlnet": name of its conditions, such as "canny edge features".
        allow_outside: read files outside the data set's folder, through absolute paths, `../` or links; false:
            skip their records.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(READS, "its pictures"),
        "feature": TEXT,
    }

    format: Literal["instruct_pix2pix", "magicbrush", "controlnet"] = "instruct_pix2pix"
    path: str
    feature: str = "edges"
    allow_outside: bool = False

    def structures(self) -> list[str]:
        return [self.feature] if self.format == "controlnet" else []

    def scan(self, index: PictureIndex) -> Records:
        """Yield records in the order of the file."""
        return _SCANS[self.format](self, index)

    def pictures(self, folder: Path, index: PictureIndex) -> PicturesOfLines:
        """Return the pictures in a folder."""
        return PicturesOfLines(folder, boundary(folder, self.allow_outside), index, "its folder")


def _instruct_pix2pix(config: PicturePairsConfig, index: PictureIndex) -> Records:
    path = _file(config.path, "seeds.json")
    pictures = config.pictures(path.parent, index)
    entries = read_json(path)
    if not isinstance(entries, list):
        raise DataError(
            str(path), f"is {type_name(entries)}, not a list", "write [[name, [seed, ...]], ...]"
        )
    for number, entry in enumerate(entries):
        place = f"{path}, entry {number}"
        if not _is_entry(entry):
            yield skipped(DataError(place, "is not [name, [seed, ...]]", "correct it"))
            continue
        name, seeds = entry
        for seed in seeds:
            try:
                yield _edit(place, name, seed, pictures)
            except DataError as error:
                yield skipped(error)


def _is_entry(entry: Any) -> bool:
    """Whether it is a name with seeds."""
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and isinstance(entry[0], str)
        and isinstance(entry[1], list)
        and bool(entry[1])
        and all(isinstance(seed, str | int) and not isinstance(seed, bool) for seed in entry[1])
    )


def _edit(place: str, name: str, seed: str | int, pictures: PicturesOfLines) -> FoundRecord:
    """Return a pair of InstructPix2Pix."""
    edit = text_in(*_prompt(pictures, f"{place}, {name}/prompt.json", name), "edit")
    return FoundRecord(
        f"{name}/{seed}",
        place,
        (
            pictures.picture(place, f"{name}/{seed}_0.jpg", "source"),
            (edit,),
            pictures.picture(place, f"{name}/{seed}_1.jpg", "target"),
        ),
        names=("source", "instruction", "target"),
        group=name,
    )


def _prompt(pictures: PicturesOfLines, place: str, name: str) -> tuple[str, dict[str, Any]]:
    """Return place and content of a pair's prompt.json."""
    path = pictures.folder / name / "prompt.json"
    if "\0" in name or not is_unicode(name):
        raise DataError(ascii(place), "is not a path", "correct the name of the folder")
    check_inside(path, pictures.inside, place)
    content = read_utf8(path, place, MAX_TEXT_BYTES)
    return place, object_of(place, parse_json(content, place))


def _magicbrush(config: PicturePairsConfig, index: PictureIndex) -> Records:
    folder = local(config.path, TABLES)
    if folder.is_dir() and not (folder / "edit_turns.json").is_file():
        files = sorted(folder.glob("*.parquet"))
    else:
        files = [_file(config.path, "edit_turns.json")]
    if not files:
        raise DataError(
            f"dataset.path {folder}",
            "is a folder without edit_turns.json or .parquet files",
            "use the folder that has them",
        )
    pictures = config.pictures(files[0].parent, index)
    columns = ["img_id", "turn_index", "instruction", *_MAGICBRUSH.values()]
    for path in files:
        yield from found_or_skipped(
            rows(path, columns, index), lambda row: _edit_turn(row, pictures)
        )


def _edit_turn(row: Row | DataError, pictures: PicturesOfLines) -> FoundRecord:
    """Return a turn of MagicBrush, in either format."""
    if isinstance(row, DataError):
        raise row
    place, values = row.place, row.values
    in_json = "input" in values
    columns, cells = _MAGICBRUSH_JSON if in_json else _MAGICBRUSH, dict(values)
    if in_json:
        own, turn = name_in(place, values, "input").partition("-")[0], ""
        for column in columns.values():
            if values.get(column) is not None:
                cells[column] = f"images/{own}/{name_in(place, values, column)}"
        name = f"{own}/{Path(name_in(place, values, 'output')).stem}"
    else:
        own, turn = name_in(place, values, "img_id"), name_in(place, values, "turn_index")
        name = f"{own}/{turn}"
    instruction = text_in(place, values, "instruction")
    found: dict[str, Picture] = {}
    for field, column in columns.items():
        if cells.get(column) is not None:
            found[field] = picture_of(place, cells[column], field, pictures)
        elif field != "mask":
            raise DataError(place, f"has no {column!r}", "add it, or remove the record")
    if "mask" in found:
        _check_size(place, found["mask"], found["source"])
    parts: dict[str, Picture | tuple[str, ...]] = {
        "source": found["source"],
        "instruction": (instruction,),
        "target": found["target"],
    }
    if "mask" in found:
        parts["mask"] = found["mask"]
    return FoundRecord(name, place, tuple(parts.values()), names=tuple(parts), group=own)


def _check_size(place: str, mask: Any, source: Any) -> None:
    """Raise `DataError` if a mask's size differs from its picture's."""
    if (mask.width, mask.height) != (source.width, source.height):
        raise DataError(
            place,
            f"its mask has {mask.width} x {mask.height} pixels, but its source has "
            f"{source.width} x {source.height}",
            "use a mask of the same size, or none",
        )


def _controlnet(config: PicturePairsConfig, index: PictureIndex) -> Records:
    path = _file(config.path, "prompt.json")
    pictures, numbered = config.pictures(path.parent, index), Numbered()

    def find(row: Row | DataError) -> FoundRecord:
        if isinstance(row, DataError):
            raise row
        place, values = row.place, row.values
        condition = pictures.picture(place, values.get("source"), "source")
        image = pictures.picture(place, values.get("target"), "target")
        shapes = [one.width / one.height for one in (condition, image)]
        if abs(shapes[0] / shapes[1] - 1) > _SAME_SHAPE:
            raise DataError(
                place,
                f"its source has {condition.width} x {condition.height} pixels, but its target has "
                f"{image.width} x {image.height}: cropped to squares, they show different parts",
                "use the same aspect ratio for both",
            )
        target = str(values["target"])
        return FoundRecord(
            numbered(target),
            place,
            ((config.feature,), condition, (text_in(place, values, "prompt"),), image),
            names=("feature", "condition", "caption", "image"),
            group=target,
        )

    return found_or_skipped(rows(path, [], index), find)


def _file(path: str, name: str) -> Path:
    """Return the file at a path, or the file `name` in the folder at that path."""
    folder = local(path, TABLES)
    return existing(str(folder / name) if folder.is_dir() else path, folder=False)


_SCANS: dict[str, Callable[[PicturePairsConfig, PictureIndex], Records]] = {
    "instruct_pix2pix": _instruct_pix2pix,
    "magicbrush": _magicbrush,
    "controlnet": _controlnet,
}
