"""`cm3 generate`: generate pictures for a prompt."""

from __future__ import annotations

import itertools
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli import INPUT, OUTPUT, RESULTS, grouped, whole_number
from cm3apps.cli._model import (
    FILE,
    Retrieval,
    add_task,
    printable,
    refuse_untuned,
    report_copy,
    report_unknown_words,
    report_unlike,
    show_answer,
    show_choice,
    show_query,
    show_retrieved,
    task_options,
    write_retrieved,
    written_facts,
)
from cm3apps.cli._picture_files import digits_of, refuse_foreign_pictures, remove_earlier_pictures
from cm3apps.cli.opening import add_model_options, open_model, progress_bar, settings_of
from cm3core.errors import CM3Error, FileError, GenerationError
from cm3core.files import atomic_path, held_folder, write_bytes
from cm3core.outputs import OutputFolder
from cm3run.model.tracing import check_tracer, svg_of_image
from cm3run.picture_files import LICENCES, file_names, sheet, styled, write_zip

if TYPE_CHECKING:
    from cm3apps.cli._vary import Varied
    from cm3core.document import PixelArray
    from cm3run.attribution import Credit, PictureFacts
    from cm3run.model.model import Model
    from cm3run.model.results import GeneratedImage

#: The file of `--preview`.
PREVIEW = "preview.png"
#: Pictures side by side in the contact sheet.
COLUMNS = 8
#: Maximum pictures per prompt in the contact sheet, which must fit in memory and on a screen.
SHEET = 64

HELP = "generate pictures for a prompt"
EXAMPLE = """  cm3 generate "a red apple" --n 4 --seed 1 -o out/
  cm3 generate "a red apple" --candidates 8 --rerank clip --upscale --preview
  cm3 generate "a red apple" --condition canny photo.png --model runs/tuned
  cm3 generate "a red apple" "a green pear" --model runs/apples --num-retrieved 0
  cm3 generate "a red apple" --set sampler.guidance_scale=1.2 --set sampler.temperature=0.9
  cm3 generate "red apple" "bell" --n 1 --vary sampler.guidance_scale=1,1.5,3 --vary sampler.top_p=0.8,1 --score clip
  cm3 generate bell house key --style "noto style" --n 1 --transparent --zip"""


def configure(parser: ArgumentParser) -> None:
    """Add the prompts and the options."""
    grouped(parser, INPUT).add_argument(
        "prompt", nargs="+", help="what the picture shows, worded like the training captions"
    )
    grouped(parser, INPUT).add_argument(
        "--style",
        metavar="TEXT",
        help="append this to every prompt, after a comma, to draw several things in one style",
    )
    add_drawing_options(parser)
    grouped(parser, RESULTS).add_argument(
        "--draw",
        action="store_true",
        help="draw even what the memory has; without it, a prompt of a thing that the memory has in the style that is asked "
        "for is answered with the original file, for models that find originals; other models always draw",
    )
    grouped(parser, RESULTS).add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="KEY=A,B,...",
        help="draw with each of these values, side by side in grid.png: sampler.KEY or one of sampler, seed, num_retrieved, "
        "num_candidates, reranker; the first key varies down, a second one across",
    )
    grouped(parser, RESULTS).add_argument(
        "--score",
        metavar="NAME",
        help="with --vary: also print each cell's mean score by this reranker",
    )
    grouped(parser, OUTPUT).add_argument(
        "--preview",
        action="store_true",
        help="show the pictures as they are generated, in FOLDER/preview.png and in the terminal",
    )
    grouped(parser, INPUT).add_argument(
        "--condition",
        nargs=2,
        metavar=("NAME", "SOURCE"),
        help="follow a structure, with a model tuned for it: NAME is a condition (cm3 describe "
        "condition lists them), SOURCE a picture's file, or a text such as "
        '"bell at (10, 12) -> (40, 44)"; --set condition.KEY=VALUE changes its keys',
    )
    add_model_options(parser)
    add_task(parser, "pictures of prompts or of structures, or its index has no word of the prompt")


