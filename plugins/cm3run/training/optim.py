"""Optimisers and learning-rate schedule: AdamW, or Muon for matrices and AdamW for the rest.

State is stored as named tensors (`state_tensors`), so that checkpoints need no pickle.

When each process has some rows of every matrix, Newton-Schulz still needs whole matrices. Gathering all of them
everywhere would repeat the same products S times. Instead each of the S processes that share a decoder collects some
whole matrices, orthogonalises those, and sends every other process its rows back: two exchanges per step, each of the
momenta divided by S. Legend: S processes, n matrices of one shape [A, B], a rows per process.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from cm3core.errors import CheckpointError, RecipeError, close_match
from cm3run.processes import is_divided, own_part

if TYPE_CHECKING:
    from cm3core.interfaces.decoder import Decoder
    from cm3core.recipe.sections import TrainSection


def orthogonalised_shards(
    parameters: Sequence[Tensor],
    momenta: Sequence[Tensor],
    orthogonalise: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """This process's rows of the updates.

    Args:
        parameters: n DTensors of one shape, divided by rows over the last dimension of one mesh.
        momenta: this process's rows of each, [a, B].
        orthogonalise: [m, A, B] -> [m, A, B].

    Returns:
        n tensors [a, B].
    """
    import torch.distributed as dist

    first = cast(Any, parameters[0])
    mesh = first.device_mesh
    group, rank = mesh.get_group(mesh.ndim - 1), mesh.get_local_rank(mesh.ndim - 1)
    S, A, B = dist.get_world_size(group), first.shape[0], momenta[0].shape[1]
    rows = rows_of_shards(A, S)
    number = len(momenta)
    owned = [len(range(owner, number, S)) for owner in range(S)]  # process i has matrices i::S
    by_owner = [momenta[place] for owner in range(S) for place in range(owner, number, S)]
    sent = torch.stack(by_owner).flatten()
    sizes_out = [count * rows[rank] * B for count in owned]
    sizes_in = [owned[rank] * count * B for count in rows]
    received = sent.new_empty(sum(sizes_in))
    dist.all_to_all_single(received, sent, sizes_in, sizes_out, group=group)
    pieces = [
        part.view(owned[rank], count, B)
        for part, count in zip(received.split(sizes_in), rows, strict=True)
    ]
    whole = torch.cat(pieces, dim=1)
    if owned[rank]:
        whole = orthogonalise(whole)
    answers = torch.cat([part.flatten() for part in whole.split(rows, dim=1)])
    back = sent.new_empty(sum(sizes_out))
    dist.all_to_all_single(back, answers.contiguous(), sizes_out, sizes_in, group=group)
    updates = back.view(number, rows[rank], B).unbind()
    order = [place for owner in range(S) for place in range(owner, number, S)]
    return [
        update for _, update in sorted(zip(order, updates, strict=True), key=lambda one: one[0])
    ]


def rows_of_shards(num_rows: int, num_shards: int) -> list[int]:
    """Number of rows per process when FSDP2 divides `num_rows`: like `torch.chunk`, the last ones may have none.

    >>> rows_of_shards(10, 4), rows_of_shards(3, 4), rows_of_shards(8, 4)
    ([3, 3, 3, 1], [1, 1, 1, 0], [2, 2, 2, 2])
    """
    size = -(-num_rows // num_shards)
    return [max(0, min(size, num_rows - size * shard)) for shard in range(num_shards)]


#: Coefficients of the quintic Newton-Schulz iteration (Keller Jordan's Muon,
#: https://kellerjordan.github.io/posts/muon/).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)

#: Valid values of `train.schedule`.
SHAPES = ("cosine", "polynomial", "trapezoidal", "constant")


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a fraction of its peak: linear warm-up, then decay to `final_fraction`.

    Args:
        steps: length in steps, or None if `minutes` is given.
        minutes: length in minutes of training, or None if `steps` is given.
        warmup_steps: steps of linear warm-up; step 0 already learns.
        shape: "cosine", "polynomial" (power 1: a straight line, as in metaseq's launcher),
            "trapezoidal" (the peak, then a straight line; warmup-stable-decay of MiniCPM,
            arXiv 2404.06395 section 4) or "constant".
        final_fraction: fraction of the peak at the end.
        decay_fraction: for a trapezoid: the part of the length during which the rate falls.
    """

    steps: int | None
    minutes: float | None
    warmup_steps: int
    shape: str
    final_fraction: float
    decay_fraction: float = 0.2

    @classmethod
    def of(cls, section: TrainSection) -> Schedule:
        """The schedule of a recipe.

        Raises `RecipeError` unless exactly one of steps and minutes is given.
        """
        if (section.steps is None) == (section.minutes is None):
            raise RecipeError(
                "train",
                f"steps is {section.steps} and minutes is {section.minutes}, but exactly one must be set",
                "give train.steps=N or train.minutes=M and set the other to null",
            )
        if section.schedule not in SHAPES:
            raise RecipeError(
                "train.schedule",
                f"{section.schedule!r} is not a schedule",
                close_match(section.schedule, SHAPES),
            )
        return cls(
            section.steps,
            section.minutes,
            section.warmup_steps,
            section.schedule,
            section.final_learning_rate_fraction,
            section.decay_fraction,
        )

    def progress(self, step: int, elapsed_s: float) -> float:
        """Fraction of the training done, 0..1, before step number `step` (from 0)."""
        if self.steps is not None:
            return min(1.0, step / self.steps) if self.steps > 0 else 1.0
        assert self.minutes is not None
        return min(1.0, elapsed_s / (60 * self.minutes)) if self.minutes > 0 else 1.0

    def multiplier(self, step: int, elapsed_s: float = 0.0) -> float:
        """Fraction of the peak learning rate at step `step` (from 0), after `elapsed_s` seconds."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = self.progress(step, elapsed_s)
        # with steps, the decay begins at the peak; with minutes, the peak's time is unknown
        if self.steps is not None:
            done = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        if self.shape == "constant":
            return 1.0
        if self.shape == "trapezoidal":
            done = 1 - min(1.0, (1 - done) / self.decay_fraction) if self.decay_fraction else 0.0
        straight = self.shape in ("polynomial", "trapezoidal")
        remaining = 1 - done if straight else 0.5 * (1 + math.cos(math.pi * done))
        return self.final_fraction + (1 - self.final_fraction) * remaining


def orthogonalise(
    updates_nAB: Tensor, num_iterations: int = 5, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Approximate nearest (semi-)orthogonal matrices, for a batch of n matrices [A, B].

    Singular values land in about 0.7..1.2. `dtype` is that of the products; bfloat16 is as good if
    the hardware supports it, and far slower otherwise.
    """
    a, b, c = NEWTON_SCHULZ
    tall = updates_nAB.shape[1] > updates_nAB.shape[2]
    x = updates_nAB.mT if tall else updates_nAB
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).to(dtype)
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(updates_nAB.dtype)


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum: every direction of a weight matrix moves equally far.

    Like `torch.optim.Muon` with its default settings, but matrices of one shape go through
    Newton-Schulz as one batch, in a dtype that is fast on the machine. torch's version always
    uses bfloat16, which is a hundred times slower on a CPU without support for it.

    Args:
        parameters: matrices; more than two dimensions are flattened to [first, rest].
        lr: size of a step, times sqrt(max(1, rows / columns)).
        weight_decay: decoupled; a step shrinks weights by lr * weight_decay.
        momentum: of the running mean of gradients, in Nesterov's form.
        dtype: of the Newton-Schulz products.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]  # no closure: the loop computes gradients
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shape = (parameter.shape[0], math.prod(parameter.shape[1:]))
                    by_shape[shape].append(parameter)
            for (rows, columns), parameters in by_shape.items():
                momenta = [
                    self._momentum(parameter, group["momentum"]).view(-1, columns)
                    for parameter in parameters
                ]
                updates = self._updates(parameters, momenta)
                size = group["lr"] * math.sqrt(max(1.0, rows / columns))
                own = [own_part(parameter) for parameter in parameters]
                torch._foreach_mul_(own, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(
                    own,
                    [u.view_as(p) for u, p in zip(updates, own, strict=True)],
                    alpha=-size,
                )

    def _updates(self, parameters: list[Tensor], momenta: list[Tensor]) -> Sequence[Tensor]:
        """The orthogonalised momenta; for parameters shared between processes, this process's rows."""

        def whole(momenta_nAB: Tensor) -> Tensor:
            return orthogonalise(momenta_nAB, dtype=self.dtype)

        if is_divided(parameters[0]):
            return orthogonalised_shards(parameters, momenta, whole)
        return whole(torch.stack(momenta)).unbind()

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = own_part(state["momentum_buffer"])
        assert parameter.grad is not None
        gradient = own_part(parameter.grad)
        buffer.lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum)


