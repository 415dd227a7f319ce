"""Meta's format: `params.json`, `consolidated.pth` or `consolidated.00.pth` ..., `checklist.chk`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cm3core.errors import CheckpointError
from cm3plugins.trained.tensor_files import TensorFile, open_tensors
from cm3published.convert.facts import from_params, json_object, read_json, text_of, to_params
from cm3published.convert.model import (
    ModelFiles,
    check_finite,
    check_names,
    check_shape,
    check_type,
)
from cm3published.convert.names import Lazy, Part, fewest_norms, merged, parts, split

PARAMS, MORE_PARAMS, CHECKLIST = "params.json", "consolidate_params.json", "checklist.chk"
#: Tensors in older files besides the weights; Anole's files hold None there.
IGNORED = ("rope.freqs",)
#: Far above the number of files of the largest model.
MOST_SHARDS = 1024
_SHARD = re.compile(r"consolidated\.(\d+)\.pth")


def is_meta(folder: Path) -> bool:
    """Whether a folder has Meta's format."""
    return (folder / PARAMS).is_file()


def open_meta(folder: Path, stack: ExitStack) -> ModelFiles:
    """Open a folder; files stay open as long as `stack`.

    Raises:
        CheckpointError: a file is missing or damaged, or belongs to another model.
    """
    paths = _shards(folder)
    checked = verified(folder, [PARAMS, *(path.name for path in paths)])
    texts = {
        name: text_of(folder / name) for name in (PARAMS, MORE_PARAMS) if (folder / name).is_file()
    }
    params = _values([json_object(text, folder / name) for name, text in texts.items()])
    stated = params.get("model_parallel_size")
    if isinstance(stated, int) and stated != len(paths):
        raise CheckpointError(
            str(folder),
            f"has {len(paths)} of {stated} weights files",
            "copy all of them: consolidated.00.pth and so on",
        )
    shards = [stack.enter_context(open_tensors(path)) for path in paths]
    embeddings = shards[0].entries.get("tok_embeddings.weight")
    facts = from_params(
        params, str(folder / PARAMS), vocab_size=embeddings.shape[0] if embeddings else 1
    )
    wanted = parts(facts)
    for shard in shards:
        names = set(shard.entries) - set(IGNORED)
        check_names(str(shard.path), names, [part.meta for part in wanted])
        for part in wanted:
            check_shape(
                str(shard.path),
                part.meta,
                shard.entries[part.meta].shape,
                _shape_in(part, len(shards)),
            )
            check_type(str(shard.path), part.meta, shard.entries[part.meta].dtype)
    left_out = {
        name: "recomputed on demand"
        for name in IGNORED
        if any(name in shard.entries or name in shard.others for shard in shards)
    }
    return ModelFiles(
        "meta",
        facts,
        {part.hugging_face: _lazy(part, shards) for part in wanted},
        left_out,
        {path.name: checked.get(path.name) for path in paths},
        texts,
        len(paths),
    )


def write_meta(model: ModelFiles, folder: Path, num_shards: int | None) -> list[str]:
    """Write Meta's format into an empty folder; return the names of the files.

    Args:
        model: model to write.
        folder: existing empty folder.
        num_shards: number of weights files. None: as in the source or, if that is unknown or impossible,
            as few as the norms allow.
    """
    facts, wanted = model.facts, parts(model.facts)
    number = num_shards or _fewest(model, wanted)
    if num_shards is None and model.num_shards and model.num_shards % number == 0:
        number = model.num_shards
    sizes = facts.num_heads, facts.num_key_heads, facts.d_model, facts.d_ff, facts.vocab_size
    if any(size % number for size in sizes):
        raise CheckpointError(
            "--shards",
            f"{number} files don't divide heads, widths and ids {sizes}",
            "choose a divisor of all of them",
        )
    names = [f"consolidated.{place:02}.pth" for place in range(number)]
    names = names if number > 1 else ["consolidated.pth"]
    for place, name in enumerate(names):
        try:
            shard = {
                part.meta: split(part, model.tensors[part.hugging_face].read(), number)[
                    place
                ].clone()
                for part in wanted
            }
        except ValueError as error:
            raise CheckpointError(
                "--shards",
                f"each of {number} files has one norm for all its heads: {error}",
                "leave it out to use a number that fits",
            ) from error
        torch.save(shard, folder / name)
    written = model.params
    known = _values(json.loads(text) for text in written.values())
    if not written or known.get("model_parallel_size", number) != number:
        written = {
            PARAMS: json.dumps({"model": to_params(facts)}, indent=2) + "\n",
            MORE_PARAMS: json.dumps({"model_parallel_size": number}, indent=2) + "\n",
        }
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")
    lines = [f"{_md5(folder / name)}  {name}\n" for name in [*written, *names]]
    (folder / CHECKLIST).write_text("".join(lines), encoding="utf-8")
    return [*written, *names, CHECKLIST]


