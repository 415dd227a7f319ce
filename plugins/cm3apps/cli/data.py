"""`cm3 data validate | show | encode | export`: check every record of a data set, show some records, write token
shards, and write tars for other trainers."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cm3apps.cli import _data_encode, _data_export, add_overrides, registry_of, whole_number
from cm3apps.cli._dataset import count_of, data_of, data_source, recipe_of
from cm3core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cm3apps.cli._dataset import ChosenData
    from cm3core.document import Document, PixelArray
    from cm3core.interfaces.dataset import DocumentSource, SkippedRecord
    from cm3core.recipe import Recipe

HELP = "inspect a data set, check every record, encode it into token shards, or export it"
EXAMPLE = """  cm3 data validate my/pictures
  cm3 data validate dataset=folder dataset.path=my/pictures
  cm3 data show quickstart dataset.split=unseen -o sheet.png
  cm3 data encode quickstart -o my/shards --processes 2
  cm3 data export quickstart -o my/tars --num 1000
The path decides the reader: 'folder' for folders, 'jsonl' for .jsonl, 'table' for .csv and .parquet,
'webdataset' for .tar (also data-{000..099}.tar)."""
NUM_SHOWN = 5
TILE = 128


def configure(parser: ArgumentParser) -> None:
    """Add the actions."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(name: str, line: str, description: str, example: str) -> ArgumentParser:
        action = actions.add_parser(
            name,
            help=line,
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=RawDescriptionHelpFormatter,
        )
        action.add_argument(
            "target",
            nargs="?",
            metavar="RECIPE|PATH|NAME",
            help="a recipe's name or file, a folder or file of data, or a data set's name",
        )
        add_overrides(action)
        return action

    validate = add(
        "validate",
        "check every record of every split, decode every picture, and list bad records",
        "Checks every record of every split, decodes every picture and tests whether it is blank; for a "
        "recipe's data set also tests whether each document fits into decoder.context_length. Exit code 1 if any is bad "
        "or blank.",
        "cm3 data validate my/pictures",
    )
    validate.add_argument("--quiet", action="store_true", help="no progress bar")
    show = add(
        "show",
        "count documents, and show some in a contact sheet",
        "Counts the documents of each split, and shows some with their captions in one picture.",
        "cm3 data show my/pictures --num 48 -o sheet.png",
    )
    show.add_argument(
        "-o",
        "--out",
        type=Path,
        default=None,
        metavar="FILE.png",
        help="the contact sheet (default: data-<name>.png)",
    )
    show.add_argument(
        "--num",
        type=whole_number(1, 2**16),
        default=24,
        help="pictures on the sheet (default: %(default)s)",
    )
    _data_encode.configure(
        add("encode", _data_encode.LINE, _data_encode.DESCRIPTION, _data_encode.EXAMPLE)
    )
    _data_export.configure(
        add("export", _data_export.LINE, _data_export.DESCRIPTION, _data_export.EXAMPLE)
    )


def run(args: Namespace) -> int:
    """Run one action."""
    if args.action == "encode":
        return _data_encode.run(args)
    if args.action == "export":
        return _data_export.run(args)
    registry = registry_of(args)
    recipe = recipe_of(args.target, args.overrides, registry)
    data = data_of(recipe, registry)
    if args.action == "show":
        return _show(data, args.out or Path(f"data-{data.name.replace('/', '-')}.png"), args.num)
    return _validate(data, context_check(recipe), args.quiet)


DocumentCheck: TypeAlias = "Callable[[DocumentSource, int], None]"