def add_drawing_options(parser: ArgumentParser) -> None:
    """Add the options for the number, place and size of pictures."""
    _add_numbers(parser)
    grouped(parser, OUTPUT).add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("cm3-out"),
        metavar="FOLDER",
        help="folder for 000.png, 001.png, ..., each written as soon as it is finished, and "
        f"grid.png with the first {SHEET} of each prompt; files of an earlier call are "
        "replaced, others are kept (default: %(default)s)",
    )
    grouped(parser, OUTPUT).add_argument(
        "--upscale",
        nargs="?",
        const=True,
        default=False,
        metavar="NAME",
        help="also write 000-large.png, ...: enlarged by the recipe's upscaler, or by NAME (edsr, lanczos, ...)",
    )
    grouped(parser, OUTPUT).add_argument(
        "--transparent",
        action="store_true",
        help="also write 000-transparent.png, ...: transparent around the drawing",
    )
    grouped(parser, OUTPUT).add_argument(
        "--svg",
        action="store_true",
        help="also write 000.svg, ...: the drawing as the model wrote it, or the picture traced, transparent around it; of a "
        "found picture, its original, with or without this option",
    )
    grouped(parser, OUTPUT).add_argument(
        "--original",
        action="store_true",
        help="also write 000-original.svg, ...: the file of the most similar prepended "
        "document, with its licence and attribution",
    )
    grouped(parser, OUTPUT).add_argument(
        "--zip",
        action="store_true",
        help="also write set.zip: all files, named after their prompts, and LICENSES, which "
        "lists the prepended documents",
    )
    grouped(parser, INPUT).add_argument(
        "--truncate",
        action="store_true",
        help="cut a prompt that is longer than the training texts",
    )


def _add_numbers(parser: ArgumentParser) -> None:
    grouped(parser, RESULTS).add_argument(
        "--n",
        type=whole_number(1, 2**31 - 1),
        dest="num_images",
        metavar="N",
        help="pictures per prompt, originals before drawn ones (default: the model's recipe, or the originals alone if some "
        "are found)",
    )
    grouped(parser, RESULTS).add_argument(
        "--codes",
        type=whole_number(2, 2**31 - 1),
        dest="max_codes",
        metavar="N",
        help="maximum number of codes per picture, including the end code, for image tokenizers whose pictures are "
        "sequences; fewer codes are drawn faster (default: the image tokenizer's)",
    )


def run(args: Namespace) -> int:
    """Generate, write the pictures with their metadata, print the paths.

    Ctrl-C keeps the pictures written so far.
    """
    if args.condition:
        refuse_untuned(args, "generate --condition", "structures")
    if args.style is not None and not args.style.strip():
        raise CM3Error("--style", "is empty", "name a style, or leave it out")
    varied = _varied(args)
    if args.condition and _is_file(args.condition[1]):
        check_not_replaced(args.out, Path(args.condition[1]))
    options = task_options(args) | {"truncate": args.truncate, "upscale": args.upscale}
    if args.condition:
        options["condition"] = (*args.condition, settings_of(args.settings, "condition"))
    cells = 1 if varied is None else sum(1 for _ in varied.options())
    number = (args.num_images or 1) * len(args.prompt) * cells
    with pictures_folder(args, number):
        return _run(args, options, varied)


def _varied(args: Namespace) -> Varied | None:
    """What `--vary` says; None without it.

    Raises:
        GenerationError: it is wrong, or an option has no use with or without it.
    """
    if args.score is not None and not args.vary:
        raise GenerationError(
            "--score",
            "scores the cells of --vary, which is not given",
            "give --vary, or leave it out",
        )
    if not args.vary:
        return None
    for option, is_given in (
        ("--preview", args.preview),
        ("--style", args.style is not None),
        ("--zip", args.zip),
    ):
        if is_given:
            raise GenerationError(
                option, "shows the pictures in another way than --vary", "leave one of the two out"
            )
    from cm3apps.cli._vary import Varied

    return Varied.of(args.vary)


def _is_file(source: str) -> bool:
    """Whether the source of a condition is a file rather than a text."""
    try:
        return Path(source).is_file()
    except OSError:  # longer than a file name may be
        return False


def check_not_replaced(out: Path, picture: Path) -> None:
    """Raise `FileError` if an input picture is in the output folder."""
    if picture.absolute().parent.resolve() == out.absolute().resolve():
        raise FileError(
            str(out),
            f"has the input picture {picture.name}, which might be replaced",
            "name another folder (-o)",
        )


