"""Opening a folder of Janus: DeepSeek's own form, or transformers' `JanusForConditionalGeneration`.

Both hold four networks: a Llama, the image tokenizer of LlamaGen with decoder, embeddings and a head
of its codes, and the network by which pictures are read, which is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cm3core.errors import CheckpointError
from cm3published.convert.facts import read_json
from cm3published.convert.hugging_face import CONFIG, files_of
from cm3published.convert.janus.facts import JanusFacts, from_deepseek, from_transformers
from cm3published.convert.janus.names import (
    DEEPSEEK,
    TRANSFORMERS,
    Form,
    decoder_tensors,
    num_levels,
)
from cm3published.convert.model import check_finite, check_names, check_shape, check_type
from cm3published.convert.names import Lazy

if TYPE_CHECKING:
    from cm3plugins.trained.tensor_files import TensorFile

LICENCE = (
    "Janus' weights are under the DeepSeek Model License, with restrictions of use that hold for copies "
    "in another form and for models made from it."
)
#: What `model_type` of `config.json` says -> the form.
_FORMS = {"janus": TRANSFORMERS, "multi_modality": DEEPSEEK}
#: DeepSeek's file of how prompts are written.
PROCESSOR = "processor_config.json"
#: Its keys -> keys of the layout `janus`.
_TAGS = {
    "pad_tag": "padding",
    "image_start_tag": "picture_begin",
    "image_end_tag": "picture_end",
}


@dataclass(frozen=True)
class JanusFiles:
    """What was opened.

    Args:
        form: of the files.
        facts: sizes.
        tensors: of the decoder, under its own names.
        image_tokenizer: tensors of the image tokenizer, under the file's names.
        left_out: number of tensors of the network that reads pictures.
        files: names of the files.
        tags: keys of the layout `janus` that the files state.
    """

    form: Form
    facts: JanusFacts
    tensors: Mapping[str, Lazy]
    image_tokenizer: Mapping[str, Lazy]
    left_out: int
    files: tuple[str, ...]
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def billions(self) -> float:
        """Of the decoder's parameters."""
        return sum(torch.Size(lazy.shape).numel() for lazy in self.tensors.values()) / 1e9

    @property
    def dtype(self) -> torch.dtype:
        """The type of the table of texts."""
        return self.tensors["embed_tokens.weight"].dtype

    def provenance(self) -> dict[str, Any]:
        """What is stored beside the converted weights."""
        return {
            "converted_by": "cm3 convert",
            "from": self.form.name,
            "files": dict.fromkeys(self.files),
            "left_out": {f"{prefix}*": "reads pictures" for prefix in self.form.reader},
            "licence": LICENCE,
        }


def is_janus(folder: Path) -> bool:
    """Whether a folder holds Janus in one of the forms."""
    path = folder / CONFIG
    if not path.is_file():
        return False
    config = read_json(path)
    form = _FORMS.get(str(config.get("model_type")))
    # DeepSeek's other models that read pictures have that type too, but draw none
    return form is TRANSFORMERS or (form is DEEPSEEK and "gen_vision_config" in config)


def open_janus(folder: Path, stack: ExitStack) -> JanusFiles:
    """Open a folder; files stay open as long as `stack`.

    Raises:
        CheckpointError: a file is missing, damaged or of another model.
    """
    config, place = read_json(folder / CONFIG), str(folder / CONFIG)
    form = _FORMS[config["model_type"]]
    owners, names = files_of(folder, stack)
    codes = {name for name in owners if name.startswith(form.image_tokenizer)}
    reader = {name for name in owners if name.startswith(form.reader)}
    if not codes:
        raise CheckpointError(
            str(folder),
            f"holds no image tokenizer ({form.image_tokenizer}*)",
            "copy the files again",
        )
    tied = False
    tags: dict[str, str] = {}
    if form is DEEPSEEK:
        facts = from_deepseek(config, place, levels=num_levels(codes))
        tags = _tags(folder / PROCESSOR)
    else:
        facts = from_transformers(config, place)
        tied = "lm_head.weight" not in owners
    wanted = decoder_tensors(facts, form, tied=tied)
    check_names(str(folder), set(owners) - codes - reader, wanted)
    tensors = {
        ours: _lazy(theirs, owners[theirs], shape) for theirs, (ours, shape) in wanted.items()
    }
    return JanusFiles(
        form,
        replace(facts, decoder={**facts.decoder, "tie_embeddings": tied}),
        tensors,
        {name: _lazy(name, owners[name], None) for name in sorted(codes)},
        len(reader),
        (CONFIG, *names),
        tags,
    )


def _tags(path: Path) -> dict[str, str]:
    """Names of tokens as DeepSeek's `processor_config.json` states them; {} without that file.

    Raises:
        CheckpointError: it is damaged, or prompts are written otherwise than here.
    """
    if not path.is_file():
        return {}
    stated = read_json(path)
    known = {key: stated[key] for key in ("sft_format", *_TAGS) if stated.get(key) is not None}
    for key, value in known.items():
        if not isinstance(value, str) or not value:
            raise CheckpointError(str(path), f"{key} is {value!r}, must be a text", "copy it again")
    form = known.pop("sft_format", "deepseek")
    if form != "deepseek":
        raise CheckpointError(
            str(path),
            f"sft_format is {form!r}, and only 'deepseek' is known here",
            "give a published Janus or Janus-Pro",
        )
    return {_TAGS[key]: value for key, value in known.items()}


def _lazy(name: str, file: TensorFile, shape: tuple[int, ...] | None) -> Lazy:
    """A tensor of a file; shape None: whatever it has."""
    found = file.entries[name]
    if shape is not None:
        check_shape(str(file.path), name, found.shape, shape)
        check_type(str(file.path), name, found.dtype)

    def read() -> Tensor:
        tensor = file.tensor(name)
        check_finite(str(file.path), name, tensor)
        return tensor

    return Lazy(found.shape, found.dtype, read)
