"""The machine that a benchmark ran on: its device and versions, its measured roofs, the file of results."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cm3core.files import write_text
from cm3lab.benchmarks import measure
from cm3lab.benchmarks.measure import Stopwatch
from cm3run.benchmarks import Where

#: The format of the file; raise it when a key changes its meaning.
FORMAT = 2
PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "xformers",
    "mslk-cuda",
    "flashinfer-python",
    "numpy",
)
#: Side of the square matrices whose product gives a roof, by target and, in a dry run, "dry".
SIDES = {"cuda": 8192, "cpu": 1024, "dry": 64}
#: Side where a product of the usual one would take longer than this many microseconds, as in float16 on most CPUs.
SMALL_SIDE, LONGEST_US = 256, 250_000.0
#: Bytes of the tensor whose copy gives a roof.
COPY_BYTES = {"cuda": 2**30, "cpu": 2**27, "dry": 2**20}


def stopwatch_for(where: Where) -> Stopwatch:
    """Return the stopwatch for a target; a dry run repeats as little as possible. GPU time is expensive, and GPU timings
    vary less."""
    seconds, least = {
        "full": (1.0 if where.target == "cpu" else 0.25, 20),
        "quick": (0.2, 10),
        "dry": (0.0, 1),
    }[where.size]
    if where.target == "cpu":
        return measure.CPUStopwatch(seconds, least)
    return measure.CUDAStopwatch(
        seconds, least, torch.cuda if where.device.type == "cuda" else measure.AbsentCUDA()
    )


def environment(where: Where) -> dict[str, Any]:
    """Return the machine and the versions to which the figures apply."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    device: dict[str, Any] = {"type": where.device.type, "name": _processor()}
    if where.device.type == "cuda":
        properties = torch.cuda.get_device_properties(where.device)
        device = {
            "type": "cuda",
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "driver": _driver(),
        }
    return {
        "device": device,
        "target": where.target,
        "size": where.size,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": found,
        "cache_bytes": measure.cache_bytes(where.device),
    }


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            return next(
                (line.split(":")[1].strip() for line in file if line.startswith("model name")),
                platform.machine(),
            )
    except OSError:
        return platform.machine()


def _driver() -> str | None:
    """Return the NVIDIA driver's version; None if unknown."""

    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip().splitlines()[0]


def roofs(where: Where, stopwatch: Stopwatch, dtypes: Sequence[str] = ()) -> dict[str, Any]:
    """Measure the roofs of this machine.

    Args:
        where: device and size.
        stopwatch: from `stopwatch_for`.
        dtypes: of the products; empty: that in which kernels are measured by default.

    Returns:
        `copy_bytes_per_s`, bytes read and written by a copy; for each dtype `flop_per_s`, operations of a square matrix
        product (int8: to int32), and `products`, its size. A dry run measures nothing: None.
    """
    kind = "dry" if where.dry else where.target
    copy = copy_bandwidth(stopwatch, where.device, COPY_BYTES[kind])
    default = "bfloat16" if kind == "cuda" else "float32"
    rates: dict[str, float | None] = {}
    products: dict[str, str] = {}
    for dtype in dtypes or (default,):
        rate, side = product_rate(stopwatch, where.device, SIDES[kind], getattr(torch, dtype))
        rates[dtype], products[dtype] = None if where.dry else rate, f"{side}^3"
    return {
        "copy_bytes_per_s": None if where.dry else copy,
        "flop_per_s": rates,
        "products": products,
    }


def copy_bandwidth(stopwatch: Stopwatch, device: torch.device, num_bytes: int) -> float:
    """Measure the bytes per second of copying a large tensor, counting reads and writes."""
    source = torch.zeros(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / (stopwatch.time([lambda: target.copy_(source)]).median * 1e-6)


def product_rate(
    stopwatch: Stopwatch, device: torch.device, side: int, dtype: torch.dtype
) -> tuple[float, int]:
    """Measure the operations per second of a square matrix product. Returns them and the side, which is smaller where
    a product takes long."""
    if side > SMALL_SIDE and device.type == "cpu":
        one_us = _product(type(stopwatch)(0.0, 1), device, SMALL_SIDE, dtype)
        if one_us * (side / SMALL_SIDE) ** 3 > LONGEST_US:
            side = SMALL_SIDE
    return 2 * side**3 / (_product(stopwatch, device, side, dtype) * 1e-6), side


def _product(stopwatch: Stopwatch, device: torch.device, side: int, dtype: torch.dtype) -> float:
    """Microseconds of a product."""
    a, b = (torch.randn(side, side, device=device).mul_(8).to(dtype) for _ in range(2))
    if dtype == torch.int8:
        return stopwatch.time([lambda: torch._int_mm(a, b)]).median
    out = torch.empty_like(a)
    return stopwatch.time([lambda: torch.mm(a, b, out=out)]).median


def heading(environment: Mapping[str, Any], limits: Mapping[str, Any]) -> str:
    """Describe the machine, its versions and its measured roofs."""
    device, packages = environment["device"], environment["packages"]
    known = [f"{key} {value}" for key, value in device.items() if key != "type"]
    lines = [
        ", ".join([*known, f"{environment['threads']} threads"]),
        ", ".join(f"{name} {found}" for name, found in packages.items() if found),
    ]
    if limits["copy_bytes_per_s"] is not None:
        products = [
            f"{dtype} {limits['products'][dtype]} {rate / 1e12:.3f} TFLOP/s"
            for dtype, rate in limits["flop_per_s"].items()
        ]
        copy = f"copy {limits['copy_bytes_per_s'] / 1e9:.1f} GB/s"
        lines.append(f"roofs: {copy}, product {', '.join(products)}")
    return "\n".join(lines)


def write_json(
    path: Path,
    benchmark: str,
    environment: Mapping[str, Any],
    limits: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Write everything atomically, after each case, so that an interrupted run keeps its results so
    far."""
    document = {
        "format": FORMAT,
        "benchmark": benchmark,
        "environment": environment,
        "ceilings": limits,
        "results": list(rows),
    }
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")