def context_check(recipe: Recipe) -> DocumentCheck | None:
    """A check that raises `DataError` for a document that is longer than the recipe's context, because training
    skips it; None if there is no decoder or tokenizer, as for data without a recipe.

    If the text tokenizer must be trained, it is trained as in `cm3 train`, on the recipe's own split.
    """
    decoder, texts, images = recipe.decoder, recipe.text_tokenizer, recipe.image_tokenizer
    context = getattr(decoder, "context_length", None)
    if context is None or texts is None or images is None:
        return None
    from cm3run.build import layout_of
    from cm3run.training.sequences import sequence_length

    tokenizer = texts.build(data_source(recipe, None).texts())
    layout = layout_of(recipe, tokenizer, images)
    most, grid = recipe.data.max_text_tokens, images.grid

    def check(source: DocumentSource, index: int) -> None:
        length = sequence_length(source.document(index), tokenizer, grid, most, layout)
        if length > context + 1:
            raise DataError(
                f"document {source.id(index)}",
                f"has {length} tokens, but the context holds {context + 1}: training skips it",
                "set data.max_text_tokens, or raise decoder.context_length",
            )

    return check


def _validate(data: ChosenData, check_length: DocumentCheck | None, quiet: bool) -> int:
    """Print bad records as they are found, then the summary."""
    from tqdm import tqdm

    from cm3run.progress import make_bar

    splits = (
        ["all"]
        if "all" in data.config.splits
        else list(dict.fromkeys((*data.config.splits, data.config.split)))
    )
    reported: set[SkippedRecord] = set()
    num_documents = num_bad = num_blank = 0
    for split in splits:
        try:
            source = data.build(split)
        except DataError:
            if split in ("all", data.config.split):
                raise
            continue  # a data set may lack some splits
        for record in source.skipped:
            # every split lists the bad records of the whole data set
            if record not in reported:
                reported.add(record)
                _print_bad(record)
        num_documents += len(source)
        for index in make_bar(
            range(len(source)), desc=f"checking {split}", unit=" documents", disable=quiet or None
        ):
            try:
                blank = _check_document(source, index)
                if check_length is not None:
                    check_length(source, index)
                if blank:
                    num_blank += 1
                    tqdm.write("", end="")
                    _print_bad(blank)
            except DataError as error:
                num_bad += 1
                tqdm.write("", end="")  # clears the bar
                _print_bad(error)
    num_bad_records = len(reported) + num_bad
    good = num_documents - num_bad - num_blank
    if not num_documents and not num_bad_records:
        raise DataError(data.title, "holds no record", "check that it is the right file")
    print(
        f"{data.title}: {count_of(good, 'good document')}, "
        f"{count_of(num_bad_records, 'bad record')}"
        + (", skipped in training" if num_bad_records else "")
        + (
            f", {count_of(num_blank, 'blank document')}, which the model would learn to draw"
            if num_blank
            else ""
        )
    )
    return 1 if num_bad_records or num_blank else 0


def _print_bad(record: SkippedRecord | DataError) -> None:
    print(f"{record.place}: {record.cause}\n  next: {record.next_step}", flush=True)


def _check_document(source: DocumentSource, index: int) -> DataError | None:
    """Raise `DataError` unless the document has content and all its pictures can be decoded. Return a `DataError` if its
    pictures are blank, usually because a file was not rendered or downloaded."""
    from cm3core.document import Image, Text
    from cm3core.images import is_blank

    document = source.document(index)
    if not document:
        raise DataError(f"document {source.id(index)}", "is empty", "remove it")
    blank = []
    for segment in document:
        if isinstance(segment, Image):
            blank.append(is_blank(segment.load()))
        elif isinstance(segment, Text) and not segment.text.strip():
            raise DataError(
                f"document {source.id(index)}", "has an empty text", "write one, or remove it"
            )
    # one of several may be blank, such as the edges of a picture without edges
    if not blank or not all(blank):
        return None
    what = "its picture is" if len(blank) == 1 else f"all of its {len(blank)} pictures are"
    return DataError(
        f"document {source.id(index)}",
        f"{what} blank, in a single colour",
        "check whether it was rendered (white on transparency becomes white on white) and downloaded completely, or remove it",
    )


