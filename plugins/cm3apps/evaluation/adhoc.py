"""`cm3 eval score`: one metric of two folders of pictures, or of a file of texts."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cm3apps.cli._picture_files import beside_pictures
from cm3apps.evaluation.measured import needed
from cm3core.config.schema import to_plain
from cm3core.errors import DataError
from cm3core.files import sha256_file
from cm3core.images import open_image
from cm3core.interfaces import Extractor, ExtractorConfig, Metric, MetricBatch, Score
from cm3core.recipe.layers import value_of
from cm3run.evaluation.features import CHUNK, features_in_chunks
from cm3run.evaluation.protocol import (
    measured_name,
    measurement_hash,
    score_configs,
    sha256_of,
)
from cm3run.progress import make_bar

_LOSSY = (".jpg", ".jpeg", ".webp")
_SUFFIXES = (".png", *_LOSSY)
_OF_FEATURES = ("features", "reference_features")
_OF_PICTURES = ("pictures", "reference_pictures")
#: Maximum number of files that a note names.
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
        extractor = _extractor_of(args, metric, extractor_config)
        files = {}
        if extractor is not None:
            measurement["extractor"] = extractor.fingerprint
            label = f"-{extractor.label}"
            files = _pictures(metric, extractor, args.pictures, args.reference)
        if needed([metric]) & set(_OF_PICTURES):
            files |= _themselves(metric, args.pictures, args.reference)
    key = measurement_hash(files, measurement)
    return [_row(score, label, key) for score in metric.result()]


def _extractor_of(
    args: Namespace, metric: Metric, config: ExtractorConfig | None
) -> Extractor | None:
    """The network whose features of the pictures the metric uses, or None.

    Raises:
        DataError: the metric needs more than pictures, or an extractor is missing or not used.
    """
    columns = needed([metric])
    if missing := sorted(columns - {*_OF_FEATURES, *_OF_PICTURES}):
        raise DataError(
            f"metric {args.metric!r}",
            f"needs {', '.join(missing).replace('_', ' ')}, but folders have only pictures "
            "and their features",
            "use a protocol: cm3 eval MODEL PROTOCOL",
        )
    reads = bool(columns & set(_OF_FEATURES))
    if reads and config is None:
        raise DataError(
            f"metric {args.metric!r}",
            "has no extractor for the pictures",
            "give one (--extractor), e.g. lite1",
        )
    if not reads and config is not None:
        raise DataError(
            f"metric {args.metric!r}",
            "reads pictures, not their features",
            "leave --extractor out",
        )
    return None if config is None else config.build()


def _row(score: Score, label: str, key: str) -> Sequence[str]:
    spread = "" if score.spread is None else f" \u00b1 {score.spread:.3g}"
    arrow = "higher is better" if score.higher_is_better else "lower is better"
    return (
        f"{score.name}{label}",
        f"{score.value:.6g}{spread}",
        f"n={score.num}, {arrow}" + (f"; {score.note}" if score.note else ""),
        f"#{key}",
    )


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
        raise ValueError(f"{key!r} holds something other than texts")
    return row[key]


def _pictures(metric: Metric, extractor: Any, made: Path, real: Path | None) -> dict[str, Any]:
    """Give a metric the features of two folders."""
    mine, others, reference = _both(metric, made, real)
    folders = {"features": mine, "reference_features": others}
    for name, files in folders.items():
        loads = [partial(open_image, path) for path in files]
        size = loads[0]().shape
        with make_bar(desc=f"features, {extractor.label}", total=len(loads), unit="picture") as bar:
            checked = [partial(_of_size, path, size, files[0]) for path in files]
            for places, features in features_in_chunks(checked, extractor, advance=bar.update):
                given: dict[str, Any] = {name: features}
                metric.update(MetricBatch(places, given))
    return {"reference_sha256": reference, "num": len(mine)}


def _both(metric: Metric, made: Path, real: Path | None) -> tuple[list[Path], list[Path], str]:
    """The comparable files of two folders, and the hash of the second folder's files."""
    if real is None:
        raise DataError("OTHERS", "is not given", "name the folder of the reference pictures")
    mine, others = _files(made, metric.minimum), _files(real, metric.minimum)
    lossy = [[file for file in own if file.suffix.lower() in _LOSSY] for own in (mine, others)]
    if lossy[0] and not lossy[1]:
        raise DataError(
            str(lossy[0][0]),
            "has lossy compression, unlike the other pictures, which changes the scores",
            "save the pictures as PNG when they are generated",
        )
    hashes = [sorted(map(sha256_file, files)) for files in (mine, others)]
    if hashes[0] == hashes[1]:
        raise DataError(str(made), f"has the same pictures as {real}", "name another folder")
    return mine, others, sha256_of(hashes[1])


