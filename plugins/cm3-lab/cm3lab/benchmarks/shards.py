"""`cm3 bench shards`: documents per second read from token shards in training, compared with the `webdataset` package on
the same tars.

Both read a document's JSON and codes in shuffled order in one process; their runs alternate, and each is repeated. Ours
opens shards again each time, checks their SHA-256, and converts them to documents; `webdataset` shuffles in a buffer and
decodes JSON and arrays, without checks.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cm3apps.cli import whole_number

HELP = "documents per second from token shards, compared with the webdataset package"
EXAMPLE = """examples:
  cm3 bench shards --quick
  cm3 bench shards -o shards.json"""
#: Documents, and codes per picture: in the full run, and in a trial.
FULL, QUICK = (40_000, 1024), (4_000, 256)
_SHARD, _BUFFER, _CODEBOOK, _SEED = 4096, 4096, 8192, 0
_WORDS = (
    "a",
    "red",
    "old",
    "small",
    "round",
    "bell",
    "apple",
    "house",
    "on",
    "under",
    "beside",
    "lake",
)


@dataclass(frozen=True)
class Row:
    """Results of one reader.

    Args:
        reader: its name.
        runs: documents per second of each run.
        processor_runs: documents per second of processor time, which other programs disturb less.
    """

    reader: str
    runs: tuple[float, ...]
    processor_runs: tuple[float, ...]


def configure(parser: ArgumentParser) -> None:
    """The action's options."""
    parser.add_argument(
        "--num",
        type=whole_number(16, 2**24),
        metavar="N",
        help=f"documents (default: {FULL[0]:,}; with --quick {QUICK[0]:,})",
    )
    parser.add_argument(
        "--codes",
        type=whole_number(1, 2**16),
        metavar="N",
        help=f"codes per picture (default: {FULL[1]:,}, CM3leon's; with --quick {QUICK[1]})",
    )
    parser.add_argument(
        "--runs",
        type=whole_number(1, 100),
        default=5,
        metavar="N",
        help="alternating runs of each reader (default: %(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="use few documents (takes seconds)")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="JSON file to write")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Measure and print; returns the exit code 0."""
    import tempfile

    from cm3core.errors import MissingPackageError
    from cm3core.files import write_text
    from cm3core.outputs import claim_file

    try:
        import webdataset  # noqa: F401  # checks that it is installed
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "cm3 bench shards",
            "the package 'webdataset' is not installed",
            "pip install webdataset",
        ) from error
    if args.out is not None:
        claim_file(args.out)
    num, codes = QUICK if args.quick else FULL
    num, codes = args.num or num, args.codes or codes
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), num, codes)
        rows = measure(Path(folder), args.runs)
    for what in ("runs", "processor_runs"):
        print("wall-clock time" if what == "runs" else "processor time")
        for row in rows:
            print(f"  {row.reader:11}  {_spread(getattr(row, what), ',.0f')} documents/s")
        print(f"  ratio        {_spread(ratios_of(rows, what), '.2f')}")
    print(f"{num:,} documents with {codes:,} codes; medians of {args.runs} alternating runs")
    if args.out is not None:
        write_text(args.out, _json(rows, num, codes))
    return 0


def _spread(values: Sequence[float], form: str) -> str:
    least, middle, most = (format(pick(values), form) for pick in (min, statistics.median, max))
    return f"{middle:>7} ({least} to {most})"


def ratios_of(rows: tuple[Row, Row], what: str = "runs") -> list[float]:
    """Return our speed relative to the other's, run by run; `what`: "runs" or "processor_runs"."""
    own, other = (getattr(row, what) for row in rows)
    return [one / another for one, another in zip(own, other, strict=True)]


def measure(folder: Path, num_runs: int) -> tuple[Row, Row]:
    """Read all documents with both, alternating; ours first."""
    readers: dict[str, Callable[[Path], int]] = {"cm3": read, "webdataset": read_by_webdataset}
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
    for reader in readers.values():
        reader(folder)  # warm up: files in the page cache, modules imported
    for _ in range(num_runs):
        for name, reader in readers.items():
            wall, processor = time.perf_counter(), time.process_time()
            number = reader(folder)
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            speeds[name].append((number / wall, number / processor))
    first, second = (Row(name, *zip(*own, strict=True)) for name, own in speeds.items())
    return first, second


def read(folder: Path) -> int:
    """Read all documents as in training: opened again, checked, shuffled, texts drawn."""
    import numpy as np

    from cm3plugins.datasets.tokens import TokensSourceConfig

    source = TokensSourceConfig(path=str(folder), shuffle_shards=1).build()
    order = source.stream_order(_SEED, 0, 0, 1)
    if order is None:
        order = np.random.default_rng(_SEED).permutation(len(source))
    rng = np.random.default_rng(_SEED)
    for index in order.tolist():
        source.document(index, rng)
    return len(order)


def read_by_webdataset(folder: Path) -> int:
    """Read all documents as users of the package do."""
    import webdataset

    paths = sorted(map(str, folder.glob("*.tar")))
    data = (
        webdataset.WebDataset(paths, shardshuffle=len(paths), seed=_SEED)
        .shuffle(_BUFFER, initial=_BUFFER)
        .decode()
    )
    return sum(1 for sample in data if "json" in sample and "npy" in sample)


def write_shards(folder: Path, num: int, codes: int) -> None:
    """Write shards of random captions and codes, with their manifest."""
    import numpy as np

    from cm3core.document import Codes, Text
    from cm3core.files import sha256_file
    from cm3core.interfaces.dataset import Provenance
    from cm3plugins.text_tokenizers.byte import ByteTokenizer
    from cm3run.token_shards import Manifest, ShardInfo, SplitInfo, TokenizerInfo
    from cm3run.token_shards.record import RecordFacts, write_tar, written

    rng, tokenizer = np.random.default_rng(_SEED), ByteTokenizer()
    grid, provenance = (1, codes), Provenance("CC0-1.0", "https://example.org/pictures")

    def document(index: int) -> tuple[str, bytes, bytes | None]:
        words = " ".join(_WORDS[place] for place in rng.integers(len(_WORDS), size=12))
        row = rng.integers(0, _CODEBOOK, codes, np.int32)
        keys = frozenset({f"image:{index:064x}"})
        text, file = written(
            RecordFacts(f"picture-{index}", keys=keys, provenance=provenance, group=""),
            [(Text(words), Codes(row, grid))],
            {},
            tokenizer,
            codebook_size=_CODEBOOK,
        )
        return f"{index:012d}", text, file

    shards = []
    for start in range(0, num, _SHARD):
        path = folder / f"train-{start // _SHARD:06d}.tar"
        number = write_tar(path, map(document, range(start, min(start + _SHARD, num))))
        shards.append(ShardInfo(path.name, path.stat().st_size, sha256_file(path), number))
    info = TokenizerInfo("byte", {}, tokenizer.fingerprint)
    split = SplitInfo(tuple(shards), 0, 0, ((provenance, num),))
    Manifest(info, info, grid, "", "", {"train": split}).write(folder)


def _json(rows: tuple[Row, Row], num: int, codes: int) -> str:
    values: dict[str, Any] = {
        "environment": {
            "machine": platform.machine(),
            "python": platform.python_version(),
            "webdataset": version("webdataset"),
        },
        "documents": num,
        "codes": codes,
        "results": [asdict(row) for row in rows],
        "ratio": statistics.median(ratios_of(rows)),
        "processor_ratio": statistics.median(ratios_of(rows, "processor_runs")),
    }
    return json.dumps(values, indent=1) + "\n"
