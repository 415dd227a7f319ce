"""`cm3 tokenizer train-text | train-image | eval`: train and evaluate tokenizers."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cm3apps.cli import registry_of, whole_number
from cm3apps.cli._dataset import (
    composed,
    data_source,
    drawings_of,
    is_override,
    limit_threads,
)
from cm3apps.cli._training import (
    RECIPE_FILE,
    action_adder,
    add_evaluation_arguments,
    add_training_arguments,
    budget_of,
    claim_training,
    require_section,
    use_of,
    validation_split,
    with_precision,
    with_weights,
    write_part,
)
from cm3core.errors import DataError, TokenizerError
from cm3core.files import check_links, make_folder
from cm3core.outputs import OutputFolder
from cm3core.plugins.registry import COMPONENTS, default_name
from cm3run.picture_arrays import pictures_of

if TYPE_CHECKING:
    from cm3core.document import IntArray, PixelArray
    from cm3core.interfaces.extractor import ExtractorConfig
    from cm3core.interfaces.image_tokenizer import ImageTokenizer
    from cm3core.interfaces.metric import MetricConfig
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe

HELP = "train and evaluate text and image tokenizers"
EXAMPLE = """  cm3 tokenizer train-text --vocab-size 4096 -o runs/bpe --recipe quickstart
  cm3 tokenizer train-image tokenizer-emoji64 --minutes 25 -o runs/tokenizer
  cm3 tokenizer eval runs/tokenizer --split unseen -o reconstructions.png"""
#: What text tokenizers write; other files are refused when they are written.
_TEXT_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer.tiktoken", "classes.txt", "byte.txt")
#: Number of texts on which the mean token length is measured.
NUM_MEASURED = 2000
#: Number of validation pictures in training.
NUM_VALIDATION = 256


def configure(parser: ArgumentParser) -> None:
    """Add the three actions."""
    add = action_adder(parser)
    _configure_text(add)
    image = add(
        "train-image",
        "train a recipe's image tokenizer on its data set's pictures, or resume",
        "cm3 tokenizer train-image tokenizer-emoji64 --minutes 25 -o runs/tokenizer",
    )
    add_training_arguments(image, "where weights, log and reconstructions are written")
    _configure_eval(add)


def _configure_text(add: Callable[[str, str, str], ArgumentParser]) -> None:
    text = add(
        "train-text",
        "train a text tokenizer on a recipe's captions or on text files",
        "cm3 tokenizer train-text --vocab-size 56316 -o runs/bpe captions.txt",
    )
    text.add_argument(
        "overrides",
        nargs="*",
        metavar="FILE|section.key=value",
        default=[],
        help="text files, one text per line; or, with --recipe, values that override the recipe's",
    )
    text.add_argument("--recipe", metavar="RECIPE", help="train on this recipe's data set")
    text.add_argument(
        "--vocab-size",
        type=whole_number(1, 2**24),
        required=True,
        metavar="N",
        help="number of ids; the vocabulary adds 4 control tokens (CM3leon: 56,316 + 4 = 56,320)",
    )
    text.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="the component to train (default: the installed plugins' default, such as bpe)",
    )
    text.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder for the tokenizer",
    )


def _configure_eval(add: Callable[[str, str, str], ArgumentParser]) -> None:
    evaluate = add(
        "eval",
        "measure an image tokenizer: PSNR, SSIM, codebook usage, perplexity, reconstructions",
        "cm3 tokenizer eval quickstart --split unseen -o reconstructions.png\n"
        "  cm3 tokenizer eval quickstart --score metric=fid extractor=inception extractor.path=FILE",
    )
    evaluate.add_argument(
        "recipe",
        metavar="RECIPE|PATH",
        help="a recipe, or the folder or weights file written by train-image",
    )
    evaluate.add_argument("--split", help="split of the data set (default: the recipe's)")
    evaluate.add_argument(
        "--score",
        nargs="+",
        action="append",
        default=[],
        dest="scores",
        metavar="section.key=value",
        help="also compute this metric between reconstructions and originals, with the keys "
        "of a recipe's sections metric and extractor; may be given several times",
    )
    evaluate.add_argument(
        "--beside-files",
        action="store_true",
        help="also measure JPEG and WebP files of as many bytes as the codes",
    )
    add_evaluation_arguments(
        evaluate,
        num_help="maximum number of pictures, spread over the split",
        picture="reconstructions.png",
        picture_help="originals above reconstructions",
    )


def run(args: Namespace) -> int:
    """Run one action."""
    actions = {"train-text": _train_text, "train-image": _train_image, "eval": _evaluate}
    return actions[args.action](args)


def _train_text(args: Namespace) -> int:
    files = [name for name in args.overrides if not is_override(name)]
    overrides = [name for name in args.overrides if is_override(name)]
    if (args.recipe is None) == (not files):
        cause = (
            "neither a recipe nor a file is given" if not files else "a recipe and files are given"
        )
        raise TokenizerError(
            "cm3 tokenizer train-text", cause, "give --recipe RECIPE, or text files"
        )
    registry = registry_of(args)
    name = args.tokenizer or default_name(registry, "text_tokenizer", place="--tokenizer")
    wanted = {"name": name, "vocab_size": args.vocab_size}
    if files:
        recipe = composed({"text_tokenizer": wanted}, overrides, registry)
        texts: Iterable[str] = _lines([Path(name) for name in files])
    else:
        from cm3core.recipe import compose

        ours = [f"text_tokenizer={name}", f"text_tokenizer.vocab_size={args.vocab_size}"]
        ours.append("text_tokenizer.path=null")  # train it, do not load it
        recipe = compose(args.recipe, [*ours, *overrides], registry=registry)
        texts = data_source(recipe, None).texts()
    assert recipe.text_tokenizer is not None
    recipe.text_tokenizer.check()
    OutputFolder(args.out, *_TEXT_FILES, RECIPE_FILE, COMPONENTS)
    check_links(args.out)
    corpus = _Corpus(texts)
    tokenizer = recipe.text_tokenizer.build(corpus)
    if corpus.num_texts == 0:
        raise TokenizerError("the corpus", "has no text", "give texts to train on")
    make_folder(args.out)
    tokenizer.save(args.out)
    num_bytes = sum(len(text.encode()) for text in corpus.first)
    num_tokens = sum(map(len, tokenizer.encode_batch(corpus.first)))
    print(
        f"{args.out}: {tokenizer.vocab_size:,} ids from {corpus.num_texts:,} texts, "
        f"{num_bytes / max(num_tokens, 1):.2f} bytes per token"
    )
    if tokenizer.vocab_size < args.vocab_size:
        print(
            f"note: {args.vocab_size:,} ids were requested; the texts have no more pieces that "
            "occur often enough"
        )
    if (trained := recipe.text_tokenizer.saved_in(args.out.absolute())) is not None:
        write_part(recipe, "text_tokenizer", trained, args.out, registry)
        print(use_of("text_tokenizer", trained, args.out, overrides, registry), end="")
    return 0


class _Corpus:
    """Counts the texts passed to the tokenizer, keeps the first ones, and shows progress."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.num_texts = 0
        self.first: list[str] = []
        self._texts = texts

    def __iter__(self) -> Iterator[str]:
        from cm3run.progress import make_bar

        for text in make_bar(self._texts, desc="reading", unit=" texts", disable=None, leave=False):
            self.num_texts += 1
            if len(self.first) < NUM_MEASURED:
                self.first.append(text)
            yield text


