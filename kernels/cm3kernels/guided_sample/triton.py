"""Host side of the kernels: choice of path and launch configuration, scratch memory. The budget
compiles these configurations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from cm3kernels._host import device_of, require
from cm3kernels.aot import ARCHS, AotEntry
from cm3kernels.guided_sample._one_block import one_block_kernel
from cm3kernels.guided_sample._tile import NEAR
from cm3kernels.guided_sample._tiled import merge_kernel, mix_kernel, race_kernel, select_kernel
from cm3kernels.guided_sample.cfg import refuse_empty

OP = "guided_sample"
#: Largest number of ids that path A takes.
ONE_BLOCK_LIMIT = 8192


@dataclass(frozen=True)
class Config:
    """Ids of a tile (a power of 2), and the warps of its program."""

    block: int
    num_warps: int


#: Path A, by block size. At most sixteen ids a thread: as many as fit in registers without a spill.
ONE_BLOCK = {
    block: Config(block, num_warps)
    for block, num_warps in (
        (64, 1),
        (128, 1),
        (256, 2),
        (512, 4),
        (1024, 4),
        (2048, 8),
        (4096, 8),
        (8192, 16),
    )
}
#: Path B: tiles of the keys and the race; the sweeps for thresholds go over the same tiles, with as
#: many warps as a block may have.
TILED, TILED_SELECT_WARPS, MERGE_WARPS = Config(4096, 8), 16, 1


def guided_sample_triton(
    logits_SV: Tensor,
    stream_rows_nG: Tensor,
    weights_nG: Tensor,
    *,
    allowed_nV: Tensor | None,
    allowed_bits_nW: Tensor | None,
    out_tokens_S: Tensor | None,
    out_log_probability_n: Tensor | None,
    first_id: int,
    debug: bool,
    config: Config | None = None,
    tiled: bool | None = None,
    window: float = NEAR.value,
    **settings: Tensor | None,
) -> Tensor:
    """See `cm3kernels.guided_sample`. `config`, `tiled` and `window` never change a token; they are
    for tests and timing.

    Args:
        config: tile and warps, instead of the table's.
        tiled: path B (True) or path A (False); None: by the number of ids.
        window: scores closer than this are compared in float64; larger is slower.
    """
    require(
        logits_SV.stride(1) == 1 or logits_SV.shape[1] == 1,
        OP,
        f"logits_SV has strides {logits_SV.stride()}, its rows must be contiguous; next: "
        "logits_SV.contiguous()",
    )
    for name, tensor in (
        ("out_tokens_S", out_tokens_S),
        ("out_log_probability_n", out_log_probability_n),
    ):
        require(
            tensor is None or tensor.is_contiguous(),
            OP,
            f"{name} must be contiguous: the kernel writes to it",
        )
    shift = first_id % 4
    if tiled is None:
        tiled = logits_SV.shape[1] > (config.block if config else ONE_BLOCK_LIMIT)
    common = {
        "logits": logits_SV,
        "stream_rows": stream_rows_nG.contiguous(),
        "weights": _real(weights_nG),
        "allowed": None if allowed_nV is None else allowed_nV.contiguous().view(torch.uint8),
        "allowed_bits": None if allowed_bits_nW is None else allowed_bits_nW.contiguous(),
        "row_tokens": out_tokens_S,
        "log_probabilities": out_log_probability_n,
        "first_id": first_id,
        **{
            name.removesuffix("_n"): None if tensor is None else _real(tensor)
            for name, tensor in settings.items()
        },
    }
    common["seeds"], common["positions"] = common.pop("seed"), common.pop("position")
    token_n = torch.empty(len(stream_rows_nG), dtype=torch.int64, device=logits_SV.device)
    launch = _launch_tiled if tiled else _launch_one_block
    with device_of(logits_SV):
        launch(common | {"tokens": token_n}, shift, config, window)
    if debug or logits_SV.device.type == "cpu":
        refuse_empty(token_n >= 0)
    return token_n


def _real(tensor: Tensor) -> Tensor:
    """Contiguous, in a type that the kernels widen exactly."""
    return (
        tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
    ).contiguous()


def _shapes(common: dict[str, Any]) -> dict[str, int]:
    logits, bits = common["logits"], common["allowed_bits"]
    return {
        "num_rows": logits.shape[0],
        "num_ids": logits.shape[1],
        "row_stride": logits.stride(0),
        "num_words": 0 if bits is None else bits.shape[1],
    }


def _of(kernel: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The values for which a kernel has arguments."""
    return {name: values[name] for name in kernel.arg_names if name in values}