def _themselves(metric: Metric, made: Path, real: Path | None) -> dict[str, Any]:
    """Give a metric the pictures of a folder, with the pictures of the same names in another folder if the
    metric compares them one by one."""
    if "reference_pictures" not in needed([metric]):
        files = _files(made, metric.minimum)
        _feed(metric, {"pictures": files})
        return {"num": len(files)}
    mine, others, reference = _both(metric, made, real)
    if any(set(group) == set(_OF_PICTURES) for group in metric.needs):
        names = {path.stem: path for path in others}
        for here, known, there in ((mine, names, real), (others, {f.stem for f in mine}, made)):
            for file in here:
                if file.stem not in known:
                    raise DataError(
                        str(file),
                        f"has no counterpart in {there}",
                        "pictures are matched by name: use the same names in both folders",
                    )
        _feed(metric, {"pictures": mine, "reference_pictures": [names[f.stem] for f in mine]})
    else:
        _feed(metric, {"pictures": mine})
        _feed(metric, {"reference_pictures": others})
    return {"reference_sha256": reference, "num": len(mine)}


def _feed(metric: Metric, files: Mapping[str, Sequence[Path]]) -> None:
    """Columns of pictures, in batches."""
    num = len(next(iter(files.values())))
    with make_bar(desc="pictures", total=num, unit="picture") as bar:
        for start in range(0, num, CHUNK):
            places = range(start, min(start + CHUNK, num))
            given: dict[str, Any] = {
                name: [open_image(own[place]) for place in places] for name, own in files.items()
            }
            if len(given) == 2:
                for place in places:
                    _check_sizes(
                        *((own[place], given[name][place - start]) for name, own in files.items())
                    )
            metric.update(MetricBatch(places, given))
            bar.update(len(places))


def _check_sizes(mine: tuple[Path, Any], other: tuple[Path, Any]) -> None:
    """Refuse two pictures with different sizes."""
    (file, pixels), (other_file, others) = mine, other
    if pixels.shape != others.shape:
        raise DataError(
            str(file),
            f"is {pixels.shape[1]} x {pixels.shape[0]} pixels, {other_file} {others.shape[1]} x "
            f"{others.shape[0]}",
            "bring both to one size: scaling changes the scores",
        )


def _files(folder: Path, minimum: int) -> list[Path]:
    if not folder.is_dir():
        raise DataError(str(folder), "is not a folder", "name a folder of pictures")
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
            f"note: {folder}: not scored, because cm3 wrote them beside the pictures: {', '.join(names)}",
            file=sys.stderr,
        )
    if len(files) < minimum:
        raise DataError(
            str(folder),
            f"holds {len(files)} pictures, the metric needs {minimum} or more",
            "add pictures, or lower the number if it is a key of the metric (cm3 describe metric/NAME)",
        )
    return files


def _of_size(path: Path, size: tuple[int, ...], first: Path) -> Any:
    pixels = open_image(path)
    if pixels.shape != size:
        raise DataError(
            str(path),
            f"is {pixels.shape[1]} x {pixels.shape[0]} pixels, {first.name} {size[1]} x {size[0]}",
            "bring all pictures of a folder to one size: scaling changes the scores",
        )
    return pixels