#: State of each optimiser for a parameter that has had a gradient.
_KEPT: dict[type[torch.optim.Optimizer], set[str]] = {
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
    Muon: {"momentum_buffer"},
}
#: The state that is a number; all others have the parameter's shape.
_STEP = "step"


class RowsOf:
    """Rows of a parameter as a separate parameter, so that only they have optimiser state.

    Its gradient is a view of the whole's gradient, to which backward passes add as usual. `put_back`
    copies the updated rows into the whole and clears its gradient.

    Args:
        whole: a matrix [V, E] of the decoder.
        part: its trained rows, consecutive.
    """

    def __init__(self, whole: Tensor, part: range) -> None:
        self.whole, self._part = whole, slice(part.start, part.stop)
        self.rows = torch.nn.Parameter(whole.detach()[self._part].clone())
        whole.register_post_accumulate_grad_hook(self._share)

    def _share(self, whole: Tensor) -> None:
        assert whole.grad is not None
        self.rows.grad = whole.grad[self._part]

    @torch.no_grad()
    def put_back(self) -> None:
        """Copy the rows into the whole."""
        self.whole[self._part] = self.rows
        self.whole.grad = None


class OptimizerGroup:
    """One or two torch optimisers that step together, with their state as named tensors.

    Args:
        decoder: its `parameter_groups` divide the parameters into kinds.
        section: the recipe's section `train`.
        muon_dtype: of Muon's matrix products.
        rows: parameters of which only some rows are trained, by name. The optimiser receives only those rows,
            as a separate parameter.

    Parameters that require no gradient are ignored.
    """

    def __init__(
        self,
        decoder: Decoder,
        section: TrainSection,
        muon_dtype: torch.dtype = torch.float32,
        *,
        rows: Mapping[str, range] = MappingProxyType({}),
    ) -> None:
        if section.optimizer not in (known := ("adamw", "muon")):
            raise RecipeError(
                "train.optimizer",
                f"{section.optimizer!r} is not an optimizer",
                close_match(section.optimizer, known),
            )
        named = dict(decoder.module.named_parameters())
        groups = {kind: list(found) for kind, found in decoder.parameter_groups().items()}
        assert sorted(id(p) for found in groups.values() for p in found) == sorted(
            map(id, named.values())
        ), "parameter_groups must contain every parameter once"
        self._parts = [RowsOf(named[name], part) for name, part in rows.items()]
        parts = {id(part.whole): part.rows for part in self._parts}
        groups = {
            kind: [parts.get(id(p), p) for p in found if p.requires_grad]
            for kind, found in groups.items()
        }
        self.names = {id(parts.get(id(p), p)): name for name, p in named.items()}
        self.parameters: list[Tensor] = [
            p for name in ("matrix", "embedding", "vector") for p in groups.get(name, [])
        ]
        first, second = section.betas
        muon = section.optimizer == "muon" and bool(groups["matrix"])
        decayed = [] if muon else groups["matrix"]
        plain = [*groups.get("embedding", []), *groups.get("vector", [])]
        adamw = [
            {"params": parameters, "weight_decay": decay}
            for parameters, decay in ((decayed, section.weight_decay), (plain, 0.0))
            if parameters
        ]
        self.optimizers: list[torch.optim.Optimizer] = []
        if adamw:
            fused = self.parameters[0].device.type in ("cpu", "cuda")
            self.optimizers.append(
                torch.optim.AdamW(
                    adamw,
                    lr=section.learning_rate,
                    betas=(first, second),
                    eps=section.eps,
                    fused=fused,
                )
            )
        if muon:
            self.optimizers.append(
                Muon(
                    groups["matrix"],
                    section.muon_learning_rate,
                    section.weight_decay,
                    dtype=muon_dtype,
                )
            )
        self._peaks = [optimizer.defaults["lr"] for optimizer in self.optimizers]

    def step(self, multiplier: float) -> None:
        """Update all parameters with `multiplier` times the peak learning rates; clear gradients."""
        for optimizer, peak in zip(self.optimizers, self._peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * multiplier
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for part in self._parts:
            part.put_back()

    def state_tensors(self) -> dict[str, Tensor]:
        """The complete state: "parameter name::key" -> tensor."""
        return {
            f"{self.names[id(parameter)]}::{key}": torch.as_tensor(value)
            for optimizer in self.optimizers
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
        }

    def empty_state(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Zero tensors for `load_state_tensors`, divided among processes like the parameters.

        Names of parameters that the decoder doesn't have are omitted."""
        own = {self.names[id(parameter)]: parameter for parameter in self.parameters}
        state = {}
        for full_name in names:
            name, _, key = full_name.rpartition("::")
            if name in own:
                state[full_name] = (
                    torch.zeros(()) if key == _STEP else torch.zeros_like(own[name].detach())
                )
        return state

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the output of `state_tensors`. Raises `CheckpointError` if parameters or their state
        differ."""
        owner = {
            self.names[id(parameter)]: (optimizer, parameter)
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        found: dict[str, set[str]] = defaultdict(set)
        for full_name, value in tensors.items():
            name, _, key = full_name.rpartition("::")
            if name not in owner:
                raise _foreign(f"{full_name!r} is not a parameter of this decoder")
            optimizer, parameter = owner[name]
            if key not in _KEPT[type(optimizer)]:
                raise _foreign(
                    f"{full_name!r} is not state that {type(optimizer).__name__} keeps of a parameter"
                )
            shape, dtype = (
                ((), torch.float32) if key == _STEP else (tuple(parameter.shape), parameter.dtype)
            )
            if tuple(value.shape) != shape or value.dtype != dtype:
                raise _foreign(
                    f"{full_name!r} is {value.dtype} {list(value.shape)}, but must be {dtype} "
                    f"{list(shape)}"
                )
            found[name].add(key)
        for name, keys in found.items():
            if missing := _KEPT[type(owner[name][0])] - keys:
                raise _foreign(f"lacks {name}::{min(missing)}")
        for full_name, value in tensors.items():
            name, _, key = full_name.rpartition("::")
            optimizer, parameter = owner[name]
            optimizer.state[parameter][key] = value.to(parameter.device, copy=True)


def _foreign(cause: str) -> CheckpointError:
    return CheckpointError(
        "optimizer.safetensors", cause, "resume with the recipe that the checkpoint was made with"
    )
