"""How processes share a decoder: a single process has it, each has a copy, or each has a part of it.

The loop calls the same few methods in each case. The rows of a step are always divided among all processes.

Legend: W processes, S of them share one decoder (W / S replicas).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from cm3core.errors import RecipeError
from cm3run.processes import Processes
from cm3run.training.memory import training_memory

if TYPE_CHECKING:
    from cm3core.interfaces.decoder import Decoder
    from cm3core.recipe import Recipe
    from cm3run.machine_memory import MachineMemory

#: Bytes of gradients summed in one call.
BUCKET_BYTES = 64 << 20


class OneProcess:
    """A process that trains alone."""

    #: Whether each process has all weights.
    whole = True
    #: Processes that share one decoder.
    num_shards = 1
    #: Factor on the loss, whose gradients `reduce` or the backward pass sums or averages over W.
    loss_scale: float = 1.0

    def build_device(self, device: torch.device) -> torch.device:
        """The device on which the decoder is built."""
        return device

    def place(self, decoder: Decoder, device: torch.device, *, compiled: bool = False) -> None:
        """Move a new decoder's weights to the device, and send the first process's to all; `compiled`:
        compile its blocks when they are first called, once for all equal blocks."""
        if compiled:
            for block in decoder.sharded_blocks():
                block.compile()

    def begin_backward(self, decoder: nn.Module, *, last: bool) -> None:
        """Called before the backward pass of each micro-batch of a step."""

    def reduce(self, parameters: Sequence[Tensor]) -> None:
        """Sum the gradients of all processes, after the last backward pass of a step."""

    def clip(self, parameters: Sequence[Tensor], max_norm: float) -> Tensor:
        """Scale the whole gradient to a norm of at most `max_norm`; return the norm before."""
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    def end_validation(self, decoder: nn.Module) -> None:
        """Called after the forward passes of a validation."""

    def in_words(self, processes: Processes) -> str:
        """The text for the line printed at the start of a run."""
        return ""


class Replicated(OneProcess):
    """A whole decoder in each of W processes. Gradients are summed once per step, in buckets. For
    decoders that fit on a device this is a small part of a step, and everything else is as in a single
    process.

    Args:
        processes: all W.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes

    def in_words(self, processes: Processes) -> str:
        return f", {processes.world_size} processes with a decoder each"

    def place(self, decoder: Decoder, device: torch.device, *, compiled: bool = False) -> None:
        import torch.distributed as dist

        super().place(decoder, device, compiled=compiled)
        with torch.no_grad():
            for tensor in (*decoder.module.parameters(), *decoder.module.buffers()):
                dist.broadcast(tensor, 0)

    def reduce(self, parameters: Sequence[Tensor]) -> None:
        import torch.distributed as dist

        # a parameter without a gradient in any process keeps none, as in a single process, and is not decayed; the
        # hosts tell each other, because to read it from a device would wait for the whole backward pass
        has_N = self.processes.sum(torch.tensor([float(p.grad is not None) for p in parameters]))
        used = [p for p, has in zip(parameters, has_N.tolist(), strict=True) if has]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([cast(Tensor, parameter.grad) for parameter in used]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            parts = flat.split([gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size >= BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel() * gradient.element_size()
    if bucket:
        yield bucket


class Sharded(OneProcess):
    """A decoder divided among S of W processes with FSDP2 (`fully_shard`); W / S replicas of it if S is
    less than W (HSDP). Each block's weights are gathered while it computes.

    Gradients are divided after each micro-batch, so that no process ever holds all of them; between
    replicas they are summed once per step.

    Args:
        processes: all W.
        num_shards: S.
        device: this process's.
        dtype: of products, in which the blocks' weights are gathered. None: unchanged.
    """

    whole = False

    def __init__(
        self,
        processes: Processes,
        num_shards: int,
        device: torch.device,
        dtype: torch.dtype | None = None,
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        self.processes, self.num_shards, self.dtype = processes, num_shards, dtype
        replicas = processes.world_size // num_shards
        names = ("replicas", "shards")
        mesh = init_device_mesh(device.type, (replicas, num_shards), mesh_dim_names=names)
        self.mesh = mesh["shards"] if replicas == 1 else mesh
        # FSDP averages W gradients, but the step's loss is a sum
        self.loss_scale = float(processes.world_size)

    def build_device(self, device: torch.device) -> torch.device:
        # the first process initialises the weights and sends them, so that no other holds them all
        return torch.device("cpu" if self.processes.is_first else "meta")

    def place(self, decoder: Decoder, device: torch.device, *, compiled: bool = False) -> None:
        module = decoder.module
        self._check_separate(decoder)
        drawn = dict(_tensors(module)) if self.processes.is_first else {}
        module.to("meta")
        self.shard(decoder, compiled=compiled)
        module.to_empty(device=device)
        with torch.no_grad():
            for name, tensor in _tensors(module):
                _send(drawn.pop(name, None), tensor, device)

    def shard(self, decoder: Decoder, *, compiled: bool = False) -> None:
        """Divide a decoder's parameters, on any device; on "meta" nothing is allocated."""
        from torch.distributed.fsdp import (
            MixedPrecisionPolicy,
            fully_shard,
            register_fsdp_forward_method,
        )

        module: Any = decoder.module
        # the residual stream between blocks keeps its precision, as under autocast
        policy = MixedPrecisionPolicy(
            param_dtype=self.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for block in decoder.sharded_blocks():
            if compiled:
                block.compile()
            fully_shard(block, mesh=self.mesh, mp_policy=policy)
        # parameters outside blocks stay gathered from the forward to the backward pass, because the
        # head's loss reads the embedding after the forward pass
        fully_shard(module, mesh=self.mesh, reshard_after_forward=False)
        if hasattr(module, "hidden_states"):
            register_fsdp_forward_method(module, "hidden_states")

    def in_words(self, processes: Processes) -> str:
        number, shards = processes.world_size, self.num_shards
        each = "" if number == shards else f", {number // shards} times"
        return f", {number} processes, {shards} with a part of one decoder{each}"

    def begin_backward(self, decoder: nn.Module, *, last: bool) -> None:
        if self.num_shards < self.processes.world_size:
            cast(Any, decoder).set_requires_all_reduce(last)

    def clip(self, parameters: Sequence[Tensor], max_norm: float) -> Tensor:
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm: Tensor = cast(Any, nn.utils.get_total_norm(gradients)).full_tensor()
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return norm

    def end_validation(self, decoder: nn.Module) -> None:
        cast(Any, decoder).reshard()

    @staticmethod
    def _check_separate(decoder: Decoder) -> None:
        names = [name for name, _ in decoder.module.named_parameters(remove_duplicate=False)]
        once = {name for name, _ in decoder.module.named_parameters()}
        if shared := sorted(set(names) - once):
            raise RecipeError(
                "recipe section decoder",
                f"{shared[0]} is a parameter shared by two modules, so it can't be divided",
                "keep a whole decoder in each process: --shard 1",
            )


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _send(drawn: Tensor | None, target: Tensor, device: torch.device) -> None:
    """Send each process its part of a tensor that the first one has."""
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, distribute_tensor

    whole = torch.empty(target.shape, dtype=target.dtype, device=device)
    if drawn is not None:
        whole.copy_(drawn)
    dist.broadcast(whole, 0)
    if isinstance(target, DTensor):
        target.copy_(
            distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None)
        )
    else:
        target.copy_(whole)


def parallel_of(
    recipe: Recipe,
    processes: Processes,
    device: torch.device,
    dtype: torch.dtype | None,
    machine: MachineMemory,
    shard: int | None = None,
) -> OneProcess:
    """How the processes share a recipe's decoder.

    Args:
        recipe: checked.
        processes: all that train.
        device: this process's.
        dtype: of products; None: float32.
        machine: the memory of the device; for a CPU, shared by all processes of the machine.
        shard: S; None: the smallest of 1, the number of processes per machine, and all, for which training
            fits the device of each process according to `cm3 recipe memory`; 1 if the decoder is partly
            tuned.

    Raises:
        RecipeError: S doesn't divide the number of processes, or exceeds 1 for a partly tuned
            decoder.
    """
    number = processes.world_size
    if shard is not None and (shard < 1 or number % shard):
        raise RecipeError(
            "--shard",
            f"{shard} doesn't divide the {number} process{'' if number == 1 else 'es'}",
            f"use one of {', '.join(str(n) for n in range(1, number + 1) if number % n == 0)}",
        )
    if number == 1:
        return OneProcess()
    if recipe.tune.method != "full":
        # frozen parameters, adapters and rows of a table have only been tested with whole tensors
        if shard is not None and shard > 1:
            raise RecipeError(
                "--shard",
                f"is {shard}, but tune.method={recipe.tune.method} trains a part of the decoder, which "
                "can't be divided among processes",
                "leave --shard out, so that each process has a whole decoder, or use tune.method=full",
            )
        shard = 1
    if shard is None:
        own = _fewest(recipe, processes, machine, on_cpu=device.type == "cpu", bf16=bool(dtype))
        shard = max(processes.all_of(own))  # the number that fits the smallest machine
    return Replicated(processes) if shard == 1 else Sharded(processes, shard, device, dtype)


def _fewest(
    recipe: Recipe, processes: Processes, machine: MachineMemory, *, on_cpu: bool, bf16: bool
) -> int:
    number = processes.world_size
    sizes = sorted({1, processes.num_local, number})
    for size in (size for size in sizes if number % size == 0):
        estimate = training_memory(recipe, bf16=bf16, on_cpu=on_cpu, devices=size)
        if estimate is None or machine.limit is None:
            return 1
        if estimate.total(on_cpu=on_cpu) <= machine.limit:
            return size
    return number
