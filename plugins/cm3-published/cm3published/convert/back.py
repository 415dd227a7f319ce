"""Emu3.5 and the first stage of GLM-Image converted back to their publishers' format, possibly tuned: the decoder's tensors are
the model's, everything else is copied from the published folder."""

from __future__ import annotations

import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from cm3core.errors import CM3Error
from cm3core.plugins.discovery import load_registry
from cm3plugins.trained.tensor_files import TensorFile, open_tensors
from cm3published.convert.cm3 import is_cm3, llama_name, whole_model
from cm3published.convert.emu3 import LICENCE as EMU_LICENCE
from cm3published.convert.facts import from_emu3, read_json
from cm3published.convert.glm_image import LICENCE as GLM_LICENCE
from cm3published.convert.glm_image import decoder_tensors, facts_of, pairs_back, stage_of
from cm3published.convert.hugging_face import CONFIG, INDEX, files_of, write_weights
from cm3published.convert.model import check_finite, check_names, check_shape, write_new_folder
from cm3published.convert.names import Lazy, parts
from cm3published.layouts.emu3_5 import Emu35LayoutConfig
from cm3published.layouts.glm_image import GlmImageLayoutConfig
from cm3run.checkpoint.layout import WEIGHTS
from cm3run.checkpoint.opening import read_recipe


@dataclass(frozen=True)
class Origin:
    """A tensor of the publisher's.

    Args:
        names: those of its parts in the model, one below the other.
        shape: its shape there.
        change: what is done with the parts together.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    change: Callable[[Tensor], Tensor]


#: From a published config and its place: the publisher's names of the decoder's tensors -> their origin.
Origins: TypeAlias = Callable[[Mapping[str, Any], str], dict[str, Origin]]


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _of_glm_image(config: Mapping[str, Any], place: str) -> dict[str, Origin]:
    facts = facts_of(config, place)
    back = partial(pairs_back, head_dim=facts.head_dim, rotated=facts.rotated)
    found: dict[str, Origin] = {}
    for ours, (theirs, shape, _) in decoder_tensors(facts).items():
        turned = ours.rpartition(".")[0].endswith(("q_proj", "k_proj"))
        before = found[theirs].names if theirs in found else ()
        found[theirs] = Origin((*before, ours), shape, back if turned else _same)
    return found


def _of_emu3_5(config: Mapping[str, Any], place: str) -> dict[str, Origin]:
    return {
        part.hugging_face: Origin(
            (llama_name(part.hugging_face),),
            part.shape[1:] if part.is_head_norm else part.shape,
            torch.Tensor.flatten if part.is_head_norm else _same,
        )
        for part in parts(from_emu3(config, place, rms_norms=True))
    }


#: Layout of a model -> origins of its publisher's tensors, and the licence.
_KINDS: Mapping[type[Any], tuple[Origins, str]] = {
    GlmImageLayoutConfig: (_of_glm_image, GLM_LICENCE),
    Emu35LayoutConfig: (_of_emu3_5, EMU_LICENCE.replace("Emu3", "Emu3.5")),
}


def kind_of(source: Path) -> tuple[Origins, str] | None:
    """Return what a model can be converted back to; None: it is not one of these models."""
    if not is_cm3(source):
        return None
    return _KINDS.get(type(read_recipe(whole_model(source), load_registry()).layout))


def run_back(args: Namespace, kind: tuple[Origins, str]) -> int:
    """Write the publisher's format; return the exit code.

    Raises:
        CM3Error: the published folder is not given, or does not fit the model.
    """
    origins, licence = kind
    _refuse_other_options(args)
    if args.tokenizer is None:
        raise CM3Error(
            "--to hf",
            "needs the published folder, whose other files are copied",
            "pass the folder that the model was converted from (--tokenizer FOLDER)",
        )
    folder, published = whole_model(args.source), stage_of(args.tokenizer) or args.tokenizer
    with ExitStack() as stack:
        own = stack.enter_context(open_tensors(folder / WEIGHTS))
        owners, _ = files_of(published, stack)
        wanted = origins(read_json(published / CONFIG), str(published / CONFIG))
        check_names(str(published), owners.keys() & wanted.keys(), wanted)
        check_names(
            str(folder), own.entries, {name for one in wanted.values() for name in one.names}
        )
        tensors = {
            name: _made(own, wanted[name], file.entries[name].dtype)
            if name in wanted
            else _copied(file, name)
            for name, file in owners.items()
        }

        def write(new: Path) -> None:
            write_weights(tensors, new)
            for path in (*published.glob("*.json"), *published.glob("*.tiktoken")):
                if path.name != INDEX:
                    shutil.copyfile(path, new / path.name)

        provenance = {
            "converted_by": "cm3 convert",
            "from": "cm3",
            "files": {WEIGHTS: None},
            "licence": licence,
        }
        write_new_folder(args.out, args.source, write, provenance)
    print(f"{args.out}: hf")
    print(licence, file=sys.stderr)
    return 0


def _made(own: TensorFile, origin: Origin, dtype: torch.dtype) -> Lazy:
    """Return a tensor of the publisher's, from the model's, in the published dtype."""
    shapes = [own.entries[name].shape for name in origin.names]
    rows = sum(shape[0] for shape in shapes)
    if torch.Size(shapes[0]).numel() * len(shapes) != torch.Size(origin.shape).numel():
        check_shape(str(own.path), origin.names[0], (rows, *shapes[0][1:]), origin.shape)

    def read() -> Tensor:
        read = [own.tensor(name) for name in origin.names]
        tensor = read[0] if len(read) == 1 else torch.cat(read)
        check_finite(str(own.path), origin.names[0], tensor)
        return origin.change(tensor).to(dtype)

    return Lazy(origin.shape, dtype, read)


def _copied(file: TensorFile, name: str) -> Lazy:
    entry = file.entries[name]
    return Lazy(entry.shape, entry.dtype, partial(file.tensor, name))


def _refuse_other_options(args: Namespace) -> None:
    """Raise `CM3Error` for an option that does not work on the way back."""
    for option, value in (
        ("--shards", args.shards),
        ("--layout", args.layout),
        ("--roles", args.roles),
        ("--resolution", args.resolution),
        ("--width", args.width),
        ("--chat", args.chat or None),
        ("--check", args.check or None),
    ):
        if value is not None:
            raise CM3Error(option, "does not work on the way back to hf", "leave it out")
