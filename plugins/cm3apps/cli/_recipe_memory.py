"""`cm3 recipe memory`: what training and generation take on each of several devices, by arithmetic."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cm3apps.cli import add_overrides, real_number, whole_number
from cm3core.errors import RecipeError

if TYPE_CHECKING:
    from cm3core.recipe import Recipe
    from cm3run.training.memory import MemoryEstimate

#: Rows of a request with guidance.
STREAMS = 2
DESCRIPTION = """what training and generation take on each device, by arithmetic: nothing is built

With several devices: weights, gradients and the optimiser's state divided equally, activations of
train.batch_rows rows on each, a block's weights gathered while it is computed: as torchrun with
cm3 train --shard N divides them."""


def configure(parser: ArgumentParser) -> None:
    """The recipe, the devices, the memory of each."""
    parser.add_argument("recipe", help="a shipped recipe's name, a path, or a run's folder")
    parser.add_argument(
        "--devices",
        type=whole_number(1, 2**20),
        default=1,
        metavar="N",
        help="devices that share the training (default: %(default)s)",
    )
    parser.add_argument(
        "--gb",
        type=real_number(0, 1e6, above=True),
        metavar="GB",
        help="memory of a device in 10^9 bytes: what exceeds it is refused (default: this machine's, "
        "for one device of its kind)",
    )
    parser.add_argument(
        "--on",
        choices=["gpu", "cpu"],
        help="kind of device (default: gpu for several, else what this machine has)",
    )
    add_overrides(parser)


@dataclass(frozen=True)
class Device:
    """What an estimate is compared with."""

    on_cpu: bool
    limit: int | None
    source: str


def run(args: Namespace, recipe: Recipe) -> int:
    """Print the table; raises `RecipeError` where training exceeds a device."""
    from cm3run.training.memory import training_memory

    recipe.check()
    device = _device(args)
    section = recipe.train.precision
    bf16 = section == "bf16" or (section == "auto" and not device.on_cpu)
    estimate = training_memory(recipe, bf16=bf16, on_cpu=device.on_cpu, devices=args.devices)
    if estimate is None:
        raise RecipeError(
            f"recipe {recipe.name}",
            "its memory is not known: it has no decoder or image tokenizer, or its decoder doesn't "
            "know its number of parameters",
            "add the section, or implement DecoderConfig.num_parameters",
        )
    print(_table(recipe, estimate, args.devices, device, bf16=bf16))
    _refuse(recipe, estimate, args.devices, device)
    return 0


def _device(args: Namespace) -> Device:
    """The device that was named, or this machine's."""
    from cm3run.devices import device_memory

    on_cpu = None if args.on is None else args.on == "cpu"
    if on_cpu is None and args.devices > 1:
        on_cpu = False
    limit = None if args.gb is None else int(args.gb * 1e9)
    if on_cpu is not None and limit is not None:
        return Device(on_cpu, limit, "a device")
    machine, here = device_memory("cpu" if on_cpu else None)
    if limit is not None:
        return Device(here, limit, "a device")
    if on_cpu is None or on_cpu == here:
        return Device(here, machine.limit, machine.source)
    return Device(on_cpu, None, "")


def _table(
    recipe: Recipe, estimate: MemoryEstimate, number: int, device: Device, *, bf16: bool
) -> str:
    assert recipe.decoder is not None
    length, rows = recipe.decoder.context_length, recipe.train.batch_rows
    share = "" if number == 1 else f", 1/{number:,}"
    lines = [
        f"{recipe.name} on {number:,} {'CPU' if device.on_cpu else 'GPU'}{'s' if number > 1 else ''}, "
        f"{'bf16' if bf16 else 'fp32'} products; GB (10^9 bytes) on each",
        "training",
        _row(f"weights, fp32{share}", estimate.weights),
        _row(f"gradients{share}", estimate.gradients),
        _row(f"{recipe.train.optimizer}'s state{share}", estimate.optimizer),
    ]
    if estimate.decoder is None:
        lines.append("  activations are not known to this decoder")
    what = "activations" if number == 1 else "activations, gathered weights"
    lines.append(_row(f"{what} ({rows:,} x {length:,} tokens)", estimate.activations))
    if device.on_cpu:
        lines.append(_row("program and data", estimate.program))
    lines.append(_row("in all", estimate.total(on_cpu=device.on_cpu)))
    lines += ["generation, on one device", *_generation(recipe, estimate, number, device)]
    if number > 1:
        lines.append(
            f"note: by arithmetic; torchrun with cm3 train --shard {number} divides it so, and has run "
            "on CPUs only"
        )
    return "\n".join(lines)


def _generation(recipe: Recipe, estimate: MemoryEstimate, number: int, device: Device) -> list[str]:
    """Rows of the table: weights, the copy that is read, keys and values."""
    assert recipe.decoder is not None
    size = 4 if device.on_cpu else 2
    weights = estimate.weights * number
    read, length = weights * size // 4, recipe.decoder.context_length
    lines = [_row("weights, fp32", weights), _row(f"their copy in {size * 8} bits", read)]
    cache = recipe.decoder.cache_bytes(STREAMS * length, size)
    if cache is None:
        return [*lines, "  keys and values are not known to this decoder"]
    lines.append(_row(f"keys and values ({STREAMS} x {length:,} tokens)", cache))
    return [*lines, _row("in all", weights + read + cache)]


def _row(name: str, num_bytes: int) -> str:
    return f"  {name:<52} {num_bytes / 1e9:>9,.2f}"


def _refuse(recipe: Recipe, estimate: MemoryEstimate, number: int, device: Device) -> None:
    from cm3run.training.memory import advice

    needed = estimate.total(on_cpu=device.on_cpu)
    if device.limit is None or needed <= device.limit:
        return
    more = "" if device.on_cpu else ", or divide it among more devices (--devices)"
    raise RecipeError(
        f"recipe {recipe.name}",
        f"training takes about {needed / 1e9:,.2f} GB on "
        f"{'the device' if number == 1 else f'each of {number:,} devices'}, and {device.source} has "
        f"{device.limit / 1e9:,.2f} GB",
        f"{advice(recipe, estimate)}{more}",
    )
