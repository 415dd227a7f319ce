"""Time the tokens of a picture by a decoder with random weights, count the kernels of a token, and compare tokens on
the CPU and on a device.

    python kernels/bench/decode_step.py --device cuda --size 7b -o decode.json

The picture has guidance: two rows a token. Kernels are counted in a profile of a whole picture; most of its tokens are
replays of one captured graph. Then a small decoder draws the same pictures in float32 on the CPU and on the device: a
token may differ where two were nearly tied, and those after it then differ, too.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from training_step import kernels_in, seconds_of

from cm3lab.benchmarks.decode.engine import VARIANTS, EngineProvider, RandomModel
from cm3lab.benchmarks.decode.sizes import SIZES, Size
from cm3lab.benchmarks.decode.workload import PROMPT_TOKENS, Setup, decode_case
from cm3run.devices import choose_device, choose_precision

#: `cm3 bench decode` has smaller ones; this is the recipe's, `cm3leon-7b`.
DECODERS = SIZES | {"7b": Size("7b", 32, 4096, 32, 16384)}
#: Pictures and tokens that are compared.
GOLDEN = (4, 64)


def provider_of(
    size: Size, tokens: int, device: torch.device, dtype: torch.dtype
) -> EngineProvider:
    setup = Setup(size, PROMPT_TOKENS + tokens + 8, device, dtype, torch.get_num_threads())
    return EngineProvider("engine", setup, VARIANTS["engine"], RandomModel(setup))


def timed(size: Size, tokens: int, device: torch.device) -> dict[str, Any]:
    """Return the time of a token, the kernels of one, and the largest memory."""
    dtype = choose_precision("auto", device)[0] or torch.float32
    provider = provider_of(size, tokens, device, dtype)
    draw = provider.drawing(decode_case(provider.setup, tokens))
    draw()  # compiles
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = statistics.median(seconds_of(draw, device, 3))
    kernels = kernels_in(draw, device)
    return {
        "size": size.name,
        "dtype": str(dtype).removeprefix("torch."),
        "tokens": tokens,
        "ms_per_token": seconds * 1e3 / tokens,
        "kernels_per_token": None if kernels is None else kernels / tokens,
        "peak_gb": torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None,
    }


def golden(device: torch.device) -> dict[str, int]:
    """Return how many tokens there are, and how many are equal on the CPU and on the device."""
    pictures, tokens = GOLDEN
    cpu, other = (
        provider_of(DECODERS["tiny"], tokens, at, torch.float32)
        for at in (torch.device("cpu"), device)
    )
    other.model.__dict__["decoder"] = copy.deepcopy(cpu.model.decoder).to(device)
    drawn = [
        one.drawing(decode_case(one.setup, tokens, batch=pictures))().cpu() for one in (cpu, other)
    ]
    return {"tokens": drawn[0].numel(), "equal": int((drawn[0] == drawn[1]).sum())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="7b", choices=sorted(DECODERS))
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    device = choose_device(args.device)
    found: dict[str, Any] = {"golden": golden(device)}
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    found |= timed(DECODERS[args.size], args.tokens, device)
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{args.size}: {found['ms_per_token']:.2f} ms per token; {found['golden']}")


if __name__ == "__main__":
    main()
