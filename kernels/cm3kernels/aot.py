"""Compile every kernel and shipped launch configuration without a GPU, and hold it to a budget.

    python -m cm3kernels.aot                      compile all entries, compare with budget.json, print a table
    python -m cm3kernels.aot --changed            compile only what differs from what was recorded, and one entry of each kernel
    python -m cm3kernels.aot --write              record what they need now
    python -m cm3kernels.aot --only attention --show   a part, with the instructions found; compared with nothing

Each op's `triton.py` lists its kernels in `aot_entries()`. A compiled kernel tells what a green
interpreter can't: registers, spills, shared memory, products smaller than the hardware's, the
instructions that make it fast. Triton's wheel brings the tools. Runs in a process of its own, never
interpreted: under TRITON_INTERPRET a kernel is no longer something that can be compiled.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

BUDGET = Path(__file__).parent / "budget.json"
#: Shared memory that a block may use, bytes: 163 KiB on sm_80, 227 KiB on sm_90 (CUDA programming
#: guide, compute capabilities).
SHARED_LIMIT = {80: 166_912, 90: 232_448}
#: gfx942 has no budget: that it compiles is the test.
AMD = "gfx942"
#: What registers and shared memory may grow before it counts as a regression.
TOLERANCE = 0.05
#: Instructions that say how a kernel works. Cache hints may stand between the parts: LDG.E.EL.128.
TELLING = {
    name: re.compile(pattern)
    for name, pattern in {
        "HGMMA": r"\bHGMMA\b",
        "HMMA": r"\bHMMA\b",
        "LDGSTS": r"\bLDGSTS\b",
        "UTMALDG": r"\bUTMALDG\b",
        "LDG.E.128": r"\bLDG\.E(?:\.\w+)*\.128\b",
        "LDG.E.64": r"\bLDG\.E(?:\.\w+)*\.64\b",
        "STG.E.128": r"\bSTG\.E(?:\.\w+)*\.128\b",
        "LDL": r"\bLDL\b",
        "STL": r"\bSTL\b",
        "FFMA": r"\bFFMA\b",
        "DFMA": r"\bDFMA\b",
        "MUFU.EX2": r"\bMUFU\.EX2\b",
        "BAR.SYNC": r"\bBAR\.SYNC\b",
        "ATOM": r"\b(?:ATOM|ATOMG|ATOMS|RED)\b",
    }.items()
}
#: Tensor cores' products: HGMMA.64x128x16 of four warps, HMMA.16816 (m 16, n 8, k 16) and HMMA.1688
#: of one.
PRODUCT = re.compile(r"\bHGMMA\.(\d+)x(\d+)x(\d+)|\bHMMA\.(16816|1688)\b")


@dataclass(frozen=True)
class AotEntry:
    """One kernel with one launch configuration, as the launcher would specialise it.

    Args:
        name: unique among all, "op.kernel.configuration": `attention.forward.bf16.d64`.
        kernel: the `@triton.jit` function.
        types: run-time argument -> type: "*bf16", "*fp32", "i32", "i64", "fp32". Every other
            argument stands in `constexprs`.
        constexprs: values of the compile-time arguments. A stride that is 1 at run time becomes a
            constant: put it here.
        div16: arguments that are multiples of 16 at run time (pointers, most strides). Without them
            loads are narrow and the numbers describe a kernel that nobody runs.
        num_warps, num_stages: of the launch.
        expects: compute capability (80, 90) -> names in `TELLING` that must occur.
        archs: the capabilities that this configuration is launched on.
        multiply_adds: of all `tl.dot` in the code, each once, for a block; 0: not looked at. Where
            a tile is too small for its warps they repeat each other's products: the result is
            right, and the tensor cores do twice the work.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constexprs: Mapping[str, object]
    div16: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 2
    expects: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    archs: tuple[int, ...] = (80, 90)
    multiply_adds: int = 0


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel needs.

    Args:
        registers: 32-bit registers a thread (AMD: vector registers).
        spill: bytes of local memory a thread; anything but 0 is a finding.
        shared: bytes of shared memory a block.
        instructions: how often each of `TELLING` occurs (AMD: `v_mfma`).
        multiply_adds: of the tensor cores' instructions in the code, for a block.
    """

    registers: int
    spill: int
    shared: int
    instructions: dict[str, int]
    multiply_adds: int = 0


def collect() -> list[AotEntry]:
    """The entries of all ops, sorted by name. Raises `ValueError` when two have the same name."""
    import cm3kernels

    entries: list[AotEntry] = []
    for op in pkgutil.iter_modules(cm3kernels.__path__):
        name = f"cm3kernels.{op.name}.triton"
        if op.ispkg and importlib.util.find_spec(name) is not None:
            entries += importlib.import_module(name).aot_entries()
    names = [entry.name for entry in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"aot_entries: several entries are called {', '.join(twice)}")
    return sorted(entries, key=lambda entry: entry.name)


def compile_entry(entry: AotEntry, arch: int | str, *, aligned: bool = True) -> Any:
    """Triton's compiled kernel for a compute capability (80, 90) or an AMD architecture ("gfx942").

    Args:
        entry: what to compile.
        arch: for which hardware; none of it has to be there.
        aligned: False leaves out the divisibility by 16: odd strides happen, and must compile as
            well.

    Raises:
        TypeError: an argument has neither type nor value; the kernel is an interpreted one.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = entry.kernel
    if not isinstance(kernel, triton.runtime.JITFunction):
        raise TypeError(
            f"{entry.name}: {type(kernel).__name__} can't be compiled; unset TRITON_INTERPRET "
            "before Python starts"
        )
    unknown = {*entry.types, *entry.constexprs, *entry.div16} - set(kernel.arg_names)
    missing = [
        name for name in kernel.arg_names if (name in entry.types) == (name in entry.constexprs)
    ]
    if unknown or missing:
        raise TypeError(
            f"{entry.name}: arguments that the kernel has not: {sorted(unknown)}; "
            f"that have neither or both of type and value: {missing}"
        )
    signature = {name: entry.types.get(name, "constexpr") for name in kernel.arg_names}
    attrs = (
        {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in entry.div16}
        if aligned
        else {}
    )
    amd = isinstance(arch, str)
    # AMD's compiler has no tf32x3: launchers say "ieee" there.
    constexprs = {
        name: "ieee" if amd and value == "tf32x3" else value
        for name, value in entry.constexprs.items()
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attrs)
    # A wavefront has 64 threads, and a block at most 1,024.
    num_warps = min(entry.num_warps, 16) if amd else entry.num_warps
    return triton.compile(
        source,
        target=GPUTarget("hip", arch, 64) if amd else GPUTarget("cuda", arch, 32),
        options={"num_warps": num_warps, "num_stages": entry.num_stages},
    )


