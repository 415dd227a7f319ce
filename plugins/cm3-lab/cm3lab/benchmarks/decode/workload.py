"""The workload: prompts, cases, and the minimum number of bytes to read.

Prompts are random letters, all of the same length and all different: no provider pads, and none shares work that real
prompts would not share. Legend: W width, L layers.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cm3lab.benchmarks.decode.sizes import Size
from cm3lab.benchmarks.kernels.ops.guided_sample import GUIDANCE, TOP_P, chain
from cm3run.benchmarks import Case

#: Tokens of a conditional prompt: a text of bytes between two special tokens; and of our unconditional one:
#: <eos> <sentinel:0> <break>.
PROMPT_TOKENS, UNCONDITIONAL_TOKENS = 64, 3
SEED = 20_240_229


@dataclass(frozen=True)
class Setup:
    """Settings shared by all providers of a run.

    Args:
        size: size of the decoder.
        context: maximum number of tokens of a prompt and a picture together.
        device, dtype: device and dtype of weights and caches.
        threads: torch's threads on the CPU.
    """

    size: Size
    context: int
    device: torch.device
    dtype: torch.dtype
    threads: int


def decode_case(
    setup: Setup, tokens: int, *, batch: int = 1, candidates: int = 1, name: str = ""
) -> Case:
    """Return a case of `batch` prompts with `candidates` pictures of `tokens` image tokens each; only one of the two
    is above 1.

    `num_bytes` is what all steps together must read, with weights and cache in the case's dtype.
    """
    assert batch == 1 or candidates == 1
    parameters = {
        "size": setup.size.name,
        "batch": batch,
        "candidates": candidates,
        "tokens": tokens,
    }
    num_bytes = least_bytes(setup.size, parameters, setup.dtype.itemsize, setup.dtype.itemsize)
    return Case(
        name or f"batch {batch}, {tokens} tokens",
        parameters,
        setup.dtype,
        round(num_bytes * tokens),
        0,
    )


def step_bytes(
    size: Size, parameters: Mapping[str, Any], drawn: float, weight_bytes: float, cache_bytes: float
) -> float:
    """Return the minimum number of bytes that a step reads if `drawn` tokens of each picture are in the cache: weights
    once, and each stream's keys and values. Candidates share their prompts; the three tokens shared by all unconditional
    streams count for each.

    Args:
        size: size of the decoder.
        parameters: parameters of the case.
        drawn: tokens of each picture.
        weight_bytes, cache_bytes: bytes per number.
    """
    streams: int = 2 * parameters["batch"] * parameters["candidates"]
    # rows of token and position tables
    weights = size.trunk_parameters + size.num_codes * size.width + streams * 2 * size.width
    held: float = parameters["batch"] * (PROMPT_TOKENS + UNCONDITIONAL_TOKENS) + streams * drawn
    # pictures of a conversation, with their delimiters
    held += streams * parameters.get("pictures", 0) * (parameters["tokens"] + 2)
    return weights * weight_bytes + 2 * size.num_layers * size.width * held * cache_bytes


def least_bytes(
    size: Size, parameters: Mapping[str, Any], weight_bytes: float, cache_bytes: float
) -> float:
    """Return the mean of `step_bytes` over a picture's passes. The first one, which processes the prompts, counts as
    one without a cache."""
    tokens: int = parameters["tokens"]
    no_cache = step_bytes(size, parameters, 0, weight_bytes, 0)
    return (
        no_cache
        + sum(
            step_bytes(size, parameters, drawn, weight_bytes, cache_bytes)
            for drawn in range(1, tokens)
        )
    ) / tokens


def prompt_text(number: int) -> str:
    """Return the text of request `number`: `PROMPT_TOKENS - 2` lower-case letters, each one byte and so one
    token."""
    letters = random.Random(number)
    return "".join(letters.choice(string.ascii_lowercase) for _ in range(PROMPT_TOKENS - 2))


def prompts_of(case: Case) -> list[str]:
    """Return a text for each picture; candidates share one."""
    return [
        prompt_text(number)
        for number in range(case.parameters["batch"])
        for _ in range(case.parameters["candidates"])
    ]


def grid_of(tokens: int) -> tuple[int, int]:
    """Return the most nearly square grid with this many codes.

    >>> grid_of(256), grid_of(128), grid_of(7)
    ((16, 16), (8, 16), (1, 7))
    """
    rows = next(rows for rows in range(int(tokens**0.5), 0, -1) if tokens % rows == 0)
    return rows, tokens // rows


def code_drawer(num: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a plain loop's sampler: guidance over both streams, top-k and top-p by sorting, `multinomial`.

    It maps logits [2 num, R], all conditional rows first, to a code per picture, int64 [num, 1].
    """
    weights = torch.tensor([[GUIDANCE, 1 - GUIDANCE]], device=device).expand(num, 2)
    sampling = {
        "rows": weights,
        "weights": weights,
        "alpha_n": None,
        "top_k_n": True,
        "top_p_n": torch.full((num,), TOP_P, device=device),
    }

    def draw(logits_SR: Tensor) -> Tensor:
        return torch.multinomial(chain({"logits": logits_SR, **sampling}, torch.float32), 1)

    return draw
