"""`cm3 data encode`: encode a data set into token shards, in several processes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli import add_device, add_trust, registry_of, whole_number
from cm3apps.cli._dataset import count_of, limit_threads, recipe_of
from cm3core.errors import CM3Error, DataError, FileError, ProcessError, RecipeError
from cm3core.files import FREE_SPACE

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import DocumentSource
    from cm3core.interfaces.text_tokenizer import TextTokenizer
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe
    from cm3run.token_shards import Encoder, Manifest, Part

LINE = "encode a data set into token shards, or resume that"
DESCRIPTION = (
    "Writes each document's text ids and image codes into tar files, with a manifest of hashes, tokenizers "
    "and licences.\nIf it is killed, the same command resumes. Training reads the shards from a folder or an "
    "object store."
)
EXAMPLE = (
    "cm3 data encode quickstart -o my/shards --processes 2\n"
    "  cm3 data encode quickstart -o /shared/shards --part 1/4     # on the first of four machines"
)
MAX_PROCESSES, MAX_PARTS = 1024, 1 << 20
#: Documents per shard, see `cm3run.token_shards`.
SHARD_SIZE = 4096
_DUPLICATES = ("documents", "pictures", "keep")
_SECONDS_BETWEEN_LOOKS = 0.1


def configure(parser: ArgumentParser) -> None:
    """The action's options."""
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FOLDER", help="the shards' folder"
    )
    parser.add_argument(
        "--processes",
        type=whole_number(1, MAX_PROCESSES),
        default=1,
        metavar="N",
        help="number of processes, which take the GPUs in turn (default: %(default)s)",
    )
    parser.add_argument(
        "--part",
        type=_part,
        default=(1, 1),
        metavar="I/N",
        help="write part I of N, for N machines that share a folder (default: 1/1)",
    )
    parser.add_argument(
        "--splits",
        metavar="NAME,...",
        help="splits to encode (default: the recipe's split and its validation splits)",
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="use the tokenizers of this model (default: those of the recipe)",
    )
    parser.add_argument(
        "--duplicates",
        choices=_DUPLICATES,
        default=_DUPLICATES[0],
        help="which copies to drop within a split: 'documents' with the same pictures and "
        "text, or those with the same 'pictures' whatever their text; 'keep' drops none "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--texts",
        type=whole_number(1, 1024),
        default=8,
        metavar="N",
        help="texts per document, if the data set generates its texts (default: %(default)s)",
    )
    parser.add_argument(
        "--shard-size",
        type=whole_number(1, 2**24),
        default=SHARD_SIZE,
        metavar="N",
        help="documents per shard; a killed process loses at most one shard (default: %(default)s)",
    )
    add_device(parser, "the device of the image tokenizer")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_trust(parser, plugins=False)


def _part(text: str) -> tuple[int, int]:
    """The type of `--part`."""
    index, slash, number = text.partition("/")
    if slash and index.isdecimal() and number.isdecimal() and len(text) < 20:
        part = int(index), int(number)
        if 1 <= part[0] <= part[1] <= MAX_PARTS:
            return part
    raise ArgumentTypeError(f"is {text[:40]!r}, must be I/N with I from 1 to N, as in 2/4")


def run(args: Namespace) -> int:
    """Encode this call's part; return the exit code."""
    try:
        return _run(args)
    except FileError as error:
        if error.next_step != FREE_SPACE:
            raise
        raise FileError(
            error.place, error.cause, f"{FREE_SPACE}; the same command resumes"
        ) from error


def _run(args: Namespace) -> int:
    from cm3run.progress import make_bar
    from cm3run.token_shards import Part

    registry = registry_of(args)
    recipe = recipe_of(args.target, args.overrides, registry)
    encoder = _encoder(args, recipe, registry)
    index, number = args.part
    part = Part(index - 1, number)
    was_finished = encoder.is_finished
    with make_bar(
        total=encoder.num_documents(part),
        desc="encoding",
        unit=" documents",
        disable=args.quiet or None,
    ) as bar:
        if args.processes == 1 or was_finished:
            encoder.encode(part, bar.update)
        else:
            _in_processes(args, encoder, part, bar)
    manifest = encoder.finish()
    if manifest is None and number == 1:
        raise DataError(
            str(args.out),
            "a finished shard is missing",
            "run the command again, and leave that folder alone meanwhile",
        )
    if manifest is None:
        print(
            f"part {index}/{number} of {args.out} is done; the manifest is written when all parts are"
        )
        return 0
    if was_finished:
        print("nothing to do: these are already the shards of this data")
    _print(args, manifest, registry)
    return 0


