"""`cm3 convert` of a Janus."""

from __future__ import annotations

import sys
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path

from cm3core.errors import CM3Error
from cm3published.convert.janus.reading import LICENCE, open_janus
from cm3published.convert.janus.writing import write_janus
from cm3published.convert.new_folder import recipe_name, write_new_folder


def run_janus(args: Namespace) -> int:
    """Convert or check a Janus, which becomes a model of this framework; return the exit code."""
    _check_options(args)
    with ExitStack() as stack:
        model = open_janus(args.source, stack)
        sizes = model.facts.decoder
        print(
            f"{args.source}: Janus, {model.form.name}, {model.billions:.2f}B parameters of the decoder, "
            f"{model.dtype}, {sizes['num_layers']} layers of {sizes['d_model']}, "
            f"{sizes['num_heads']} heads, {model.facts.num_codes:,} image codes"
        )
        print(f"left out: {model.left_out} tensors of the network that reads pictures (SigLIP)")
        if args.check:
            for lazy in (*model.tensors.values(), *model.image_tokenizer.values()):
                lazy.read()
            print("every tensor is there, has its size and can be read")
            return 0

        def write(new: Path) -> None:
            write_janus(
                model,
                new,
                args.tokenizer or args.source,
                name=recipe_name(args.out.name),
                resolution=args.resolution,
                roles=args.roles,
            )

        write_new_folder(args.out, args.source, write, model.provenance())
    print(f"{args.out}: cm3")
    print(LICENCE, file=sys.stderr)
    return 0


def _check_options(args: Namespace) -> None:
    """Raise `CM3Error` for an option that is not for Janus."""
    for option, value in (("--shards", args.shards), ("--layout", args.layout)):
        if value is not None:
            raise CM3Error(option, "is for Chameleon's kin only", "leave it out")
    if args.chat:
        raise CM3Error("--chat", "is for Emu3 only", "leave it out")
    if args.width is not None:
        raise CM3Error("--width", "is not for Janus, whose pictures are squares", "leave it out")
    if args.to not in (None, "cm3"):
        raise CM3Error(
            f"--to {args.to}", "is for Chameleon's kin only", "convert Janus with --to cm3"
        )