def _lines(paths: Sequence[Path]) -> Iterator[str]:
    """The non-blank lines of UTF-8 files."""
    for path in paths:
        number = 0
        try:
            with path.open(encoding="utf-8-sig") as file:
                for line in file:
                    number += 1
                    if text := line.strip():
                        yield text
        except FileNotFoundError as error:
            raise DataError(str(path), "there is no such file", "correct the path") from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, after line {number}", f"is not UTF-8 ({error.reason})", "save it as UTF-8"
            ) from error
        except OSError as error:
            raise DataError(
                str(path), f"can't be read: {error.strerror}", "correct the path or its permissions"
            ) from error


def _train_image(args: Namespace) -> int:
    from cm3core.recipe import compose

    registry = registry_of(args)
    recipe = compose(args.recipe, args.overrides, registry=registry)
    require_section(recipe, "image_tokenizer")
    recipe = replace(recipe, image_tokenizer=with_precision(recipe.image_tokenizer, args.precision))
    assert recipe.image_tokenizer is not None
    claim_training(args.out)
    budget = budget_of(args, recipe, "cm3 tokenizer train-image")
    limit_threads(recipe)
    images_NHWC = pictures_of(data_source(recipe, None), recipe.image_tokenizer.image_size)
    path = recipe.image_tokenizer.train(
        images_NHWC,
        args.out,
        **budget,
        resume=True,
        validation_NHWC=_validation_pictures(recipe),
        show_progress=not args.quiet,
    )
    trained = with_weights(recipe.image_tokenizer, path)
    write_part(recipe, "image_tokenizer", trained, args.out, registry)
    print(
        f"{path}: trained on {len(images_NHWC):,} pictures\n"
        f"measure it: cm3 tokenizer eval {shlex.quote(str(args.out))}\n"
        + use_of("image_tokenizer", trained, args.out, args.overrides, registry),
        end="",
    )
    return 0