def with_known_params(model: ModelFiles, provenance: Path) -> ModelFiles:
    """Return the model with Meta's original parameter files, if `provenance` has them and they match.

    Models converted from Meta's format are thus converted back to identical files.
    """
    if model.params or not provenance.is_file():
        return model
    values = read_json(provenance)
    stored, files = values.get("meta_params"), values.get("files")
    texts = {
        name: text
        for name, text in (stored.items() if isinstance(stored, dict) else ())
        if name in (PARAMS, MORE_PARAMS) and isinstance(text, str)
    }
    try:
        params = _values([json_object(text, provenance) for text in texts.values()])
        facts = from_params(params, "", vocab_size=model.facts.vocab_size)
    except CheckpointError:
        return model
    same = facts == replace(model.facts, context_length=facts.context_length)
    number = len(files) if isinstance(files, dict) and 0 < len(files) <= MOST_SHARDS else None
    return replace(model, params=texts, num_shards=number) if same else model


def _values(files: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the values in Meta's parameter files, merged as by its loader."""
    merged_values: dict[str, Any] = {}
    for own in files:
        nested = own.get("model")
        merged_values |= {**own, **(nested if isinstance(nested, dict) else {})}
    return merged_values


def verified(folder: Path, needed: list[str]) -> Mapping[str, str]:
    """Verify and return the MD5 of each file in `checklist.chk`; {} without that file.

    Raises:
        CheckpointError: a file is missing or differs.
    """
    path = folder / CHECKLIST
    if not path.is_file():
        return {}
    checked: dict[str, str] = {}
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), start=1):
        if not line.strip():
            continue
        match = re.fullmatch(r"([0-9a-fA-F]{32})[ *]+(\S+)", line.strip())
        if not match or Path(match[2]).name != match[2]:
            raise CheckpointError(
                f"{path}, line {number}", "is not an MD5 and a name", "copy it again"
            )
        expected, name = match[1].lower(), match[2]
        if not (folder / name).is_file():
            raise CheckpointError(
                str(folder / name), f"is missing, but {CHECKLIST} lists it", "copy it, too"
            )
        found = _md5(folder / name)
        if found != expected:
            raise CheckpointError(
                str(folder / name),
                f"its MD5 is {found}, but {CHECKLIST} states {expected}",
                "it is damaged or was changed: copy it again",
            )
        checked[name] = found
    if missing := [name for name in needed if name not in checked]:
        raise CheckpointError(str(path), f"does not list {missing[0]}", "copy it again")
    return checked


def _shards(folder: Path) -> list[Path]:
    """Return the weights files in order; raises `CheckpointError` if one is missing."""
    if (folder / "consolidated.pth").is_file():
        return [folder / "consolidated.pth"]
    found = {
        int(match[1]): path
        for path in folder.iterdir()
        if (match := _SHARD.fullmatch(path.name)) is not None
    }
    # n files have the numbers 0..n-1, but a file's name may contain any number
    missing = next((place for place in range(max(1, len(found))) if place not in found), None)
    if missing is not None:
        name = f"consolidated.{missing:02}.pth" if found else "consolidated.pth"
        raise CheckpointError(str(folder / name), "there is no such file", "copy it, too")
    return [found[place] for place in sorted(found)]


def _shape_in(part: Part, num_shards: int) -> tuple[int, ...]:
    """Return a tensor's shape in each of Meta's files."""
    if part.is_head_norm:
        return part.shape[1:]
    return tuple(
        size // num_shards if place == part.split else size for place, size in enumerate(part.shape)
    )


def _lazy(part: Part, shards: list[TensorFile]) -> Lazy:
    def read() -> torch.Tensor:
        tensors = [shard.tensor(part.meta) for shard in shards]
        for shard, tensor in zip(shards, tensors, strict=True):
            check_finite(str(shard.path), part.meta, tensor)
        return merged(part, tensors)

    return Lazy(part.shape, shards[0].entries[part.meta].dtype, read)


def _fewest(model: ModelFiles, wanted: list[Part]) -> int:
    """Return the smallest number of files that the norms of queries and keys allow."""
    number = 1
    for part in wanted:
        if part.is_head_norm:
            fewest = fewest_norms(
                model.tensors[part.hugging_face].read(), model.facts.num_key_heads
            )
            number = max(number, fewest) if fewest else 0
        if not number:
            raise CheckpointError(
                part.hugging_face,
                "has different values for each head, but a Meta file has one norm for all its heads",
                "keep transformers' format: these weights were trained in it",
            )
    return number


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        for block in iter(partial(stream.read, 1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