def _show(data: ChosenData, out: Path, num: int) -> int:
    from cm3core.document import Codes, Image
    from cm3core.images import claim_png, save_png

    claim_png(out)
    print(data.title)
    chosen, pictures, only_codes = None, dict[str, set[str]](), dict[str, bool]()
    for split in dict.fromkeys((*data.config.splits, data.config.split)):
        try:
            source = data.build(split)
        except DataError as error:
            if split == data.config.split:
                raise
            print(f"  {split:<8} can't be used: {error.cause}")
            continue
        chosen = source if split == data.config.split else chosen
        documents = [source.document(index) for index in range(len(source))]
        segments = [segment for document in documents for segment in document]
        keys = [one.key for one in segments if isinstance(one, Image)]
        codes = [one.codes.tobytes().hex() for one in segments if isinstance(one, Codes)]
        only_codes[split] = bool(codes) and not keys
        keys += codes
        pictures[split] = set(keys)
        mark = "*" if split == data.config.split else " "
        print(
            f"{mark} {split:<8} {len(source):>9,} documents  {len(keys):>9,} pictures "
            f"({len(pictures[split]):,} different)"
            f"  {_letters(documents)}"
        )
    assert chosen is not None
    both = len(pictures.get("train", set()) & pictures.get("valid", set()))
    if both and getattr(data.config, "split_by", "picture") != "picture":
        print(
            f"{count_of(both, 'picture')} of valid are also in train, under other names or captions\n"
            "  next: dataset.split_by=picture keeps each in one split"
        )
    if chosen.skipped:
        print(
            f"skipped {count_of(len(chosen.skipped), 'bad record')}; 'cm3 data validate' lists "
            "them all:"
        )
        for record in chosen.skipped[:NUM_SHOWN]:
            print(f"  {record.place}: {record.cause}")
    if len(chosen) == 0:
        print(f"split {data.config.split!r} is empty: no contact sheet")
        return 0
    if only_codes[data.config.split]:
        print("its pictures are stored as codes: no contact sheet")
        return 0
    sheet, num_shown = contact_sheet(chosen, num)
    save_png(out, sheet)
    print(f"{out}: {num_shown} of the {len(chosen):,} documents of split {data.config.split!r}")
    return 0


def _letters(documents: list[Document]) -> str:
    """The length of the texts: shortest, median, longest."""
    from statistics import median

    from cm3core.document import text_of

    lengths = [len(text_of(document)) for document in documents]
    return (
        f"texts of {min(lengths)}..{max(lengths)} letters, median {median(lengths):g}"
        if lengths
        else ""
    )


def contact_sheet(source: DocumentSource, num: int, num_columns: int = 6) -> tuple[PixelArray, int]:
    """Documents spread evenly over the source, each as its first picture above its text.

    Pictures are cropped to a square, as in training.

    Returns:
        The sheet, uint8 [height, width, 3], and the number of documents on it.
    """
    import numpy as np

    from cm3core.document import Image, text_of
    from cm3core.images import fit
    from cm3run.sheets import grid

    indices = np.unique(np.linspace(0, len(source) - 1, min(num, len(source))).round().astype(int))
    pictures: list[PixelArray | None] = []
    captions: list[str] = []
    for index in indices:
        document = source.document(int(index))
        text = text_of(document)
        captions.append(text if len(text) <= 80 else f"{text[:77]}...")
        picture = next((segment for segment in document if isinstance(segment, Image)), None)
        try:
            pictures.append(None if picture is None else fit(picture.load(), (TILE, TILE)))
        except DataError as error:
            pictures.append(None)
            captions[-1] = f"({error.cause})"
    starts = range(0, len(pictures), num_columns)
    sheet = grid(
        [pictures[start : start + num_columns] for start in starts],
        scale=1,
        captions=[captions[start : start + num_columns] for start in starts],
    )
    return sheet, len(pictures)