def _run(args: Namespace, options: dict[str, Any], varied: Varied | None) -> int:
    model = open_model(args)
    if args.svg and not model.components.image_tokenizer.reads_drawings:
        check_tracer("cm3 generate --svg")
    things, args.prompt = args.prompt, styled(args.prompt, args.style)
    options["draw"] = args.draw
    report_unknown_words(model, args.prompt)
    each = model.recipe.generate.num_images if args.num_images is None else args.num_images
    if varied is not None:
        return _compare(args, model, options, varied, each)
    pictures = (_previewed if args.preview else _counted)(args, model, options)
    is_set = args.style is not None or args.zip
    return write_pictures(
        args, model, pictures, Series(args.prompt, each, things=things if is_set else None)
    )


def _compare(
    args: Namespace, model: Model, options: dict[str, Any], varied: Varied, each: int
) -> int:
    """Generate every cell in one batch; originals are drawn, too."""
    from cm3run.model.jobs import results

    if args.score is not None:
        model.reranker(args.score)  # report a wrong name before anything is generated
    cells = [{**options, "draw": True, **own} for own in varied.options()]
    planned = [model.image_jobs(args.prompt, each, **own) for own in cells]
    jobs = itertools.chain.from_iterable(own for own, _ in planned)

    def pictures() -> Generator[GeneratedImage, None, None]:
        with progress_bar("generating") as progress:
            yield from results(
                model.engine, jobs, progress=progress, total=sum(total for _, total in planned)
            )

    return write_pictures(
        args, model, pictures(), Series(args.prompt * len(cells), each, varied=varied)
    )


@contextmanager
def pictures_folder(args: Namespace, number: int) -> Iterator[None]:
    """Context in which no other command generates into the folder `args.out`, because both would replace each other's
    numbered pictures.

    Raises:
        FileError: somebody else's files have the names of so many pictures, or of their sheets.
    """
    refuse_foreign_pictures(OutputFolder(args.out), number, *_sheets(args))
    busy = CM3Error(
        str(args.out),
        "another process is generating into this folder",
        "wait for it, or name another folder (-o)",
    )
    with held_folder(args.out, busy):
        yield


def _sheets(args: Namespace) -> list[str]:
    """The files that `write_pictures` writes besides numbered ones."""
    optional = {FILE: args.show_retrieved, PREVIEW: getattr(args, "preview", False)}
    optional["set.zip"] = getattr(args, "zip", False)
    return ["grid.png", *(name for name, is_written in optional.items() if is_written)]


def _counted(args: Namespace, model: Model, options: dict[str, Any]) -> Iterator[GeneratedImage]:
    """Generate the pictures, with a progress bar of tokens."""
    with progress_bar("generating") as progress:
        yield from model.stream(args.prompt, args.num_images, progress=progress, **options)


def _previewed(args: Namespace, model: Model, options: dict[str, Any]) -> Iterator[GeneratedImage]:
    """Generate the pictures, with a live preview."""
    from cm3apps.cli._preview import LivePreview
    from cm3run.generation.engine import PictureGrown
    from cm3run.model.results import ImageReady

    live = LivePreview(model, args.out / PREVIEW)
    try:
        for event in model.events(args.prompt, args.num_images, **options):
            if isinstance(event, PictureGrown):
                live.grown(event)
            elif isinstance(event, ImageReady):
                live.credit(event.image.credits)
                live.show()
                live.clear()
                live.done(
                    event.request,
                    1 if event.image.choice is None else len(event.image.choice.scores),
                )
                yield event.image
    finally:
        live.clear()


