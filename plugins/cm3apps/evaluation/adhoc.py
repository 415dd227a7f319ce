"""`cm3 eval score`: one metric of two folders of pictures, or of a file of texts."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cm3apps.evaluation.measured import needed
from cm3core.cli._earlier_pictures import beside_pictures
from cm3core.config.schema import to_plain
from cm3core.errors import DataError
from cm3core.evaluation.features import features_in_chunks
from cm3core.evaluation.protocol import (
    measured_name,
    measurement_hash,
    score_configs,
    sha256_of,
)
from cm3core.files import sha256_file
from cm3core.images import open_image
from cm3core.interfaces import Metric, MetricBatch
from cm3core.progress import make_bar
from cm3core.recipe.yaml_text import value_of

_LOSSY = (".jpg", ".jpeg", ".webp")
_SUFFIXES = (".png", *_LOSSY)
#: Files that a note names.
_MOST_NAMED = 3


def score_files(args: Namespace, registry: Any) -> list[Sequence[str]]:
    """Rows (name, value, note, hash).

    Raises:
        DataError: too few or mixed pictures, equal folders, texts without references.
    """
    values: dict[str, dict[str, Any]] = {"metric": {"name": args.metric}}
    if args.extractor is not None:
        values["extractor"] = {"name": args.extractor}
    for setting in args.settings:
        _set(values, setting)
    config, extractor_config = score_configs(values, registry, "cm3 eval score")
    metric = config.build()
    name = measured_name("metric", args.metric, config, registry)
    measurement: dict[str, Any] = {"metric": {"name": name, **to_plain(config.protocol())}}
    label = ""
    if not args.pictures.exists():
        raise DataError(
            str(args.pictures), "does not exist", "name a folder of pictures, or a file of texts"
        )
    if args.pictures.is_file():
        files = _texts(metric, args.pictures)
    else:
        if missing := sorted(needed([metric]) - {"features", "reference_features"}):
            raise DataError(
                f"metric {args.metric!r}",
                f"needs {', '.join(missing).replace('_', ' ')}, and two folders give features of pictures",
                "use a protocol: cm3 eval MODEL PROTOCOL",
            )
        if extractor_config is None:
            raise DataError(
                f"metric {args.metric!r}",
                "has no extractor for the pictures",
                "give one (--extractor), e.g. lite1",
            )
        extractor = extractor_config.build()
        measurement["extractor"] = extractor.fingerprint
        label = f"-{extractor.label}"
        files = _pictures(metric, extractor, args.pictures, args.reference)
    key = measurement_hash(files, measurement)
    rows: list[Sequence[str]] = []
    for score in metric.result():
        spread = "" if score.spread is None else f" \u00b1 {score.spread:.3g}"
        arrow = "higher is better" if score.higher_is_better else "lower is better"
        rows.append(
            (
                f"{score.name}{label}",
                f"{score.value:.6g}{spread}",
                f"n={score.num}, {arrow}" + (f"; {score.note}" if score.note else ""),
                f"#{key}",
            )
        )
    return rows


def _set(values: dict[str, dict[str, Any]], setting: str) -> None:
    key, equals, _ = setting.partition("=")
    section, _, name = key.partition(".")
    if not equals or section not in ("metric", "extractor") or not name or section not in values:
        raise DataError(
            f"--set {setting}",
            "is not metric.KEY=VALUE or extractor.KEY=VALUE of what is given",
            "write e.g. --set metric.subset_size=200",
        )
    place = values[section]
    *parents, last = name.split(".")
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value_of(f"value={setting.partition('=')[2]}", f"--set {setting}")["value"]


def _texts(metric: Metric, path: Path) -> dict[str, Any]:
    """Give a metric the lines of a file."""
    if needed([metric]) - {"texts", "references"}:
        raise DataError(
            str(path), "holds texts, the metric needs pictures", "name folders of pictures"
        )
    texts: list[str] = []
    references: list[list[str]] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            texts.append(_text(row, "text", str))
            references.append(_text(row, "references", list))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"{path}, line {len(references) + 1}",
            f"is no sample ({error})",
            'write {"text": "...", "references": ["..."]}',
        ) from error
    if not texts:
        raise DataError(
            str(path), "holds no sample", 'write {"text": "...", "references": ["..."]}'
        )
    metric.update(MetricBatch(range(len(texts)), {"texts": texts, "references": references}))
    return {"references_sha256": sha256_of(references), "num": len(references)}


def _text(row: Any, key: str, kind: type) -> Any:
    if not isinstance(row, dict) or not isinstance(row.get(key), kind):
        raise ValueError(f"no {key!r}")
    if kind is list and not all(isinstance(one, str) for one in row[key]):
        raise ValueError(f"{key!r} holds something else than texts")
    return row[key]


def _pictures(metric: Metric, extractor: Any, made: Path, real: Path | None) -> dict[str, Any]:
    """Give a metric the features of two folders."""
    if real is None:
        raise DataError("OTHERS", "is not given", "name the folder of the reference pictures")
    folders = {
        "features": _files(made, metric.minimum),
        "reference_features": _files(real, metric.minimum),
    }
    lossy = {name: [f for f in own if f.suffix.lower() in _LOSSY] for name, own in folders.items()}
    if lossy["features"] and not lossy["reference_features"]:
        raise DataError(
            str(lossy["features"][0]),
            "is compressed with loss, which moves the scores, and the others are not",
            "save the pictures as PNG when they are generated",
        )
    hashes = {name: sorted(map(sha256_file, files)) for name, files in folders.items()}
    if hashes["features"] == hashes["reference_features"]:
        raise DataError(str(made), f"holds the same pictures as {real}", "name another folder")
    for name, files in folders.items():
        loads = [partial(open_image, path) for path in files]
        size = loads[0]().shape
        with make_bar(desc=f"features, {extractor.label}", total=len(loads), unit="picture") as bar:
            checked = [partial(_of_size, path, size, files[0]) for path in files]
            for places, features in features_in_chunks(checked, extractor, advance=bar.update):
                given: dict[str, Any] = {name: features}
                metric.update(MetricBatch(places, given))
    return {
        "reference_sha256": sha256_of(hashes["reference_features"]),
        "num": len(folders["features"]),
    }


def _files(folder: Path, minimum: int) -> list[Path]:
    if not folder.is_dir():
        raise DataError(str(folder), "is no folder", "name a folder of pictures")
    beside = beside_pictures(folder)
    left_out = set(beside)
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in _SUFFIXES and path not in left_out
    )
    if beside:
        names = [path.name for path in beside[:_MOST_NAMED]]
        if more := len(beside) - len(names):
            names.append(f"{more} more")
        print(
            f"note: {folder}: not scored: {', '.join(names)}, which cm3 wrote beside the pictures",
            file=sys.stderr,
        )
    if len(files) < minimum:
        raise DataError(
            str(folder),
            f"holds {len(files)} pictures, the metric needs {minimum} or more",
            "add pictures, or lower the number, if a key of the metric decides it (cm3 describe metric/NAME)",
        )
    return files


def _of_size(path: Path, size: tuple[int, ...], first: Path) -> Any:
    pixels = open_image(path)
    if pixels.shape != size:
        raise DataError(
            str(path),
            f"is {pixels.shape[1]} x {pixels.shape[0]} pixels, {first.name} {size[1]} x {size[0]}",
            "bring all pictures of a folder to one size: scaling moves the scores",
        )
    return pixels
