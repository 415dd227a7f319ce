"""Calls every public function with wrong arguments.

    python -m tests.fuzz.api                                   all calls
    python -m tests.fuzz.api --seed 7 --calls 500              some of them, drawn by the seed
    python -m tests.fuzz.api --only Model.generate             those whose name has this in it

`fuzzing.api_calls` has the values and the law. Exit code 1: a call broke it.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import resource
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))
os.environ.setdefault("TQDM_DISABLE", "1")

import fuzzing.process  # noqa: F401  # before any library

#: Bytes of address space that the calls may have.
MEMORY = 12 * 2**30


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.api",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same calls")
    parser.add_argument("--calls", type=int, help="at most as many (default: all)")
    parser.add_argument("--only", default="", help="only calls with this in their name")
    options = parser.parse_args()
    from fuzzing import api_calls, base

    root = Path(os.path.realpath(tempfile.mkdtemp(prefix="cm3-api-")))
    try:
        (root / "base").mkdir()
        (root / "work").mkdir()
        made = base.make(root / "base")
        # what asks for too much is refused here, and not taken from the machine
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
        os.environ["CM3_CACHE"] = str(root / "cache")
        os.chdir(root / "work")
        world = api_calls.World(made, root / "work")
        calls = [one for one in world.calls() if options.only in one[0]]
        if options.calls is not None and options.calls < len(calls):
            calls = random.Random(options.seed).sample(calls, options.calls)
        counts: collections.Counter[str] = collections.Counter()
        for call in calls:
            outcome = api_calls.run(*call)
            counts[outcome.ended] += 1
            if outcome.ended not in ("refused", "fine"):
                print(f"{outcome.ended}: {outcome.call}: {outcome.said}", flush=True)
        print(
            f"{len(calls)} calls: " + ", ".join(f"{number} {one}" for one, number in counts.items())
        )
        return 1 if set(counts) - {"refused", "fine"} else 0
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
