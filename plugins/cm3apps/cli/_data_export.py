"""`cm3 data export`: write a data set as WebDataset tars of pictures and JSON, for trainers of other people.

    FOLDER/export.json              the data set's hash, the number of records, those of a shard; written first
    FOLDER/NAME-000000.tar          for each record KEY.png (KEY.FIELD.png each, if it has several pictures), KEY.txt
                                    (its caption, if it has one) and KEY.json (its texts, id, licence and truth)

A shard is a function of the data set and its number, and is written atomically: after an interruption, the shards that
this user's commands wrote are kept, and the others are made again.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli import registry_of, whole_number
from cm3apps.cli._dataset import count_of, data_of, recipe_of
from cm3core.errors import DataError
from cm3core.files import atomic_path, held_folder, open_regular, remove_unfinished, write_text
from cm3core.interfaces.dataset import Provenance, SkippedRecord
from cm3core.outputs import OutputFolder

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import DocumentSource

LINE = "export a data set as WebDataset tars of pictures and JSON, or resume that"
DESCRIPTION = (
    "Writes each record's pictures (PNG), caption and texts (JSON, with its licence) into WebDataset tars, for other "
    "trainers.\nA recipe's task is not applied. If it is interrupted, the same command resumes."
)
EXAMPLE = "cm3 data export tiny dataset=scenes dataset.form=edit --num 5000 -o my/edits"
#: Records per shard: the most that an interruption costs.
SHARD_SIZE = 1000
INDEX = "export.json"
#: Version of the files' form.
_FORMAT = 1
#: A field's name as part of a member's name, which USTAR limits to 100 bytes.
_FIELD = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: Keys of `KEY.json` that are not fields of the record; `license` would be read as another licence.
_OWN_KEYS = frozenset({"id", "truth", "license", *(one.name for one in fields(Provenance))})
_NUM_SHOWN = 5


def configure(parser: ArgumentParser) -> None:
    """The action's options."""
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FOLDER", help="the shards' folder"
    )
    parser.add_argument(
        "--num",
        type=whole_number(1, 2**40),
        default=None,
        metavar="N",
        help="export the first N records of the split (default: all)",
    )
    parser.add_argument(
        "--shard-size",
        type=whole_number(1, 2**24),
        default=SHARD_SIZE,
        metavar="N",
        help="records per shard; an interruption loses at most one shard (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: Namespace) -> int:
    """Export the data set; return the exit code."""
    registry = registry_of(args)
    data = data_of(recipe_of(args.target, args.overrides, registry), registry)
    folder = OutputFolder(args.out)
    _check_new(args.out)
    source = replace(data, task=None).build(data.config.split)
    number = len(source) if args.num is None else min(args.num, len(source))
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", data.name)
    shards = {
        f"{name}-{start // args.shard_size:06d}.tar": range(
            start, min(start + args.shard_size, number)
        )
        for start in range(0, number, args.shard_size)
    }
    busy = DataError(
        str(args.out),
        "another process is writing into this folder",
        "wait for it, or name another folder (-o)",
    )
    with held_folder(args.out, busy):
        remove_unfinished(args.out)
        index = {
            "format": _FORMAT,
            "dataset": data.name,
            "split": data.config.split,
            "fingerprint": fingerprint_of(source),
            "number": number,
            "shard_size": args.shard_size,
        }
        _begin(folder, index)
        skipped = _write_shards(folder, shards, source, args.quiet)
        counts = {shard: _num_samples(args.out / shard) for shard in shards}
        if not any(counts.values()):
            folder.remove(INDEX)
            raise _nothing_usable([*skipped, *source.skipped])
    num_samples = sum(counts.values())
    num_left_out = number - num_samples
    size = sum((args.out / shard).stat().st_size for shard, count in counts.items() if count)
    print(
        f"{args.out}: split {data.config.split}: {count_of(num_samples, 'record')}, {size / 1e6:,.1f} MB in "
        f"{count_of(sum(map(bool, counts.values())), 'shard')}"
        + (f"; left out: {count_of(num_left_out, 'unusable record')}" if num_left_out else "")
    )
    for record in skipped[:_NUM_SHOWN]:
        print(f"  {record.place}: {record.cause}")
    if source.skipped:
        print(
            f"the data set skips {count_of(len(source.skipped), 'bad record')}; 'cm3 data validate' lists them all"
        )
    return 0


def fingerprint_of(source: DocumentSource) -> str:
    """Hash of the documents and of their licences."""
    stated = sorted(json.dumps(one.stated()) for one in source.provenances())
    return hashlib.sha256(json.dumps([source.content_fingerprint, stated]).encode()).hexdigest()


def _check_new(folder: Path) -> None:
    """Raise `DataError` if the folder has tars and no `export.json`: a reader of the folder would read them, too."""
    strange = sorted(one.name for one in folder.glob("*.tar"))
    if strange and not (folder / INDEX).is_file():
        raise DataError(
            str(folder), f"contains {strange[0]!r} and no {INDEX}", "name a new folder (-o)"
        )


def _begin(folder: OutputFolder, index: Mapping[str, object]) -> None:
    """Write `export.json`. One that is there must be the same, whoever wrote it.

    Raises:
        DataError: it is of another export.
    """
    path, text = folder.folder / INDEX, json.dumps(index, indent=2) + "\n"
    if not path.is_file():
        write_text(path, text)
        return
    with open_regular(path) as file:
        is_same = file.read(len(text) + 1) == text.encode()
    if not is_same:
        raise DataError(
            str(path),
            "is that of other data or settings",
            "name a new folder (-o), or delete this one",
        )


def _write_shards(
    folder: OutputFolder, shards: Mapping[str, range], source: DocumentSource, quiet: bool
) -> list[SkippedRecord]:
    """Write the missing shards; return their unusable records. A shard without a usable record is not kept."""
    from cm3run.progress import make_bar
    from cm3run.token_shards.record import add_member

    skipped: list[SkippedRecord] = []
    with make_bar(
        total=sum(map(len, shards.values())),
        desc="exporting",
        unit=" records",
        disable=quiet or None,
    ) as bar:
        for name, places in shards.items():
            if folder.is_own(name):
                bar.update(len(places))
                continue
            is_empty = True
            with (
                atomic_path(folder.folder / name) as temporary,
                tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
            ):
                for place in places:
                    try:
                        # complete before the first is added: a bad picture leaves no half a sample
                        members = list(sample(source, place))
                    except DataError as error:
                        skipped.append(SkippedRecord(error.place, error.cause, error.next_step))
                    else:
                        is_empty = False
                        for suffix, content in members:
                            add_member(tar, f"{place:012d}{suffix}", content)
                    bar.update()
            if is_empty:
                folder.remove(name)
    return skipped


def sample(source: DocumentSource, index: int) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a record, each with what follows its key: its pictures, its caption if it has one, its JSON.

    Raises:
        DataError: a picture can't be read or is stored as codes, or a field can't be part of a file's name.
    """
    from cm3core.document import Codes, Image
    from cm3core.images import png_bytes

    place = f"document {source.id(index)}"
    record = _fields(source, index)
    pictures = {key: one for key, one in record.items() if isinstance(one, (Image, Codes))}
    texts = {
        key: str(getattr(one, "text", one))  # `Boxes` have one
        for key, one in record.items()
        if key not in pictures
    }
    if not record:
        raise DataError(place, "is empty", "remove it")
    for key, picture in pictures.items():
        if isinstance(picture, Codes):
            raise DataError(
                place, "has its picture as codes", "export the data set that was encoded"
            )
        if len(pictures) > 1 and not _FIELD.fullmatch(key):
            raise DataError(
                place,
                f"has the field {key!r}, which can't be part of a file's name in a tar",
                "name it by at most 64 letters, digits, - and _",
            )
        yield ".png" if len(pictures) == 1 else f".{key}.png", png_bytes(picture.load())
    values: dict[str, Any] = {
        f"{key}_text" if key in _OWN_KEYS else key: text for key, text in texts.items()
    }
    values["id"] = source.id(index)
    # readers take an empty text for a mistake
    values |= {key: value for key, value in source.provenance(index).stated().items() if value}
    if truth := source.truth(index):
        values["truth"] = truth
    # in a caption's file, each line is a caption
    caption = " ".join(texts.get("caption", "").splitlines()).strip()
    try:
        if caption:
            yield ".txt", caption.encode()
        yield ".json", json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            place,
            f"holds half a character ({error.object[error.start]!a}), which is not Unicode",
            "correct its text, or leave it out",
        ) from error


def _fields(source: DocumentSource, index: int) -> Mapping[str, Any]:
    """The record's fields. If it has none of its own and its document has several pictures, the document's parts, numbered:
    text0, image1, ..."""
    from cm3core.document import Codes, Image

    record, document = source.record(index), source.document(index)

    def num_pictures(parts: Sequence[object]) -> int:
        return sum(isinstance(one, (Image, Codes)) for one in parts)

    if num_pictures(document) <= num_pictures(list(record.values())):
        return record
    return {
        f"{'image' if isinstance(one, (Image, Codes)) else 'text'}{number}": one
        for number, one in enumerate(document)
    }


def _num_samples(path: Path) -> int:
    """Number of records in a shard, 0 if there is none."""
    if not path.is_file():
        return 0
    with tarfile.open(path, "r:") as tar:
        return sum(member.name.endswith(".json") for member in tar)


def _nothing_usable(skipped: Sequence[SkippedRecord]) -> DataError:
    first = f"; the first is {skipped[0].place}: {skipped[0].cause}" if skipped else ""
    return DataError(
        "the data set",
        f"has no usable record ({len(skipped)} skipped{first})",
        "run 'cm3 data validate' to see why",
    )