class _Written:
    """Writes pictures and their other files as they are generated.

    Args:
        args: the command's arguments.
        model: the model that draws.
        number: the total number of pictures.
        names_things: whether prompts name the object to draw; an instruction does not.
    """

    def __init__(self, args: Namespace, model: Model, number: int, *, names_things: bool) -> None:
        self.args, self.model, self.number = args, model, number
        self.names_things = names_things
        #: Prepended documents of the picture to edit, according to its file.
        self.given: tuple[Credit, ...] = ()
        self.count = 0
        #: For each picture, its files as (suffix, path).
        self.files: list[list[tuple[str, Path]]] = []
        self.credits: list[Sequence[Credit]] = []
        self.marks: list[str] = []
        #: For each prompt, the first picture with each set of prepended documents.
        self.sources: list[dict[tuple[str, ...], GeneratedImage]] = []

    def add(self, picture: GeneratedImage) -> None:
        """Write a picture and print the paths."""
        from tqdm import tqdm

        from cm3run.attribution import png
        from cm3run.model.facts import marked

        args = self.args
        if not self.count:
            remove_earlier_pictures(OutputFolder(args.out))
        with tqdm.external_write_mode():
            self._show(picture)
        facts = written_facts(self.model, args, picture).after(self.given)
        stem = f"{self.count:0{digits_of(self.number)}d}"
        files = [(".png", png(picture.pixels, facts))]
        if picture.upscaled is not None:
            own = self.model.recipe.component_names.get("upscaler", "")
            name = own if args.upscale is True else args.upscale
            files.append(("-large.png", png(picture.upscaled, facts.with_texts(upscaler=name))))
        files += cut_out(args, self.model, picture, facts)
        if args.original or picture.original is not None:
            files += _original(self.model, picture)
        written = [(end, args.out / f"{stem}{end}") for end, _ in files]
        for (_, path), (_, content) in zip(written, files, strict=True):
            write_bytes(path, content)
            tqdm.write(str(path))
        with tqdm.external_write_mode():
            report_copy(written[0][1], picture, offers=not args.original)
            show_answer(picture)
        if args.zip:
            self.files.append(written)
            self.credits.append(facts.credits)
            self.marks.append(marked(picture))
        self.count += 1

    def _show(self, picture: GeneratedImage) -> None:
        """Print the prepended documents, and how the candidate was chosen."""
        candidate = picture.number
        if candidate == 0:
            self.sources.append({})
        documents = tuple(one.id for one in picture.retrieved)
        if self.args.show_retrieved and documents not in self.sources[-1]:
            if candidate == 0:
                print(picture.prompt)
                show_query(picture.retrieved)
            show_retrieved(picture.retrieved)
        self.sources[-1].setdefault(documents, picture)
        if self.names_things and candidate == 0:
            report_unlike(self.model, picture)
        show_choice(picture.choice)

    def write_zip(self, texts: list[str], grid: Path) -> Path:
        """Write all files to set.zip, named after their texts."""
        from cm3run.attribution import licences_text

        path: Path = self.args.out / "set.zip"
        names = file_names(["grid", *texts])[1:]
        files = [
            (name + end, file.read_bytes())
            for name, own in zip(names, self.files, strict=True)
            for end, file in own
        ]
        told = [name + mark for name, mark in zip(names, self.marks, strict=True)]
        licences = licences_text(zip(told, self.credits, strict=True)).encode()
        with atomic_path(path) as temporary:
            write_zip(temporary, [*files, ("grid.png", grid.read_bytes()), (LICENCES, licences)])
        return path


@dataclass(frozen=True)
class Series:
    """The pictures of a command.

    Args:
        prompts: the prompts of the pictures, in order.
        each: the number of pictures per prompt.
        edited: the picture that was edited.
        things: the objects of the prompts, if they are a set.
        varied: the cells, if `prompts` are those of each cell.
    """

    prompts: list[str]
    each: int
    edited: PixelArray | None = None
    things: list[str] | None = None
    varied: Varied | None = None


