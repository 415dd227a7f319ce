"""`cm3 generate`: generate pictures for a prompt."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3core.cli import whole_number
from cm3core.cli._earlier_pictures import SOFTWARE, program, remove_earlier_pictures
from cm3core.cli._model import (
    add_model_options,
    add_task,
    metadata,
    open_model,
    progress_bar,
    refuse_untuned,
    report_unknown_words,
    settings_of,
    show_choice,
    task_options,
)
from cm3core.cli._picture_set import file_names, sheet, styled, write_zip
from cm3core.cli._retrieved import (
    Retrieval,
    report_unlike,
    show_query,
    show_retrieved,
    write_retrieved,
)
from cm3core.errors import CM3Error, FileError
from cm3core.files import atomic_path, check_writable, held_folder

if TYPE_CHECKING:
    from cm3core.document import PixelArray
    from cm3core.model.model import Model
    from cm3core.model.results import GeneratedImage

#: Pictures side by side in the contact sheet.
COLUMNS = 8
#: Maximum pictures per prompt in the contact sheet, which must fit memory and a screen.
SHEET = 64

HELP = "generate pictures for a prompt"
EXAMPLE = """  cm3 generate "a red apple" --n 4 --seed 1 -o out/
  cm3 generate "a red apple" --candidates 8 --rerank clip --upscale --preview
  cm3 generate "a red apple" --condition canny photo.png --model runs/tuned
  cm3 generate "a red apple" "a green pear" --model runs/apples --num-retrieved 0
  cm3 generate "a red apple" --set sampler.guidance_scale=1.2 --set sampler.temperature=0.9
  cm3 generate bell house key --style "noto style" --n 1 --transparent --zip"""


def configure(parser: ArgumentParser) -> None:
    """The prompts and the options."""
    parser.add_argument(
        "prompt", nargs="+", help="what the picture shows, worded like the training captions"
    )
    parser.add_argument(
        "--style",
        metavar="TEXT",
        help="put this behind every prompt, after a comma: several things in one style",
    )
    add_drawing_options(parser)
    parser.add_argument(
        "--preview",
        action="store_true",
        help="show the pictures while they are generated: in FOLDER/preview.png, and on a terminal",
    )
    parser.add_argument(
        "--condition",
        nargs=2,
        metavar=("NAME", "SOURCE"),
        help="draw after a structure, on a model tuned for that: NAME is what draws it (cm3 describe "
        "condition lists them), SOURCE a picture's file, or a text such as "
        '"bell at (10, 12) -> (40, 44)"; --set condition.KEY=VALUE changes its keys',
    )
    add_task(parser, "pictures of prompts, or of structures")
    add_model_options(parser)


def add_drawing_options(parser: ArgumentParser) -> None:
    """How many pictures, where to, how large."""
    parser.add_argument(
        "--n",
        type=whole_number(1, 2**31 - 1),
        dest="num_images",
        metavar="N",
        help="pictures per prompt (default: the model's recipe)",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("cm3-out"),
        metavar="FOLDER",
        help="where 000.png, 001.png, ... are written, each as soon as it is generated, and finally "
        f"grid.png with the first {SHEET} of each prompt; what an earlier call wrote there is replaced, "
        "other files stay (default: %(default)s)",
    )
    parser.add_argument(
        "--upscale",
        nargs="?",
        const=True,
        default=False,
        metavar="NAME",
        help="also write 000-large.png, ...: enlarged by the recipe's upscaler, or by NAME (edsr, lanczos, ...)",
    )
    parser.add_argument(
        "--transparent",
        action="store_true",
        help="also write 000-transparent.png, ...: without the white around the drawing",
    )
    parser.add_argument(
        "--svg",
        action="store_true",
        help="also write 000.svg, ...: the picture traced as curves, without the white around the drawing",
    )
    parser.add_argument(
        "--zip",
        action="store_true",
        help="also write set.zip: all that is written, named for its prompt",
    )
    parser.add_argument(
        "--truncate",
        action="store_true",
        help="cut a prompt that is longer than the training texts",
    )


def run(args: Namespace) -> int:
    """Generate, write the pictures with their metadata, print the paths.

    Ctrl-C keeps the pictures written so far.
    """
    if args.svg:
        from cm3core.cli._tracing import check_tracer

        check_tracer("cm3 generate --svg")
    if args.condition:
        refuse_untuned(args, "generate --condition", "structures")
    check_writable(args.out, folder=True)
    if args.style is not None and not args.style.strip():
        raise CM3Error("--style", "is empty", "name a style, or leave it out")
    if args.condition and _is_file(args.condition[1]):
        check_not_replaced(args.out, Path(args.condition[1]))
    options = task_options(args) | {"truncate": args.truncate, "upscale": args.upscale}
    if args.condition:
        options["condition"] = (*args.condition, settings_of(args.settings, "condition"))
    with pictures_folder(args.out):
        return _run(args, options)


def _is_file(source: str) -> bool:
    """Whether what a condition is drawn from is a file, not a text."""
    try:
        return Path(source).is_file()
    except OSError:  # longer than a name of a file
        return False


def check_not_replaced(out: Path, picture: Path) -> None:
    """Raise `FileError` if a picture that is read is in the folder that is written to."""
    if picture.absolute().parent.resolve() == out.absolute().resolve():
        raise FileError(
            str(out),
            f"holds {picture.name}, which is read and might be replaced",
            "name another folder (-o)",
        )


def _run(args: Namespace, options: dict[str, Any]) -> int:
    model = open_model(args)
    things, args.prompt = args.prompt, styled(args.prompt, args.style)
    report_unknown_words(model, args.prompt)
    each = model.recipe.generate.num_images if args.num_images is None else args.num_images
    pictures = (_previewed if args.preview else _counted)(args, model, each, options)
    is_set = args.style is not None or args.zip
    return write_pictures(
        args, model, pictures, args.prompt, each, things=things if is_set else None
    )


def pictures_folder(folder: Path) -> AbstractContextManager[None]:
    """Context in which no other command generates into the folder: the two would replace each other's
    pictures, which are numbered."""
    busy = CM3Error(
        str(folder),
        "another process is generating into this folder",
        "wait for it, or name another folder (-o)",
    )
    return held_folder(folder, busy)


def _counted(
    args: Namespace, model: Model, each: int, options: dict[str, Any]
) -> Iterator[GeneratedImage]:
    """The pictures, with a progress bar of tokens."""
    with progress_bar("generating") as progress:
        yield from model.stream(args.prompt, each, progress=progress, **options)


def _previewed(
    args: Namespace, model: Model, each: int, options: dict[str, Any]
) -> Iterator[GeneratedImage]:
    """The pictures, previewed while they grow."""
    from cm3core.cli._preview import LivePreview
    from cm3core.generation.engine import PictureGrown
    from cm3core.model.results import ImageReady

    live = LivePreview(model, args.out / "preview.png")
    try:
        for event in model.events(args.prompt, each, **options):
            if isinstance(event, PictureGrown):
                live.grown(event)
            elif isinstance(event, ImageReady):
                live.show()
                live.clear()
                live.done(
                    event.request,
                    1 if event.image.choice is None else len(event.image.choice.scores),
                )
                yield event.image
    finally:
        live.clear()


def write_pictures(
    args: Namespace,
    model: Model,
    pictures: Iterator[GeneratedImage],
    prompts: list[str],
    each: int,
    query_pixels: PixelArray | None = None,
    things: list[str] | None = None,
) -> int:
    """Write pictures as they come, then the contact sheet; return the exit code.

    `query_pixels`: the picture that was edited. `things`: what the prompts name, where they are a set.
    """
    from tqdm import tqdm

    from cm3core import images

    number = each * len(prompts)
    names_things = query_pixels is None  # an instruction names none
    shown: list[list[GeneratedImage]] = [[] for _ in prompts]
    # of each prompt, the first picture by the documents in front
    sources: list[dict[tuple[str, ...], GeneratedImage]] = []
    written = 0
    sorts: list[list[tuple[str, Path]]] = []  # what is behind a name, and the file
    try:
        for picture in pictures:
            if not written:
                remove_earlier_pictures(args.out)
            place, candidate = divmod(written, each)
            with tqdm.external_write_mode():
                if candidate == 0:
                    sources.append({})
                documents = tuple(one.id for one in picture.retrieved)
                if args.show_retrieved and documents not in sources[-1]:
                    if candidate == 0:
                        print(picture.prompt)
                        show_query(picture.retrieved)
                    show_retrieved(picture.retrieved)
                sources[-1].setdefault(documents, picture)
                if names_things and candidate == 0:
                    report_unlike(model, picture)
                show_choice(picture.choice)
            facts = metadata(
                model,
                args,
                prompt=picture.prompt,
                seed=picture.seed,
                retrieved=picture.retrieved,
                choice=picture.choice,
                sampler=picture.sampler,
            )
            stem = f"{written:0{max(3, len(str(number - 1)))}d}"
            images.save_png(args.out / f"{stem}.png", picture.pixels, facts)
            tqdm.write(str(args.out / f"{stem}.png"))
            own = [(".png", args.out / f"{stem}.png")]
            if picture.upscaled is not None:
                name = (
                    model.recipe.component_names.get("upscaler", "")
                    if args.upscale is True
                    else args.upscale
                )
                images.save_png(
                    args.out / f"{stem}-large.png", picture.upscaled, facts | {"upscaler": name}
                )
                tqdm.write(str(args.out / f"{stem}-large.png"))
                own.append(("-large.png", args.out / f"{stem}-large.png"))
            own += write_cut_out(args, stem, picture, facts)
            sorts.append(own if args.zip else [])
            written += 1
            if candidate < SHEET:
                shown[place].append(picture)
    except KeyboardInterrupt:
        if isinstance(pictures, Generator):
            pictures.close()  # takes its bar off the terminal
        print(
            f"interrupted: {written} of {number} pictures are written to {args.out}",
            file=sys.stderr,
        )
        return 130
    if args.show_retrieved:
        write_retrieved(
            args.out,
            [
                Retrieval(one.prompt, query_pixels, one.retrieved, "", one.pixels)
                for own in sources
                for one in own.values()
            ],
        )
    grid = args.out / "grid.png"
    images.save_png(
        grid,
        _contact_sheet(shown) if things is None else _set_sheet(shown, things),
        {
            "prompt": "\n".join(prompts),
            "seed": str(args.seed),
            "model": model.name,
            "recipe_hash": model.recipe_hash,
            SOFTWARE: program(),
        },
    )
    print(grid)
    if args.zip:
        named = [text for text in things or prompts for _ in range(each)]
        print(_zipped(args.out, named, sorts, grid))
    return 0


def _zipped(
    folder: Path, texts: list[str], sorts: list[list[tuple[str, Path]]], grid: Path
) -> Path:
    """Write all files to set.zip, named for their texts."""
    path = folder / "set.zip"
    names = file_names(["grid", *texts])[1:]
    files = [
        (name + end, file) for name, own in zip(names, sorts, strict=True) for end, file in own
    ]
    with atomic_path(path) as temporary:
        write_zip(
            temporary, ((name, file.read_bytes()) for name, file in [*files, ("grid.png", grid)])
        )
    return path


def write_cut_out(
    args: Namespace, stem: str, picture: GeneratedImage, facts: dict[str, str]
) -> list[tuple[str, Path]]:
    """Write what `--transparent` and `--svg` ask for, of the enlarged picture if there is one; return
    the ends of the names, and the files."""
    from tqdm import tqdm

    from cm3core import images
    from cm3core.cli._tracing import svg_of_image
    from cm3core.transparency import without_background

    pixels = _largest(picture)
    written = []
    if args.transparent:
        path = args.out / f"{stem}-transparent.png"
        with atomic_path(path) as temporary:
            temporary.write_bytes(images.png_bytes(without_background(pixels), facts))
        written.append(("-transparent.png", path))
    if args.svg:
        path = args.out / f"{stem}.svg"
        with atomic_path(path) as temporary:
            temporary.write_text(svg_of_image(picture), encoding="utf-8")
        written.append((".svg", path))
    for _, path in written:
        tqdm.write(str(path))
    return written


def _contact_sheet(pictures: list[list[GeneratedImage]]) -> PixelArray:
    """Each prompt's pictures next to its words, small ones enlarged."""
    from cm3core import images

    starts = [(own, start) for own in pictures for start in range(0, len(own), COLUMNS)]
    rows = [[_largest(one) for one in own[start : start + COLUMNS]] for own, start in starts]
    labels = ["" if start else own[0].prompt for own, start in starts]
    return images.grid(rows, row_labels=labels, scale=max(1, 256 // rows[0][0].shape[0]))


def _set_sheet(pictures: list[list[GeneratedImage]], things: list[str]) -> PixelArray:
    """The pictures of a set, each above what it shows."""
    shown = [_largest(picture) for own in pictures for picture in own]
    return sheet(shown, [text for own, text in zip(pictures, things, strict=True) for _ in own])


def _largest(picture: GeneratedImage) -> PixelArray:
    """The enlarged picture, if there is one."""
    return picture.pixels if picture.upscaled is None else picture.upscaled