def measure(
    entry: AotEntry, arch: int | str, *, aligned: bool = True, instructions: bool = True
) -> Usage:
    """Compile and read registers, spills and shared memory; instructions when asked, since
    disassembling costs half a second."""
    compiled = compile_entry(entry, arch, aligned=aligned)
    return _amd_usage(compiled) if isinstance(arch, str) else _nvidia_usage(compiled, instructions)


def _nvidia_usage(compiled: Any, instructions: bool) -> Usage:
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        commands: list[list[str | Path]] = [[tools / "cuobjdump", "--dump-resource-usage", path]]
        if instructions:  # the same text as cuobjdump's --dump-sass, in half the time
            commands.append([tools / "nvdisasm", "--print-code", "--no-dataflow", path])
        resources, *sass = (
            subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for command in commands
        )
    of = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", resources)}
    text = "".join(sass)
    counts = {
        name: count for name, pattern in TELLING.items() if (count := len(pattern.findall(text)))
    }
    of_a_warp = sum(
        int(m) * int(n) * int(k) // 4 if m else {"16816": 2048, "1688": 1024}[mnk]
        for m, n, k, mnk in PRODUCT.findall(text)
    )
    metadata = compiled.metadata
    return Usage(
        of["REG"],
        of["STACK"] + of["LOCAL"],
        metadata.shared,
        counts,
        metadata.num_warps * of_a_warp,
    )


def _amd_usage(compiled: Any) -> Usage:
    text = compiled.asm["amdgcn"]

    def value(key: str) -> int:
        return int((re.findall(rf"\.{key}:?\s+(\d+)", text) or ["0"])[-1])

    return Usage(
        value("vgpr_count"),
        value("private_segment_fixed_size"),
        compiled.metadata.shared,
        {"v_mfma": text.count("v_mfma")} if "v_mfma" in text else {},
    )


@dataclass(frozen=True)
class Result:
    """One entry on one target: `usage`, or the `error` that the compiler gave."""

    name: str
    target: str
    usage: Usage | None
    error: str = ""


def _job(job: tuple[str, int | str, bool], *, all_instructions: bool) -> Result:
    """In a worker: kernels can't be sent to it, so it finds them by name."""
    name, arch, aligned = job
    entry = next(entry for entry in collect() if entry.name == name)
    target = (f"sm_{arch}" if isinstance(arch, int) else arch) + ("" if aligned else " unaligned")
    try:
        judged = isinstance(arch, int) and bool(entry.expects.get(arch) or entry.multiply_adds)
        needed = aligned and (all_instructions or judged)
        return Result(name, target, measure(entry, arch, aligned=aligned, instructions=needed))
    except Exception as error:  # whatever the compiler raises is the finding, for this entry alone
        return Result(name, target, None, _reason(error))