def _validation_pictures(recipe: Recipe) -> PixelArray | None:
    """Pictures of the recipe's validation split (see `validation_split`); None if there is none."""
    assert recipe.image_tokenizer is not None
    split = validation_split(recipe)
    if split is None:
        return None
    source = data_source(recipe, split)
    return (
        pictures_of(source, recipe.image_tokenizer.image_size, NUM_VALIDATION)
        if len(source)
        else None
    )


def _evaluate(args: Namespace) -> int:
    from cm3core.images import claim_png, save_png
    from cm3core.recipe import compose
    from cm3run.devices import choose_device
    from cm3run.evaluation.quality import LEAST_PSNR, evaluate_image_tokenizer

    claim_png(args.out)
    target, ours = _evaluated(args.recipe)
    registry = registry_of(args)
    scores = [_score_of(given, registry) for given in args.scores]
    recipe = compose(target, [*ours, *args.overrides], registry=registry)
    require_section(recipe, "image_tokenizer")
    assert recipe.image_tokenizer is not None
    limit_threads(recipe)
    tokenizer = recipe.image_tokenizer.build()
    tokenizer.move_to(choose_device(None))
    source = data_source(recipe, args.split)
    codes_Nc: IntArray | None = None
    left_out: dict[str, int] = {}
    if tokenizer.reads_drawings:
        images_NHWC, codes_Nc, left_out = drawings_of(source, tokenizer, args.num)
    else:
        images_NHWC = pictures_of(source, tokenizer.image_size, args.num)
    report = evaluate_image_tokenizer(tokenizer, images_NHWC, codes_Nc)
    save_png(args.out, report.picture)
    rows_of_scores = [
        line
        for config, extractor in scores
        for line in _score_lines(images_NHWC, report.reconstructed_NHWC, config, extractor)
    ]
    split = args.split or (recipe.dataset.split if recipe.dataset is not None else "")
    print(
        f"{len(images_NHWC):,} pictures of split {split!r}, {tokenizer.image_size[0]} x "
        f"{tokenizer.image_size[1]} pixels "
        f"as {_shape_of(tokenizer, codes_Nc)}\n"
        f"PSNR        {report.psnr:.2f} dB\n"
        + (
            ""
            if report.psnr_drawn is None
            else f"PSNR, drawn {report.psnr_drawn:.2f} dB (without the background)\n"
        )
        + ("" if report.ssim is None else f"SSIM        {report.ssim:.3f}\n")
        + "".join(rows_of_scores)
        + f"codes used  {report.num_used_codes:,} of {report.codebook_size:,} ({report.usage:.0%})\n"
        f"perplexity  {report.perplexity:.0f}\n"
        f"{args.out}: originals above reconstructions"
    )
    if args.beside_files:
        for line in _beside_files(tokenizer, images_NHWC, codes_Nc, scores):
            print(line, end="")
    for reason, number in left_out.items():
        print(f"note: {number:,} pictures are left out: {reason}", file=sys.stderr)
    if report.psnr_drawn is not None and report.psnr_drawn < LEAST_PSNR:
        print(
            f"note: the codes reproduce the drawings poorly (PSNR {report.psnr_drawn:.1f} dB, less than {LEAST_PSNR:g}): see "
            f"{args.out}; docs/data.md, 'What the codes keep of your pictures', shows how to train codes on these "
            "pictures",
            file=sys.stderr,
        )
    return 0