def _launch_one_block(
    common: dict[str, Any], shift: int, config: Config | None, window: float
) -> None:
    num_ids = common["logits"].shape[1]
    config = config or ONE_BLOCK[max(triton.next_power_of_2(num_ids), min(ONE_BLOCK))]
    n, G = common["stream_rows"].shape
    values = (
        common
        | _shapes(common)
        | {
            "first_counter": common["first_id"] // 4,
            "G": G,
            "SHIFT": shift,
            "C": config.block // 4,
            "WINDOW": window,
        }
    )
    one_block_kernel[(n,)](
        **_of(one_block_kernel, values), num_warps=config.num_warps, num_stages=1
    )


def _launch_tiled(common: dict[str, Any], shift: int, config: Config | None, window: float) -> None:
    config = config or TILED
    logits, (n, G) = common["logits"], common["stream_rows"].shape
    num_tiles = triton.cdiv(logits.shape[1] + shift, config.block)
    guided = any(
        common[name] is not None
        for name in ("plausible_top_k", "plausible_top_p", "plausible_alpha")
    )

    def scratch(width: int, dtype: torch.dtype) -> Tensor:
        return torch.empty((n, width), dtype=dtype, device=logits.device)

    values = (
        common
        | _shapes(common)
        | {
            "num_tiles": num_tiles,
            "first_counter": common["first_id"] // 4,
            "G": G,
            "SHIFT": shift,
            "C": config.block // 4,
            "WIDTH": config.block,
            "TILES": triton.next_power_of_2(num_tiles),
            "WINDOW": window,
            "keys": scratch(num_tiles * config.block, torch.int32),
            "references": scratch(num_tiles * config.block, torch.int32) if guided else None,
            "lows": scratch(num_tiles, torch.int32),
            "highs": scratch(num_tiles, torch.int32),
            "state": scratch(5, torch.int32),
            "columns": scratch(num_tiles, torch.int32),
            "scores": scratch(num_tiles, torch.float64),
            "masses": None
            if common["log_probabilities"] is None
            else scratch(num_tiles, torch.int64),
        }
    )
    select_warps = min(TILED_SELECT_WARPS, max(config.block // 64, 1))
    mix_kernel[(n, num_tiles)](**_of(mix_kernel, values), num_warps=config.num_warps, num_stages=1)
    select_kernel[(n,)](**_of(select_kernel, values), num_warps=select_warps, num_stages=1)
    race_kernel[(n, num_tiles)](
        **_of(race_kernel, values), num_warps=config.num_warps, num_stages=1
    )
    merge_kernel[(n,)](**_of(merge_kernel, values), num_warps=MERGE_WARPS, num_stages=1)


#: Types of the arguments as an engine passes them: float32 settings, int64 integers.
_TYPES = {
    "stream_rows": "*i64",
    "weights": "*fp32",
    "reference": "*i64",
    "allowed": "*u8",
    "allowed_bits": "*i32",
    "allowed_from": "*i64",
    "allowed_to": "*i64",
    "temperature": "*fp32",
    "top_k": "*i64",
    "top_p": "*fp32",
    "plausible_top_k": "*i64",
    "plausible_top_p": "*fp32",
    "plausible_alpha": "*fp32",
    "plausible_k": "*i64",
    "min_p": "*fp32",
    "typical_p": "*fp32",
    "seeds": "*i64",
    "positions": "*i64",
    "tokens": "*i64",
    "row_tokens": "*i64",
    "log_probabilities": "*fp32",
    "num_rows": "i32",
    "num_ids": "i32",
    "num_words": "i32",
    "row_stride": "i32",
    "first_id": "i32",
    "first_counter": "i32",
    "num_tiles": "i32",
    "keys": "*i32",
    "references": "*i32",
    "lows": "*i32",
    "highs": "*i32",
    "state": "*i32",
    "columns": "*i32",
    "scores": "*fp64",
    "masses": "*i64",
}
#: Optional arguments of a call.
OPTIONAL = (
    "reference",
    "allowed",
    "allowed_bits",
    "allowed_from",
    "allowed_to",
    "temperature",
    "top_k",
    "top_p",
    "plausible_top_k",
    "plausible_top_p",
    "plausible_alpha",
    "plausible_k",
    "min_p",
    "typical_p",
    "row_tokens",
    "log_probabilities",
    "references",
    "masses",
)
#: Integers that are multiples of 16 in the cases that the budget covers.
_ALIGNED = {"num_ids", "num_words", "row_stride"}


def _entry(
    kernel: Any,
    name: str,
    dtype: str,
    constexprs: dict[str, object],
    config: Config,
    *,
    off: tuple[str, ...] = (),
    expects: tuple[str, ...] = (),
) -> AotEntry:
    """An entry with every pointer given except those in `off`."""
    every = {"logits": f"*{dtype}"} | _TYPES
    types = {
        key: value for key, value in every.items() if key in kernel.arg_names and key not in off
    }
    constants: dict[str, object] = {
        key: value for key, value in constexprs.items() if key in kernel.arg_names
    }
    constants |= {key: None for key in off if key in kernel.arg_names}
    aligned = tuple(key for key, value in types.items() if value.startswith("*") or key in _ALIGNED)
    return AotEntry(
        name=f"{OP}.{name}",
        kernel=kernel,
        types=types,
        constexprs=constants,
        div16=aligned,
        num_warps=config.num_warps,
        num_stages=1,
        expects=dict.fromkeys(ARCHS, expects),
    )


def aot_entries() -> list[AotEntry]:
    """Every kernel with the shipped configurations: all filters on, two streams; path A at the
    sizes of image vocabularies."""
    entries = []
    for block, dtype in (
        (1024, "bf16"),
        (2048, "bf16"),
        (4096, "bf16"),
        (8192, "bf16"),
        (8192, "fp32"),
    ):
        config = ONE_BLOCK[block]
        constants = {"G": 2, "SHIFT": 0, "C": block // 4, "WINDOW": NEAR.value}
        wide = ("LDG.E.64",) if dtype == "bf16" else ("LDG.E.128",)
        entries.append(
            _entry(
                one_block_kernel,
                f"one_block.{dtype}.b{block}",
                dtype,
                constants,
                config,
                expects=wide,
            )
        )
    plain = (
        "reference",
        "allowed",
        "allowed_bits",
        "allowed_from",
        "allowed_to",
        "plausible_top_k",
        "plausible_top_p",
        "plausible_alpha",
        "plausible_k",
        "min_p",
        "typical_p",
        "log_probabilities",
    )
    constants = {"G": 3, "SHIFT": 0, "C": 2048, "WINDOW": NEAR.value}
    entries.append(
        _entry(
            one_block_kernel,
            "one_block.bf16.b8192.g3.plain",
            "bf16",
            constants,
            ONE_BLOCK[8192],
            off=plain,
        )
    )
    constants = {
        "G": 2,
        "SHIFT": 0,
        "C": TILED.block // 4,
        "WIDTH": TILED.block,
        "TILES": 16,
        "WINDOW": NEAR.value,
    }
    select, merge = Config(TILED.block, TILED_SELECT_WARPS), Config(TILED.block, MERGE_WARPS)
    tiled = (
        (mix_kernel, "mix", TILED),
        (select_kernel, "select", select),
        (race_kernel, "race", TILED),
        (merge_kernel, "merge", merge),
    )
    for kernel, name, config in tiled:
        entries.append(_entry(kernel, f"tiled.{name}.bf16", "bf16", constants, config))
    # What is None is left out of the code. Here, at the other extreme: one stream, whose ids don't
    # start at a multiple of 4.
    constants |= {"G": 1, "SHIFT": 3}
    for kernel, name, config in tiled:
        entries.append(
            _entry(kernel, f"tiled.{name}.fp16.off", "fp16", constants, config, off=OPTIONAL)
        )
    constants |= {"C": 256}
    entries.append(
        _entry(
            one_block_kernel,
            "one_block.fp16.b1024.off",
            "fp16",
            constants,
            ONE_BLOCK[1024],
            off=OPTIONAL,
        )
    )
    return entries