def _reason(error: BaseException) -> str:
    """One line: of Triton's chain of errors (caller, callee) the innermost, whose message follows
    the source that it quotes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['?'])[-1][:300]}"


def jobs_of(
    entries: Iterable[AotEntry], *, extended: bool = False
) -> list[tuple[str, int | str, bool]]:
    """Every entry on its capabilities; and of each kernel function the first entry on AMD, and for
    sm_90 without alignment (`extended`: every entry)."""
    jobs: list[tuple[str, int | str, bool]] = []
    seen: set[int] = set()
    for entry in entries:
        jobs += [(entry.name, arch, True) for arch in entry.archs]
        if extended or id(entry.kernel) not in seen:
            seen.add(id(entry.kernel))
            jobs += [(entry.name, AMD, True), (entry.name, entry.archs[-1], False)]
    return jobs


def fingerprint(entry: AotEntry) -> str:
    """Of everything that the compiler is given: the kernel's source and that of what it calls,
    types, constants, launch. With one version of Triton the same fingerprint compiles to the same
    code."""
    given = (
        entry.kernel.cache_key,
        sorted(entry.types.items()),
        sorted(entry.constexprs.items()),
        entry.div16,
        entry.num_warps,
        entry.num_stages,
    )
    return hashlib.sha256(repr(given).encode()).hexdigest()[:16]


def unchanged(entries: Sequence[AotEntry], recorded: Mapping[str, Any]) -> list[Result]:
    """The recorded results of entries that need no compiling: same fingerprint, and not the first
    entry of a kernel function, which is always compiled.

    Args:
        entries: all that there are, sorted.
        recorded: the budget's "entries", of this very version of Triton.
    """
    found, seen = [], set()
    for entry in entries:
        targets, first = recorded.get(entry.name, {}), id(entry.kernel) not in seen
        seen.add(id(entry.kernel))
        wanted = [f"sm_{arch}" for arch in entry.archs]
        if not first and all(
            targets.get(target, {}).get("fingerprint") == fingerprint(entry) for target in wanted
        ):
            found += [
                Result(
                    entry.name,
                    target,
                    Usage(**{field.name: targets[target][field.name] for field in fields(Usage)}),
                )
                for target in wanted
            ]
    return found


def run(
    jobs: Sequence[tuple[str, int | str, bool]],
    *,
    num_processes: int = 2,
    all_instructions: bool = True,
) -> Iterator[Result]:
    """Compile in that many processes; results in the order of the jobs, as they come.

    Args:
        jobs: from `jobs_of`.
        num_processes: processes.
        all_instructions: False reads the instructions of those only that expect some.
    """
    job = partial(_job, all_instructions=all_instructions)
    if num_processes == 1:
        yield from map(job, jobs)
        return
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(job, jobs)


def triton_version() -> str:
    """The installed version: "3.7.1"."""
    import triton

    return str(triton.__version__)


def triton_series() -> str:
    """The key of the budget: "3.7". Between series the compiler changes, and registers with it."""
    return ".".join(triton_version().split(".")[:2])


def read_budget(path: Path = BUDGET) -> dict[str, Any]:
    """The recorded usage: {"3.7": {"triton": "3.7.1", "entries": {name: {target: usage and
    fingerprint}}}}."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def findings(
    entries: Sequence[AotEntry],
    results: Sequence[Result],
    recorded: Mapping[str, Any],
    *,
    tolerance: float = TOLERANCE,
) -> list[str]:
    """What is wrong, a line each; an empty list is a pass.

    Args:
        entries: all that there are.
        results: what was compiled.
        recorded: the budget's "entries" of this series: name -> target -> usage.
        tolerance: growth that is allowed, of registers and shared memory.
    """
    by_name = {entry.name: entry for entry in entries}
    wrong = [
        finding
        for result in results
        for finding in _check(by_name[result.name], result, recorded, tolerance)
    ]
    wrong += [
        f"{name}: is in the budget, and no kernel has it any more"
        for name in sorted(set(recorded) - set(by_name))
    ]
    return wrong


def _check(
    entry: AotEntry, result: Result, recorded: Mapping[str, Any], tolerance: float
) -> list[str]:
    place, usage = f"{result.name} on {result.target}", result.usage
    if usage is None:
        return [f"{place}: does not compile: {result.error}"]
    arch = int(result.target[3:]) if re.fullmatch(r"sm_\d+", result.target) else None
    if arch is None:
        return []
    wrong = []
    if usage.spill:
        wrong.append(f"{place}: spills {usage.spill} bytes a thread")
    if usage.shared > SHARED_LIMIT[arch]:
        wrong.append(
            f"{place}: needs {usage.shared} bytes of shared memory, a block has "
            f"{SHARED_LIMIT[arch]}"
        )
    wrong += [
        f"{place}: {name} does not occur ({_instructions(usage)})"
        for name in entry.expects.get(arch, ())
        if not usage.instructions.get(name)
    ]
    if entry.multiply_adds and usage.multiply_adds > entry.multiply_adds:
        wrong.append(
            f"{place}: multiplies {usage.multiply_adds / entry.multiply_adds:.2f} times what its "
            "tiles need, which have "
            "too few rows for its warps"
        )
    budget = recorded.get(result.name, {}).get(result.target)
    if budget is None:
        return [*wrong, f"{place}: is not in the budget"]
    wrong += [
        f"{place}: {what} {now}, recorded {budget[what]}"
        for what, now in (("registers", usage.registers), ("shared", usage.shared))
        if now > budget[what] * (1 + tolerance)
    ]
    return wrong


