"""Time a training step of a recipe's decoder on made-up tokens: tokens per second, the fraction of the device's
matrix-product throughput, memory, and a profile.

    python kernels/bench/training_step.py --device cuda --recipe cm3leon-350m -o training.json

Runs forward, loss, backward, clipping and the optimiser's step, as in `cm3 train`, without data. The lower bound is the
step's arithmetic at the throughput of a large matrix product, measured first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cm3core.plugins.discovery import load_registry
from cm3core.recipe import Recipe, compose
from cm3core.vocab import Vocabulary
from cm3plugins.layouts.cm3leon import NUM_CONTROL, CM3LeonVocabulary
from cm3run.devices import choose_device, choose_precision
from cm3run.training.metrics import batch_loss_sums
from cm3run.training.optim import OptimizerGroup
from cm3run.training.packing import TrainingBatch

WARM_STEPS, STEPS = 3, 10
#: Number of documents per row; each sees only itself.
DOCUMENTS = 3
PROFILED = 25


def vocabulary_of(recipe: Recipe) -> Vocabulary:
    assert recipe.image_tokenizer is not None
    assert recipe.text_tokenizer is not None
    sizes = recipe.vocabulary
    text = sizes.num_text or (recipe.text_tokenizer.max_vocab_size or 0) + NUM_CONTROL
    return CM3LeonVocabulary(
        text,
        recipe.image_tokenizer.codebook_size,
        sizes.num_sentinels,
        sizes.num_reserved,
        sizes.multiple_of,
    )


def batch_of(recipe: Recipe, vocabulary: Vocabulary) -> TrainingBatch:
    """Return full rows of packed documents."""
    assert recipe.decoder is not None
    rows, length = recipe.train.batch_rows, recipe.decoder.context_length
    generator = torch.Generator().manual_seed(0)
    part = -(-length // DOCUMENTS)
    start = torch.arange(length) // part * part
    return TrainingBatch(
        torch.randint(vocabulary.size, (rows, length), generator=generator),
        torch.randint(vocabulary.size, (rows, length), generator=generator),
        torch.ones(rows, length),
        torch.arange(length).expand(rows, length).contiguous(),
        torch.full((rows, length), -1),
        start.expand(rows, length).contiguous(),
        torch.ones(rows, length, dtype=torch.int8),
    )


def flops_of(recipe: Recipe, vocabulary: Vocabulary) -> float:
    """Return the FLOP of a step: 6 per weight and token, including the head; for attention, 12 per visible pair of
    query and key and per number of the width (2 products forward, 4 backward)."""
    decoder: Any = recipe.decoder
    rows, length = recipe.train.batch_rows, decoder.context_length
    width, inner = decoder.d_model, decoder.d_ff or 4 * decoder.d_model
    weights = decoder.num_layers * (4 * width * width + 2 * width * inner)
    weights += vocabulary.size * width
    part = -(-length // DOCUMENTS)
    sizes = [min(part, length - begin) for begin in range(0, length, part)]
    pairs = sum(size * (size + 1) // 2 for size in sizes)
    return float(rows * (6 * weights * length + 12 * decoder.num_layers * width * pairs))


def seconds_of(run: Callable[[], object], device: torch.device, number: int) -> list[float]:
    """Return the seconds of each of `number` calls, including the device's work."""
    times = []
    for _ in range(number):
        _finish(device)
        begin = time.perf_counter()
        run()
        _finish(device)
        times.append(time.perf_counter() - begin)
    return times


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_throughput(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the FLOP per second of a square product."""
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = seconds_of(lambda: a @ b, device, 8)[3:]
    return 2 * size**3 / statistics.median(times)


def profile(run: Callable[[], object], device: torch.device) -> list[dict[str, Any]]:
    """Return the operations that take longest in one step: name, calls, milliseconds."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as found:
        run()
        _finish(device)
    name = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    rows = sorted(found.key_averages(), key=lambda row: -getattr(row, name))[:PROFILED]
    return [
        {"name": row.key, "calls": row.count, "ms": round(getattr(row, name) / 1e3, 3)}
        for row in rows
    ]


def kernels_in(run: Callable[[], object], device: torch.device) -> int | None:
    """Return the number of kernels that a call launches, also those of captured graphs; None without CUDA."""
    if device.type != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        run()
        _finish(device)
    return sum(
        event.device_type == torch.autograd.DeviceType.CUDA
        and not event.name.startswith(("Memcpy", "Memset"))
        for event in found.events()
    )


def measure(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    assert recipe.decoder is not None
    assert recipe.attention is not None
    assert recipe.image_tokenizer is not None
    dtype, precision = choose_precision(recipe.train.precision, device)
    vocabulary = vocabulary_of(recipe)
    with torch.device(device):
        decoder: Any = recipe.decoder.build(
            vocabulary, recipe.attention.build(), recipe.image_tokenizer.grid
        )
    decoder.train()
    if recipe.train.compile:
        for block in decoder.sharded_blocks():
            block.compile()
    optimizer = OptimizerGroup(decoder, recipe.train, dtype or torch.float32)
    batch = batch_of(recipe, vocabulary)

    def step() -> None:
        moved = batch.to(device)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            hidden_BTE = decoder.hidden_states(
                moved.tokens_BT,
                positions_BT=moved.positions_BT,
                cells_BT=moved.cells_BT,
                kv_start_BT=moved.kv_start_BT,
            )
            loss = batch_loss_sums(decoder, hidden_BTE, moved, z_loss=recipe.train.z_loss)[0]
        (loss / batch.num_tokens).backward()
        nn.utils.clip_grad_norm_(optimizer.parameters, 1.0)
        optimizer.step(1.0)

    on_cuda = device.type == "cuda"
    throughput = product_throughput(device, dtype or torch.float32)
    seconds_of(step, device, WARM_STEPS)
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    times = seconds_of(step, device, STEPS)
    median, flops = statistics.median(times), flops_of(recipe, vocabulary)
    return {
        "recipe": recipe.name,
        "hash": recipe.hash,
        "device": torch.cuda.get_device_name(device) if on_cuda else "cpu",
        "torch": torch.__version__,
        "precision": precision,
        "tokens": batch.tokens_BT.numel(),
        "seconds": median,
        "all_seconds": times,
        "tokens_per_second": batch.tokens_BT.numel() / median,
        "flops": flops,
        "product_flops_per_second": throughput,
        "of_products": flops / median / throughput,
        "compiled": recipe.train.compile,
        "launches": kernels_in(step, device),
        "peak_gb": torch.cuda.max_memory_allocated(device) / 1e9 if on_cuda else None,
        "profile": profile(step, device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="cm3leon-350m")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", help="recipe overrides, section.key=value")
    args = parser.parse_args()
    recipe = compose(args.recipe, args.overrides, registry=load_registry())
    found = measure(recipe, choose_device(args.device))
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(
        f"{found['recipe']} on {found['device']}, {found['precision']}: "
        f"{found['tokens_per_second']:,.0f} tokens/s, {found['seconds'] * 1e3:,.1f} ms per step, "
        f"{found['of_products']:.1%} of a product's throughput"
    )


if __name__ == "__main__":
    main()
