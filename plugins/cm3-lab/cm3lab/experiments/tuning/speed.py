"""Cost of one step of a tuning method: seconds, tokens, parameters, memory. Measured before training, so that all
methods can get the same time in steps, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cm3core.interfaces.image_tokenizer import IMAGE_TOKENIZER
from cm3run.build import Stored, build
from cm3run.checkpoint import TOKENIZER, load_weights
from cm3run.devices import choose_precision
from cm3run.training.metrics import batch_loss_sums
from cm3run.training.optim import OptimizerGroup
from cm3run.training.packing import NUM_MODALITIES, TrainingBatch
from cm3run.tuning import select_parameters

if TYPE_CHECKING:
    from cm3core.interfaces.decoder import Decoder
    from cm3core.plugins import Registry
    from cm3core.recipe import Recipe

#: Warm-up steps, and steps whose median is used.
_WARM, _TIMED = 2, 7


class KeptBytes:
    """Context that counts the memory a forward pass keeps for its backward pass; `peak`: bytes."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = {p.untyped_storage().data_ptr() for p in parameters}
        self._users: dict[int, int] = {}
        self._bytes = self.peak = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept.tensor)

    def __enter__(self) -> KeptBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.__exit__()

    def _pack(self, tensor: Tensor) -> _Kept:
        place = tensor.untyped_storage().data_ptr()
        if place in self._parameters:
            return _Kept(tensor, lambda: None)
        size = tensor.untyped_storage().nbytes()
        if self._users.get(place, 0) == 0:
            self._bytes += size
            self.peak = max(self.peak, self._bytes)
        self._users[place] = self._users.get(place, 0) + 1

        def free() -> None:
            self._users[place] -= 1
            if self._users[place] == 0:
                self._bytes -= size

        return _Kept(tensor, free)


class _Kept:
    """A tensor in the graph, which reports when the graph releases it."""

    def __init__(self, tensor: Tensor, free: Callable[[], None]) -> None:
        self.tensor, self._free = tensor, free

    def __del__(self) -> None:
        self._free()


def step_cost(
    recipe: Recipe,
    base: Path,
    registry: Registry,
    batches: Sequence[TrainingBatch],
    device: torch.device,
) -> dict[str, float]:
    """Measure the cost of one step, without loading data.

    Args:
        recipe: recipe of the arm.
        base: folder of the model to tune.
        registry: the plugins.
        batches: batches of micro-batch size; used in turn.
        device: device for training.

    Returns:
        seconds: seconds per step; on a CPU the computing time per core, so that other work on the machine does
        not count. tokens: tokens per step. parameters, trained: numbers. memory: bytes of weights, gradients,
        optimiser state, and activations kept for the backward pass.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.train.num_threads or before)
    try:
        return _step_cost(recipe, base, registry, batches, device)
    finally:
        torch.set_num_threads(before)


def _step_cost(
    recipe: Recipe,
    base: Path,
    registry: Registry,
    batches: Sequence[TrainingBatch],
    device: torch.device,
) -> dict[str, float]:
    section = recipe.train
    components = build(
        recipe,
        registry,
        stage="generate",
        stored=Stored(text_tokenizer=base / TOKENIZER, image_tokenizer=base / IMAGE_TOKENIZER),
        device=device,
    )
    decoder, module = components.decoder, components.decoder.module
    load_weights(module, base)
    module.train()
    rows = select_parameters(decoder, recipe.tune, components.vocabulary, seed=section.seed)
    dtype, _ = choose_precision(section.precision, device)
    optimizer = OptimizerGroup(decoder, section, dtype or torch.float32, rows=rows)
    parameters = list(module.parameters())
    seconds, kept = [], 0
    num_parts = 1 + max(int(batch.modality_BT.max()) for batch in batches) // NUM_MODALITIES
    for number in range(_WARM + _TIMED):
        start = _clock(device)
        for micro in range(section.accumulate):
            batch = batches[(number * section.accumulate + micro) % len(batches)].to(device)
            counting: Any = KeptBytes(parameters) if number == 0 else nullcontext()
            autocast = nullcontext() if dtype is None else torch.autocast(device.type, dtype)
            with counting, autocast:
                loss = _loss(decoder, batch, section.z_loss, num_parts)
            if number == 0:
                kept = max(kept, counting.peak)
            (loss / max(float(batch.weights_BT.sum()), 1e-9)).backward()
        if section.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(optimizer.parameters, section.clip_norm)
        gradients = sum(_bytes(p.grad) for p in parameters if p.grad is not None)
        optimizer.step(1e-3)
        if number >= _WARM:
            seconds.append(_clock(device) - start)
    used = [int((batch.modality_BT > 0).sum()) for batch in batches]
    memory = sum(map(_bytes, parameters)) + gradients + _state_bytes(optimizer) + kept
    return {
        "seconds": float(np.median(seconds)),
        "tokens": float(np.mean(used)) * section.accumulate,
        "parameters": float(sum(p.numel() for p in parameters)),
        "trained": float(sum(p.numel() for p in optimizer.parameters)),
        "memory": float(memory),
    }


def _loss(decoder: Decoder, batch: TrainingBatch, z_loss: float, num_parts: int) -> Tensor:
    """Return the sum of a batch's losses."""
    hidden_BTE = decoder.hidden_states(
        batch.tokens_BT,
        positions_BT=batch.positions_BT,
        cells_BT=batch.cells_BT,
        kv_start_BT=batch.kv_start_BT,
    )
    loss, _ = batch_loss_sums(decoder, hidden_BTE, batch, z_loss=z_loss, num_parts=num_parts)
    return loss


def _state_bytes(optimizer: OptimizerGroup) -> int:
    """Return the bytes of the optimisers' state."""
    state = [
        value
        for one in optimizer.optimizers
        for own in one.state.values()
        for value in own.values()
    ]
    return sum(_bytes(value) for value in state if isinstance(value, Tensor))


def _clock(device: torch.device) -> float:
    """Return the seconds of computation so far."""
    if device.type == "cpu":
        return time.process_time() / torch.get_num_threads()
    torch.accelerator.synchronize(device)
    return time.perf_counter()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def steps_in(minutes: float, seconds: float) -> int:
    """Return the number of steps of `seconds` each in `minutes`, at least one.

    >>> steps_in(4, 0.5), steps_in(0.001, 1)
    (480, 1)
    """
    return max(1, int(60 * minutes / seconds))
