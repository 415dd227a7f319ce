"""Attacks a running server as hostile clients would, and reports its memory and how long others waited.

    python -m tests.fuzz.clients --seed 7
    python -m tests.fuzz.clients --attack json --attack pictures
    python -m tests.fuzz.clients --model bundled:icons          `cm3 serve` in place of toy models

`attacks.cases` has the attacks. Exit code 1: the server ended, took more memory than `--most-memory`, or
let /healthz or the page wait for more than a second.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from pathlib import Path

for name, value in {"HF_HUB_OFFLINE": "1", "CM3_STRICT_PLUGINS": "1", "MPLBACKEND": "Agg"}.items():
    os.environ.setdefault(name, value)
sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))


def main() -> int:
    """See the module."""
    options = _options()
    from attacks.cases import ATTACKS
    from attacks.victim import MIB, victim

    command = None
    if options.model is not None:
        cm3 = [sys.executable, "-m", "cm3apps.cli.main"]
        command = [*cm3, "serve", "--model", options.model, "--port", "0", "--quiet"]
    failed = False
    with victim(command=command) as server:
        print(f"{server.resident / MIB:,.0f} MiB at first")
        for name in options.attack or ATTACKS:
            start = time.monotonic()
            with server.watched():
                found = ATTACKS[name](server, random.Random(f"{options.seed} {name}"), options.size)
            most, slowest = max(server.memory), max(server.health + server.page)
            time.sleep(3)  # freed memory goes back
            bad = most > options.most_memory * MIB or slowest > 1 or bool(server.failures)
            failed |= bad
            print(
                f"{name}: {time.monotonic() - start - 3:.0f} s; {most / MIB:,.0f} MiB at most, "
                f"{server.resident / MIB:,.0f} afterwards; healthz {max(server.health):.2f} s, page "
                f"{max(server.page):.2f} s at most{'  << TOO MUCH' if bad else ''}"
            )
            for one in sorted(set(server.failures)):
                print(f"  {one} ({server.failures.count(one)})")
            for answer, number in sorted(found.items()):
                print(f"  {number:5} {answer}", flush=True)
        failed |= server.process.poll() is not None
    return int(failed)


def _options() -> argparse.Namespace:
    from attacks.cases import ATTACKS

    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.clients",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same attacks")
    parser.add_argument("--attack", action="append", choices=list(ATTACKS), help="only this one")
    parser.add_argument(
        "--size",
        type=float,
        default=1.0,
        help="of bodies and pictures, and numbers of clients, to 1",
    )
    parser.add_argument("--model", help="what to serve (default: toy models)")
    parser.add_argument("--most-memory", type=int, default=2560, metavar="MIB")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
