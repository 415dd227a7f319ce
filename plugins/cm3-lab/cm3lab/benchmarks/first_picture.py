"""`cm3 bench first-picture`: processor time of loading a model, of the first picture and of the second, each in a
new process.

The first picture also pays for work that a process does once: opening the memory, importing modules. Values that are
computed once and cached are not included: an uncounted process runs first. Everything runs on the CPU.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cm3apps.cli import whole_number

HELP = "processor time of loading a model, of a process's first picture and of its second"
EXAMPLE = """examples:
  cm3 bench first-picture
  cm3 bench first-picture --model runs/mine --runs 9 -o first.json"""
#: Code of a process; its arguments are the model, "" for the default one, and the prompt.
_PROCESS = """\
import json, sys, time
import cm3core
model = cm3core.load(*filter(None, sys.argv[1:2]), device="cpu")
ends = [0.0, time.process_time()]
for seed in range(2):
    model.generate(sys.argv[2], seed=seed, draw=True)
    ends.append(time.process_time())
print(json.dumps([end - start for start, end in zip(ends, ends[1:])]))
"""


@dataclass(frozen=True)
class Seconds:
    """Processor time of a process, summed over its threads.

    Args:
        load: from its start until the model is loaded.
        first, second: of its first picture and its second.
    """

    load: float
    first: float
    second: float

    @property
    def difference(self) -> float:
        """Difference between the first and the second picture."""
        return self.first - self.second


def configure(parser: ArgumentParser) -> None:
    """The action's options."""
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="a run, a model's folder, PLUGIN:NAME or hf://USER/NAME (default: the bundled model)",
    )
    parser.add_argument(
        "--prompt",
        default="a red bell",
        metavar="TEXT",
        help="the prompt (default: %(default)s)",
    )
    parser.add_argument(
        "--runs",
        type=whole_number(1, 1000),
        default=5,
        metavar="N",
        help="number of processes to measure (default: %(default)s)",
    )
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="JSON file to write")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Measure and print; returns the exit code 0."""
    from cm3core.files import write_text
    from cm3core.outputs import claim_file

    if args.out is not None:
        claim_file(args.out)
    measure(args.model, args.prompt)  # fills the caches
    runs = [measure(args.model, args.prompt) for _ in range(args.runs)]
    names = [*(item.name for item in fields(Seconds)), "difference"]
    for name in names:
        values = [getattr(one, name) for one in runs]
        print(
            f"{name:10}  {statistics.median(values):6.2f} s ({min(values):.2f} to {max(values):.2f})"
        )
    print(f"processor time; medians of {args.runs} processes")
    if args.out is not None:
        results = {"machine": platform.machine(), "processors": os.cpu_count()}
        stored = {"environment": results, "runs": [asdict(one) for one in runs]}
        write_text(args.out, json.dumps(stored, indent=2) + "\n")
    return 0


def measure(model: str | None, prompt: str) -> Seconds:
    """Measure one new process.

    Raises:
        CM3Error: the process failed; its own message is printed.
    """
    from cm3core.errors import CM3Error

    done = subprocess.run(
        [sys.executable, "-c", _PROCESS, model or "", prompt], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise CM3Error(
            "cm3 bench first-picture",
            f"the measured process exited with {done.returncode}",
            f"see its message above; does `cm3 generate{f' --model {model}' if model else ''}` work?",
        )
    return Seconds(*json.loads(done.stdout.splitlines()[-1]))