HEADING = f"{'kernel and configuration':<56} {'target':<16} {'regs':>5} {'spill':>6} {'shared':>8}"


def line(result: Result, *, show_instructions: bool = False) -> str:
    """A result under `HEADING`."""
    usage = result.usage
    figures = f"{usage.registers:>5} {usage.spill:>6} {usage.shared:>8}" if usage else result.error
    extra = f"  {_instructions(usage)}" if usage and show_instructions else ""
    return f"{result.name:<56} {result.target:<16} {figures}{extra}"


def _instructions(usage: Usage) -> str:
    return (
        ", ".join(f"{name} {count}" for name, count in usage.instructions.items())
        or "none of the telling instructions"
    )


def as_budget(
    results: Iterable[Result], entries: Iterable[AotEntry] = ()
) -> dict[str, dict[str, Any]]:
    """What is recorded: name -> target -> usage and fingerprint, aligned NVIDIA targets only."""
    prints = {entry.name: {"fingerprint": fingerprint(entry)} for entry in entries}
    recorded: dict[str, dict[str, Any]] = {}
    for result in results:
        if result.usage is not None and re.fullmatch(r"sm_\d+", result.target):
            recorded.setdefault(result.name, {})[result.target] = {
                **asdict(result.usage),
                **prints.get(result.name, {}),
            }
    return recorded


def write_budget(recorded: Mapping[str, Any], path: Path = BUDGET) -> None:
    """Replace the file in one step."""
    text = json.dumps(recorded, indent=1, sort_keys=True)
    # One line for each target: a change of a kernel is a change of its lines.
    text = re.sub(
        r"\{\n[^{}]*\"instructions\": \{[^}]*\},[^}]*\}",
        lambda match: re.sub(r"\s+", " ", match[0]),
        text,
    )
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)  # noqa: PTH105 (atomic)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 1 when something is over its budget."""
    parser = argparse.ArgumentParser(
        prog="python -m cm3kernels.aot", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument(
        "--changed", action="store_true", help="leave out what is the same as when it was recorded"
    )
    parser.add_argument("--write", action="store_true", help="record what the kernels need now")
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="entries whose name contains this; compared with nothing",
    )
    parser.add_argument("--show", action="store_true", help="print the instructions found")
    parser.add_argument(
        "--extended",
        action="store_true",
        help="every entry on AMD and unaligned, not one of each kernel",
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument(
        "--budget", type=Path, default=BUDGET, help="the budget's file (default: the package's)"
    )
    args = parser.parse_args(argv)
    os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported, here and in the workers
    entries, series, budget = collect(), triton_series(), read_budget(args.budget)
    chosen = [entry for entry in entries if args.only in entry.name]
    before = budget.get(series, {}).get("entries", {})
    same_version = budget.get(series, {}).get("triton") == triton_version()
    results = unchanged(chosen, before) if args.changed and same_version else []
    known = {result.name for result in results}
    print(HEADING)
    for result in run(
        [job for job in jobs_of(chosen, extended=args.extended) if job[0] not in known],
        num_processes=args.jobs,
        all_instructions=args.write or args.show,
    ):
        print(line(result, show_instructions=args.show), flush=True)
        results.append(result)
    if args.write:
        recorded = {
            **{name: usage for name, usage in before.items() if args.only not in name},
            **as_budget(results, chosen),
        }
        write_budget(
            {**budget, series: {"triton": triton_version(), "entries": recorded}}, args.budget
        )
    if args.only and not args.write:
        return int(any(result.usage is None for result in results))
    now = read_budget(args.budget).get(series, {}).get("entries", {})
    wrong = findings(
        chosen, results, {name: usage for name, usage in now.items() if args.only in name}
    )
    print(
        "\n".join(
            [
                "",
                f"{len(known)} entries are as recorded; {len(wrong)} findings (Triton {series})",
                *(f"  {finding}" for finding in wrong),
            ]
        )
    )
    return int(bool(wrong))


if __name__ == "__main__":
    from cm3kernels import aot  # entries are of that module's class, not of __main__'s

    sys.exit(aot.main())