def _beside_files(
    tokenizer: ImageTokenizer,
    images_NHWC: PixelArray,
    codes_Nc: IntArray | None,
    scores: Sequence[tuple[MetricConfig, ExtractorConfig | None]],
) -> Iterator[str]:
    """Sizes of the codes, and what JPEG and WebP keep of the pictures in as many bytes."""
    from cm3run.evaluation.beside_files import FORMATS, coded_bytes, files_of, plain_bytes
    from cm3run.evaluation.quality import psnr_per_picture, ssim_per_picture

    if codes_Nc is None:
        codes_Nc = tokenizer.encode(images_NHWC)
    plain = plain_bytes(codes_Nc, tokenizer.form, tokenizer.codebook_size)
    coded = coded_bytes(codes_Nc, tokenizer.form)
    yield f"bytes       {plain:.0f} a picture; {coded:.0f} coded by the codes' frequencies in other pictures\n"
    for size in (coded, plain):
        yield f"files of at most {size:.0f} bytes, without headers and tables:\n"
        for name in FORMATS:
            files = files_of(images_NHWC, name, size)
            if files is None:
                yield f"{name:10}  does not get so small\n"
                continue
            psnr = psnr_per_picture(images_NHWC, files.decoded_NHWC).mean()
            ssim = ssim_per_picture(images_NHWC, files.decoded_NHWC).mean()
            yield (
                f"{name:10}  {psnr:.2f} dB, SSIM {ssim:.3f} ({files.size:.0f} bytes; quality {files.quality}, sides "
                f"times {files.scale:g})\n"
            )
            for config, extractor in scores:
                yield from _score_lines(images_NHWC, files.decoded_NHWC, config, extractor)


def _shape_of(tokenizer: ImageTokenizer, codes_Nc: IntArray | None) -> str:
    """The form of pictures' codes, and the lengths of drawings."""
    form = tokenizer.form
    if codes_Nc is None or not form.is_sequence:
        rows, columns = tokenizer.grid
        return f"{rows} x {columns} codes" if form.is_plain else form.name
    lengths = sorted(form.length(codes) for codes in codes_Nc)
    median, most = lengths[len(lengths) // 2], lengths[9 * len(lengths) // 10]
    return f"{form.name} ({median} in the median, {most} or fewer in nine of ten)"


def _score_of(
    given: Sequence[str], registry: Registry
) -> tuple[MetricConfig, ExtractorConfig | None]:
    """The configs named by a `--score`."""
    from cm3run.evaluation.features import check_score

    recipe = composed({}, list(given), registry)
    if recipe.metric is None:
        raise TokenizerError(
            f"--score {' '.join(given)}", "names no metric", "write e.g. --score metric=NAME"
        )
    recipe.metric.check()
    check_score(recipe.metric, recipe.extractor)
    return recipe.metric, recipe.extractor


def _score_lines(
    images_NHWC: PixelArray,
    reconstructed_NHWC: PixelArray,
    config: MetricConfig,
    extractor: ExtractorConfig | None,
) -> list[str]:
    from cm3run.evaluation.features import reconstruction_scores

    found = reconstruction_scores(images_NHWC, reconstructed_NHWC, config, extractor)
    return [
        f"{name:10}  {score.value:.4g}"
        f" ({'higher' if score.higher_is_better else 'lower'} is better"
        f"{f'; {score.note}' if score.note else ''})\n"
        for name, score in found
    ]


def _evaluated(target: str) -> tuple[str, list[str]]:
    """The recipe and overrides for a recipe, or for a folder or weights file of train-image."""
    path = Path(target)
    if not path.is_dir() and path.suffix != ".safetensors":
        return target, []
    if not path.exists():
        raise TokenizerError(target, "there is no such file", "correct the path")
    recipe = (path if path.is_dir() else path.parent) / RECIPE_FILE
    if not recipe.is_file():
        raise TokenizerError(
            target,
            f"there is no {RECIPE_FILE} that describes it",
            "name the recipe instead, with image_tokenizer.weights=FILE",
        )
    return str(recipe), [] if path.is_dir() else [f"image_tokenizer.weights={path}"]