def _encoder(args: Namespace, recipe: Recipe, registry: Registry) -> Encoder:
    from cm3core.interfaces.image_tokenizer import IMAGE_TOKENIZER
    from cm3run.build import image_tokenizer_of
    from cm3run.devices import choose_device
    from cm3run.token_shards import Encoder, Settings, TokenizerInfo, Tokenizers

    folder = None
    if args.model is not None:
        recipe, folder = _with_model(recipe, args.model, registry, args.trust_endpoints)
    _check_sections(recipe)
    limit_threads(recipe)
    assert recipe.text_tokenizer is not None
    assert recipe.image_tokenizer is not None
    sources = _sources(recipe, registry, args.splits)
    text = _text_tokenizer(recipe, registry, next(iter(sources.values())), args.out, folder)
    image = image_tokenizer_of(
        recipe.image_tokenizer, None if folder is None else folder / IMAGE_TOKENIZER, registry
    )
    image.move_to(choose_device(args.device))

    def info(kind: str, config: Any, fingerprint: str) -> TokenizerInfo:
        values = json.loads(json.dumps(asdict(config), default=str))
        return TokenizerInfo(recipe.component_names[kind], values, fingerprint)

    tokenizers = Tokenizers(
        text=text,
        image=image,
        text_info=info("text_tokenizer", recipe.text_tokenizer, text.fingerprint),
        image_info=info("image_tokenizer", recipe.image_tokenizer, image.fingerprint),
    )
    return Encoder(
        args.out,
        sources,
        tokenizers,
        "" if recipe.task is None else recipe.component_names["task"],
        Settings(args.shard_size, args.duplicates, args.texts),
    )


def _check_sections(recipe: Recipe) -> None:
    for kind in ("dataset", "text_tokenizer", "image_tokenizer"):
        if getattr(recipe, kind) is None:
            raise RecipeError(
                kind,
                "is not given",
                "name a recipe that has it, with your data set as dataset=NAME dataset.path=PATH, or a model: "
                "--model MODEL",
            )


def _with_model(
    recipe: Recipe, name: str, registry: Registry, trust_endpoints: Sequence[str]
) -> tuple[Recipe, Path]:
    """The recipe with a model's tokenizers, and the folder of the model's checkpoint."""
    from cm3run.checkpoint import find_checkpoint, find_model, read_recipe

    folder = find_checkpoint(find_model(name, registry))
    stored = read_recipe(folder, registry, trust_endpoints=trust_endpoints)
    kinds = ("text_tokenizer", "image_tokenizer")
    names = {kind: stored.component_names[kind] for kind in kinds}
    given = {kind: getattr(stored, kind) for kind in kinds}
    return replace(recipe, **given, component_names={**recipe.component_names, **names}), folder


def _sources(recipe: Recipe, registry: Registry, names: str | None) -> dict[str, DocumentSource]:
    """The splits by name: the named ones, which must exist; otherwise the recipe's own split and its
    existing validation splits."""
    from cm3run.build import source_of

    assert recipe.dataset is not None
    own = recipe.dataset.split
    if names is not None:
        wanted = [name.strip() for name in names.split(",") if name.strip()]
        if not wanted:
            raise DataError("--splits", "names no split", "name some, as in train,valid")
        return {name: source_of(recipe, registry, split=name) for name in dict.fromkeys(wanted)}
    found = {own: source_of(recipe, registry)}
    for name in recipe.validation_splits:
        if name in found:
            continue
        try:
            source = source_of(recipe, registry, split=name)
        except CM3Error:
            continue  # training also leaves it out
        if len(source):
            found[name] = source
    return found


