"""The command line of `cm3 convert`. Light: it imports heavy modules only when it runs."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli import whole_number
from cm3core.errors import CheckpointError, CM3Error

if TYPE_CHECKING:
    from cm3published.convert.model import ModelFiles

EXAMPLE = """examples:
  cm3 convert chameleon/models/7b -o chameleon-7b-hf --tokenizer chameleon/tokenizer
  cm3 convert chameleon-7b-hf -o again --to meta
  cm3 convert Anole-7b-v0.1/models/7b --check
  cm3 convert Anole-7b-v0.1/models/7b -o anole --to cm3 --tokenizer Anole-7b-v0.1/tokenizer
  cm3 convert runs/anole-tuned -o anole-tuned-hf --to hf
  cm3 convert Janus-Pro-1B -o janus
  cm3 convert Emu3-Gen -o emu3 --tokenizer Emu3-VisionTokenizer
  cm3 convert Emu3-Chat -o emu3-chat --tokenizer Emu3-VisionTokenizer --chat
  cm3 convert Emu3.5-Image -o emu3.5 --tokenizer Emu3.5-VisionTokenizer
  cm3 convert GLM-Image -o glm-image --resolution 1152 --width 768
  cm3 convert glm-image-tuned -o back --to hf --tokenizer GLM-Image
  cm3 convert Lumina-mGPT-2.0 -o lumina2 --to cm3 --layout lumina2 --tokenizer files
  cm3 convert c2i_L_384.pt -o llamagen --tokenizer vq_ds16_c2i.pt
  cm3 generate --model anole "a red apple\""""
#: Name of Chameleon's image token in Meta's tokenizer; transformers uses another.
RESERVED_IMAGE = "<reserved08707>"
TEXT_TOKENIZER = "text_tokenizer.json"
#: Formats that can only be converted to models of this framework.
OTHERS = ("emu3", "emu3.5", "llamagen")
#: Format -> default format to write.
FIRST = {"hf": "meta", **dict.fromkeys(OTHERS, "cm3")}


DESCRIPTION = (
    "Convert Chameleon's weights, and models based on them (Anole, Lumina-mGPT), between "
    "Meta's format and Hugging Face's, in both directions; or into a model of this framework "
    "(--to cm3), which cm3 generate and the other commands open, and back after tuning. "
    "Also convert Emu3, Emu3.5, GLM-Image's first stage, Lumina-mGPT 2.0 and LlamaGen's class-conditional models into "
    "models of this framework, and Emu3.5 and GLM-Image back. "
    "Every tensor must exist with the right size; checklist.chk is verified; nothing in a file "
    "is executed. Weights keep their dtype. The folder is written completely or not at all. "
    "Janus, in DeepSeek's format or transformers', becomes a model of this framework that generates "
    "pictures; its network for reading pictures is left out. A model with the decoder cm3leon becomes an OPT in "
    "Hugging Face's format (--to opt), which inference engines open, and an OPT made from it such a model again."
)


def configure(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.description = DESCRIPTION
    parser.epilog, parser.formatter_class = EXAMPLE, RawDescriptionHelpFormatter
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="folder with params.json (Meta) or config.json (HF), or a model of this framework with "
        "that decoder, or cm3leon for opt; for LlamaGen, the file",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="new folder")
    what.add_argument("--check", action="store_true", help="only verify the source; write nothing")
    parser.add_argument(
        "--to",
        choices=("hf", "meta", "cm3", "opt"),
        help="format to write (default: hf, or meta if the source is hf; cm3 for Emu3, Emu3.5, GLM-Image, LlamaGen and OPT)",
    )
    parser.add_argument(
        "--shards",
        type=whole_number(1, 1024),
        metavar="N",
        help="for meta: number of weights files (default: as in the source, or as few as the norms of heads allow)",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="PATH",
        help=f"folder with {TEXT_TOKENIZER}; for hf: its names of ids, which transformers needs (a model "
        "of this framework has them); for cm3, which needs it, also with vqgan.ckpt (lumina2: tokenizer.json, "
        "tokenizer_config.json and movqgan_270M.ckpt). Emu3: folder with model.safetensors of its image tokenizer, and the "
        "text tokenizer if that is not with the weights. Emu3.5: the same with model.ckpt, and emu3.tiktoken. LlamaGen: its "
        "vq_*.pt. Janus: folder with tokenizer.json (default: the source). Emu3.5 and GLM-Image back to hf: the published "
        "folder. OPT: the model "
        "that it was made from (default: in the source's folder cm3)",
    )
    _pictures_and_prompts(parser)
    parser.set_defaults(run=run)