def write_pictures(
    args: Namespace, model: Model, pictures: Iterator[GeneratedImage], series: Series
) -> int:
    """Write pictures as they are generated, then the contact sheet; return the exit code."""
    from cm3run.attribution import facts_of_file, png
    from cm3run.model.facts import facts_of_sheet

    prompts, edited = series.prompts, series.edited
    # now that their number is known
    refuse_foreign_pictures(OutputFolder(args.out), series.each * len(prompts))
    written = _Written(args, model, series.each * len(prompts), names_things=edited is None)
    if edited is not None and (known := facts_of_file(args.picture)) is not None:
        written.given = known.credits
    shown: list[list[GeneratedImage]] = [[] for _ in prompts]
    texts: list[str] = []
    place = -1
    try:
        for picture in pictures:
            place += picture.number == 0
            written.add(picture)
            texts.append((series.things or prompts)[place])
            if picture.number < SHEET:
                shown[place].append(picture)
    except KeyboardInterrupt:
        if isinstance(pictures, Generator):
            pictures.close()  # removes its bar from the terminal
        print(
            f"interrupted: {written.count} of {written.number} pictures are written to {args.out}",
            file=sys.stderr,
        )
        return 130
    if args.show_retrieved:
        write_retrieved(
            args.out,
            [
                Retrieval(one.prompt, edited, one.retrieved, "", one.pixels)
                for own in written.sources
                for one in own.values()
            ],
        )
    grid = args.out / "grid.png"
    facts = facts_of_sheet(
        model,
        (one for own in shown for one in own),
        prompt="\n".join(prompts),
        seed=str(args.seed),
    ).after(written.given)
    things = series.things
    if series.varied is not None:
        sheet = series.varied.sheet(shown)
        facts = facts.with_texts(prompt="\n".join(args.prompt), vary="\n".join(args.vary))
    else:
        sheet = _contact_sheet(shown) if things is None else _set_sheet(shown, things)
    write_bytes(grid, png(sheet, facts))
    if series.varied is not None and args.score is not None:
        print("\n".join(series.varied.scores(shown, model, args.score)))
    print(grid)
    if args.zip:
        print(written.write_zip(texts, grid))
    return 0


def _original(model: Model, picture: GeneratedImage) -> list[tuple[str, bytes]]:
    """The own file of the document nearest to a picture, with its credits, as (suffix, content) pairs; of a picture that
    was found, its own file."""
    from cm3run.attribution import Credit, original_files
    from cm3run.model.facts import original_of

    if picture.original is not None:
        is_svg = picture.original.suffix == ".svg"
        files = original_of(picture)
        return [(end if is_svg else f"-original{end}", content) for end, content in files]
    found = picture.nearest
    original = None if found is None else model.original(found.document)
    if found is None or original is None:
        why = "no document was prepended"
        if found is not None:
            why = f"the memory has no file of {printable(found.document.id)}"
        print(f"note: there is no original to write: {why}", file=sys.stderr)
        return []
    credit = Credit(found.document.id, found.document.provenance)
    return [(f"-original{end}", content) for end, content in original_files(original, credit)]


def cut_out(
    args: Namespace, model: Model, picture: GeneratedImage, facts: PictureFacts
) -> list[tuple[str, bytes]]:
    """The files of `--transparent` and `--svg`, made from the enlarged picture if there is one, as (suffix, content)
    pairs."""
    from cm3run.attribution import png, svg
    from cm3run.transparency import without_background

    made = []
    if args.transparent:
        made.append(("-transparent.png", png(without_background(_largest(picture)), facts)))
    if args.svg and (picture.original is None or picture.original.suffix != ".svg"):
        parts = model.components
        drawn = svg_of_image(picture, parts.finisher, parts.image_tokenizer)
        made.append((".svg", svg(drawn, facts).encode()))
    return made


def _contact_sheet(pictures: list[list[GeneratedImage]]) -> PixelArray:
    """A sheet of each prompt's pictures next to its text, with small pictures enlarged."""
    from cm3run import sheets

    starts = [(own, start) for own in pictures for start in range(0, len(own), COLUMNS)]
    rows = [[_largest(one) for one in own[start : start + COLUMNS]] for own, start in starts]
    labels = ["" if start else own[0].prompt for own, start in starts]
    return sheets.grid(rows, row_labels=labels, scale=max(1, 256 // rows[0][0].shape[0]))


def _set_sheet(pictures: list[list[GeneratedImage]], things: list[str]) -> PixelArray:
    """A sheet of a set's pictures, each above its text."""
    shown = [_largest(picture) for own in pictures for picture in own]
    return sheet(shown, [text for own, text in zip(pictures, things, strict=True) for _ in own])


def _largest(picture: GeneratedImage) -> PixelArray:
    """The enlarged picture, or None."""
    return picture.pixels if picture.upscaled is None else picture.upscaled
