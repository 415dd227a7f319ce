"""Golden requests: what small models generate and learn, compared with what is stored in golden.json.

    python -m tests.golden                              all requests, some two minutes; a line for each that differs
    python -m tests.golden --only 'train/*' redraw/svg  these
    python -m tests.golden --write                      store the answers, where a change of them is meant
    python -m tests.golden --write --file before.json   store them elsewhere, and compare with them later (--file)
    python -m tests.golden --list                       the names

Last bits are the same only where the environment is (`environment.py` in tests/fixtures/golden). In another one, hashes are
not compared, and numbers up to a thousandth: to compare all, store the answers of the commit before the change in a file of
your own. Exit code 1: something differs, or a request fails.

In tests/fixtures/golden: `models.py`, how each model is made; `requests.py`, name -> call; `answers.py`, what is stored of
a result; `net.py`, which answers and compares; `environment.py`, what the last bits of a float depend on.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))

from golden import environment

# Read when a library is imported.
environment.set_variables()


def main() -> int:
    """See the module."""
    from golden import net
    from golden.requests import REQUESTS

    parser = argparse.ArgumentParser(
        prog="python -m tests.golden",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="names or patterns")
    parser.add_argument("--write", action="store_true", help="store the answers")
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--file", type=Path, default=net.STORED, help="the stored answers")
    options = parser.parse_args()
    try:
        names = net.chosen(options.only)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        for name in names:
            equals = REQUESTS[name].equals
            print(name + (f" = {equals}" if equals else ""))
        return 0
    return _write(names, options.file) if options.write else _compare(names, options.file)


def _write(names: list[str], path: Path) -> int:
    from golden import net

    with net.empty_models() as models:
        answers = {name: net.answered(models, net.REQUESTS[name]) for name in names}
    failed = {name: one["error"] for name, one in answers.items() if _is_error(one)}
    for name, error in failed.items():
        print(f"{name}: {error}")
    for name, one in answers.items():
        source = net.origin(name)
        if name not in failed and source in answers and (line := net.compare(answers[source], one)):
            failed[name] = line
            print(f"{name}: does not equal {source}: {line}")
    if failed:
        print(f"nothing is written: {len(failed)} of {len(names)} requests failed")
        return 1
    net.store(answers, path)
    print(f"{path}: {len(names)} requests")
    return 0


def _is_error(answer: object) -> bool:
    return isinstance(answer, dict) and "error" in answer


def _compare(names: list[str], path: Path) -> int:
    from golden import net

    stored_in, expected = net.stored(path)
    with net.empty_models() as models:
        if other := environment.differences(stored_in, environment.fingerprint()):
            print(
                f"note: the answers were stored in another environment ({other}); hashes are not compared, and "
                f"numbers up to {net.NEAR:g}",
                flush=True,
            )
        started = time.monotonic()

        def tell(line: str) -> None:
            print(line, flush=True)

        different = net.check(models, names, expected, tell, exact=not other)
        seconds = time.monotonic() - started
    print(f"{len(names)} requests, {len(different)} differ ({seconds:.0f} s)")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