def _pictures_and_prompts(parser: ArgumentParser) -> None:
    """Options of what the weights don't say: layout, size of pictures, and prompts."""
    parser.add_argument(
        "--layout",
        choices=("chameleon", "lumina", "lumina2"),
        help="for cm3: sequence layout: chameleon (the default; also for Anole), lumina, or lumina2 (Lumina-mGPT 2.0)",
    )
    parser.add_argument(
        "--resolution",
        type=whole_number(1, 2**14),
        metavar="PIXELS",
        help="for cm3: height of pictures (default: 512; for lumina2 768; for Emu3.5 and GLM-Image 1024; for LlamaGen "
        "from the file name; for Emu3 and Janus from config.json)",
    )
    parser.add_argument(
        "--width",
        type=whole_number(1, 2**14),
        metavar="PIXELS",
        help="for cm3: width of pictures (default: the height)",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="Emu3: the weights are Emu3-Chat, which describes pictures and answers questions about them",
    )
    parser.add_argument(
        "--roles",
        nargs=2,
        metavar=("USER", "ASSISTANT"),
        help="Janus: role names in its prompts (default: Janus-Pro's, "
        "<|User|> <|Assistant|>; Janus-1.3B's own examples have User Assistant)",
    )


def run(args: Namespace) -> int:
    """Convert or check; return the exit code."""
    from cm3published.convert.back import kind_of
    from cm3published.convert.glm_image import stage_of
    from cm3published.convert.janus import is_janus
    from cm3published.convert.lumina2 import LAYOUT, LICENCE
    from cm3published.convert.model import check_new
    from cm3published.convert.opt import is_opt

    if args.out is not None and not args.check:
        check_new(args.out, args.source)
    if (stage := stage_of(args.source)) is not None:
        from cm3published.convert.glm_image import run_glm_image

        return run_glm_image(args, stage)
    if is_janus(args.source):
        from cm3published.convert.janus import run_janus

        return run_janus(args)
    if args.to == "hf" and (kind := kind_of(args.source)) is not None:
        from cm3published.convert.back import run_back

        return run_back(args, kind)
    if args.to == "opt" or is_opt(args.source):
        from cm3published.convert.opt import run_opt

        return run_opt(args)
    with ExitStack() as stack:
        model = _open(args.source, stack)
        _say_what(model, args.source)
        if args.check:
            _read_all(model)
            print("every tensor exists with the right size and can be read")
            return 0
        _check_only(model, args)
        if model.form in OTHERS:
            _check_others(model, args)
        form = args.to or FIRST.get(model.form, "hf")
        _check_form(model, args, form)
        if args.layout == LAYOUT:
            model = replace(model, licence=LICENCE)
        extra: dict[str, Any] = {}
        if form == "hf" and args.tokenizer is not None:
            extra = _of_tokenizer(args.tokenizer / TEXT_TOKENIZER)
        elif form == "hf" and model.text_tokenizer is not None:
            extra = _of_tokenizer(model.text_tokenizer)
        _write(model, args, form, extra)
    print(f"{args.out}: {form}")
    print(model.licence, file=sys.stderr)
    return 0


def _check_form(model: ModelFiles, args: Namespace, form: str) -> None:
    """Raise `CM3Error` for an option that does not work with the format to write, or is missing."""
    for option, value, needed in (
        ("--shards", args.shards, ("meta",)),
        ("--tokenizer", args.tokenizer, ("hf", "cm3")),
        ("--layout", args.layout, ("cm3",)),
        ("--resolution", args.resolution, ("cm3",)),
        ("--width", args.width, ("cm3",)),
    ):
        if value is not None and form not in needed:
            only = " and --to ".join(needed)
            raise CM3Error(option, f"only works with --to {only}", "leave it out")
    if form == "cm3" and model.form == "cm3":
        raise CM3Error("--to cm3", f"{args.source} already has that format", "choose hf or meta")
    if form == "cm3" and args.tokenizer is None and model.form not in OTHERS:
        raise CM3Error(
            "--to cm3",
            "needs both tokenizers",
            f"pass the folder with {TEXT_TOKENIZER} and vqgan.ckpt (--tokenizer FOLDER)",
        )


def _open(source: Path, stack: ExitStack) -> ModelFiles:
    from cm3published.convert.cm3 import is_cm3, open_cm3
    from cm3published.convert.emu3 import is_emu3, open_emu3
    from cm3published.convert.hugging_face import is_hugging_face, open_hugging_face
    from cm3published.convert.llamagen import SUFFIXES, open_llamagen
    from cm3published.convert.meta import is_meta, open_meta

    if source.is_file() and source.suffix in SUFFIXES:
        return open_llamagen(source, stack)
    if not source.is_dir():
        raise CheckpointError(str(source), "is not a folder", "use the folder of the weights")
    if is_meta(source):
        return open_meta(source, stack)
    if is_emu3(source):
        return open_emu3(source, stack)
    if is_hugging_face(source):
        return open_hugging_face(source, stack)
    if is_cm3(source):
        return open_cm3(source, stack)
    raise CheckpointError(
        str(source),
        "has neither params.json (Meta), config.json (Hugging Face) nor recipe.yaml (cm3)",
        "use the folder with the weights files, such as models/7b",
    )