def _text_tokenizer(
    recipe: Recipe, registry: Registry, source: DocumentSource, out: Path, model: Path | None
) -> TextTokenizer:
    """The text tokenizer: the model's, that of an earlier call with these shards, or one built as in training."""
    from cm3core.plugins.registry import built
    from cm3run.token_shards.writing import TEXT_TOKENIZER

    config = recipe.text_tokenizer
    assert config is not None
    # with another tokenizer in the folder the plan differs, and is refused
    for folder in (None if model is None else model / TEXT_TOKENIZER, out / TEXT_TOKENIZER):
        if folder is not None and folder.is_dir() and any(folder.iterdir()):
            return built(config.load(folder), config, registry)
    return built(config.build(source.texts()), config, registry)


def _in_processes(args: Namespace, encoder: Encoder, part: Part, bar: Any) -> None:
    """Divide this call's part among processes, start them, and wait for them."""
    number = args.processes
    commands = [
        _command(args, part.index + one * part.number, part.number * number, one)
        for one in range(number)
    ]
    threads = str(max(1, (os.cpu_count() or 1) // number))
    environment = {
        "OMP_NUM_THREADS": threads,
        **os.environ,
        # it imports the same packages as this process
        "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
    }
    running: list[subprocess.Popen[bytes]] = []
    try:
        running += [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
            )
            for command in commands
        ]
        before = encoder.num_done(part)
        bar.update(before)
        while any(process.poll() is None for process in running):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            if not bar.disable:
                done = encoder.num_done(part)
                bar.update(done - before)
                before = done
            _check(running)
        _check(running)
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def _check(running: Sequence[subprocess.Popen[bytes]]) -> None:
    for place, process in enumerate(running, 1):
        if process.returncode:
            raise ProcessError(
                f"process {place} of {len(running)}",
                f"ended with code {process.returncode}"
                + (", see above" if process.returncode > 0 else ": it was killed"),
                "the same command resumes",
            )


def _command(args: Namespace, index: int, number: int, process: int) -> list[str]:
    """The command of a process: this process's command, for the `index`-th of `number` parts."""
    from cm3run.devices import device_of_process

    options = {
        "--out": args.out,
        "--part": f"{index + 1}/{number}",
        "--splits": args.splits,
        "--model": args.model,
        "--duplicates": args.duplicates,
        "--texts": args.texts,
        "--shard-size": args.shard_size,
        "--device": device_of_process(args.device, process),
    }
    return [
        # -P: don't import from the current folder, which may have the data's own grp.py
        *(sys.executable, "-P", "-m", "cm3apps.cli._encode_worker"),
        *(item for file in args.plugin for item in ("--plugin", str(file))),
        *("data", "encode", "--quiet"),
        *(
            item
            for key, value in options.items()
            if value is not None
            for item in (key, str(value))
        ),
        *([] if args.target is None else [args.target]),
        *args.overrides,
    ]


def _print(args: Namespace, manifest: Manifest, registry: Registry) -> None:
    from cm3core.plugins.registry import marked

    for name, split in manifest.splits.items():
        size = sum(shard.num_bytes for shard in split.shards)
        left_out = [
            count_of(number, noun)
            for number, noun in (
                (split.num_duplicates, "duplicate"),
                (split.num_skipped, "unusable record"),
            )
            if number
        ]
        print(
            f"{args.out}: split {name}: {count_of(split.num_documents, 'document')}, {size / 1e6:,.1f} MB in "
            f"{count_of(len(split.shards), 'shard')}"
            + (f"; left out: {', '.join(left_out)}" if left_out else "")
        )
    if any(split.num_skipped for split in manifest.splits.values()):
        print(f"why records are unusable: {args.out / 'skipped.jsonl'}")
    for reader in marked(registry, "dataset", "reads_token_shards"):
        path = shlex.quote(f"dataset.path={args.out}")
        print(f"train on them: cm3 train RECIPE dataset={reader} {path}")
        break