def _check_only(model: ModelFiles, args: Namespace) -> None:
    """Raise `CM3Error` for an option of another model."""
    if args.roles is not None:
        raise CM3Error("--roles", "only works with Janus", "leave it out")
    if args.chat and model.form != "emu3":
        raise CM3Error("--chat", "only works with Emu3", "leave it out")


def _check_others(model: ModelFiles, args: Namespace) -> None:
    """Raise `CM3Error` for an option that only works with Chameleon."""
    if args.to not in (None, "cm3"):
        raise CM3Error(
            f"--to {args.to}",
            f"only works with Chameleon, but {args.source} is another model",
            "leave it out",
        )
    if args.layout is not None:
        raise CM3Error(
            "--layout", "only works with Chameleon", "leave it out: there is only one layout"
        )
    if model.form == "llamagen" and args.tokenizer is None and not args.check:
        raise CM3Error(
            "--tokenizer",
            "is missing, but an image tokenizer is needed to decode codes",
            "pass LlamaGen's vq_ds16_c2i.pt or vq_ds8_c2i.pt",
        )


def _say_what(model: ModelFiles, source: Path) -> None:
    facts = model.facts
    numbers = sum(_count(lazy.shape) for lazy in model.tensors.values())
    print(
        f"{source}: {model.form}, {numbers / 1e9:.2f}B parameters, {model.dtype}, "
        f"{facts.num_layers} layers of {facts.d_model}, {facts.num_heads} heads "
        f"({facts.num_key_heads} for keys), {len(model.files)} weights files"
        + (", MD5 verified" if all(model.files.values()) else "")
    )
    reasons: dict[str, int] = {}
    for reason in model.left_out.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    for reason, number in reasons.items():
        print(f"left out: {number} tensors {reason}")


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _read_all(model: ModelFiles) -> None:
    for lazy in model.tensors.values():
        lazy.read()


def _of_tokenizer(path: Path) -> dict[str, Any]:
    """Return `vocabulary_map` for transformers' config; raises `CheckpointError` for another model's file."""
    from cm3published.convert.facts import read_json

    model = read_json(path).get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict) or not any(
        isinstance(name, str) and name.startswith("IMGIMG") for name in vocabulary
    ):
        raise CheckpointError(
            str(path), "has no names of image codes (IMGIMG...)", "use Chameleon's tokenizer"
        )
    return {
        "vocabulary_map": {
            "<image>" if name == RESERVED_IMAGE else name: number
            for name, number in vocabulary.items()
        }
    }


def _write(model: ModelFiles, args: Namespace, form: str, extra: dict[str, Any]) -> None:
    """Write a new folder in a format."""
    from cm3published.convert.hugging_face import write_hugging_face
    from cm3published.convert.meta import with_known_params, write_meta
    from cm3published.convert.model import PROVENANCE, write_new_folder

    def write(new: Path) -> None:
        if form == "hf":
            write_hugging_face(model, new, extra)
        elif form == "cm3":
            _write_cm3(model, args, new)
        else:
            known = with_known_params(model, args.source / PROVENANCE)
            write_meta(known, new, args.shards)

    write_new_folder(args.out, args.source, write, model.provenance())


def _write_cm3(model: ModelFiles, args: Namespace, new: Path) -> None:
    """Write the framework's own format into an empty folder."""
    from cm3published.convert.cm3 import write_cm3
    from cm3published.convert.emu3 import EMU3_5, Emu3Files, write_emu3
    from cm3published.convert.emu3_5 import write_emu3_5
    from cm3published.convert.llamagen import LlamaGenFiles, write_llamagen
    from cm3published.convert.lumina2 import LAYOUT, write_lumina2
    from cm3published.convert.model import Asked, recipe_name

    asked = Asked(recipe_name(args.out.name), args.resolution, args.width)
    if isinstance(model, Emu3Files):
        own = () if args.tokenizer is None else (args.tokenizer,)
        if model.form == EMU3_5:
            write_emu3_5(model, new, (*own, args.source), asked)
        else:
            write_emu3(model, new, (*own, args.source), asked, chat=args.chat)
    elif isinstance(model, LlamaGenFiles):
        write_llamagen(model, new, args.tokenizer, asked)
    elif args.layout == LAYOUT:
        write_lumina2(model, new, (args.tokenizer, args.source), asked)
    else:
        write_cm3(model, new, args.tokenizer, asked, layout=args.layout or "chameleon")
