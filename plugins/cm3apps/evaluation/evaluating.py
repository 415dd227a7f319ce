"""An evaluation: make, extract, score. Its folder has

protocol.json    the protocol
scores.json      scores with their dependencies; the model's keys; leakage checks
samples.jsonl    a line per sample: prompt, result, prepended documents, and its own scores
environment.json versions, machine, date, wall time: no score depends on them
pictures/        the results
verdicts.png     with the metric `usable`: all cases with their documents, the real drawing, and the verdict
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cm3core
from cm3apps.evaluation import leakage, measured
from cm3apps.evaluation.made import (
    LOG,
    PICTURES,
    Made,
    check_tuned,
    make,
    model_keys,
    take_pictures,
)
from cm3apps.evaluation.measured import bounding_pictures
from cm3apps.evaluation.tasks.base import Task
from cm3core._version import OUR_DISTRIBUTIONS
from cm3core.config.schema import to_plain
from cm3core.errors import CM3Error, DataError, MissingPackageError
from cm3core.files import check_links, held_folder, write_text
from cm3core.images import save_png
from cm3core.interfaces import Extractor, Metric, MetricConfig, Score
from cm3core.outputs import OutputFolder
from cm3core.plugins.registry import Registry
from cm3run.evaluation.features import picture_hash
from cm3run.evaluation.protocol import (
    Protocol,
    measured_name,
    measurement_hash,
    score_configs,
)
from cm3run.model import Model

FORMAT = "cm3 scores 1"
SHEET = "verdicts.png"


@dataclass
class Scored:
    """A metric of the protocol, or the reason to leave it out."""

    values: Mapping[str, Any]
    metric_name: str
    config: MetricConfig
    extractor: Extractor | None
    built: Metric | None
    skipped: str = ""
    floor: dict[str, float] = field(default_factory=dict)
    beside: dict[str, dict[str, float]] = field(default_factory=dict)
    beside_spread: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def metric(self) -> Metric:
        """The metric; it must not be left out."""
        assert self.built is not None
        return self.built

    def measurement(self, task: Task, model: Model | None = None) -> dict[str, Any]:
        """The dependencies of the score: metric, version, keys, extractor, candidates, and the tokenizers in whose
        tokens it counts.

        Args:
            task: provides the candidates.
            model: provides the tokenizers; None: no score counts in tokens.
        """
        found: dict[str, Any] = {
            "metric": {"name": self.metric_name, **to_plain(self.config.protocol())}
        }
        if self.extractor is not None:
            found["extractor"] = {
                "label": self.extractor.label,
                "fingerprint": self.extractor.fingerprint,
            }
        if "candidate_features" in measured.needed([self.metric]):
            found["candidates_sha256"] = task.candidates_sha256
        if "training_nearness" in measured.needed([self.metric]) and task.training is not None:
            found["training"] = task.training().fingerprint
        if model is not None:
            found |= measured.units([self.metric], model)
        return found

    def name(self, score: Score) -> str:
        """The name of a score, made of the metric's and the network's names."""
        return score.name if self.extractor is None else f"{score.name}-{self.extractor.label}"


def claim_results(out: Path) -> None:
    """Refuse a folder with somebody else's files under the names of results, unless it has an evaluation, perhaps of
    another machine, which `Evaluation` checks."""
    names = ("protocol.json", "scores.json", "samples.jsonl", "environment.json", SHEET, LOG)
    own = (*names, f"{PICTURES}/*.png", "folder-protocol.json", "comparison.json")
    OutputFolder(out, *(() if (out / "protocol.json").is_file() else own), resumes=True)


@dataclass
class Evaluation:
    """One evaluation.

    Args:
        protocol: the protocol.
        task: its samples.
        registry: the registry of metrics and extractors.
        out: the folder.
        model: the model to evaluate; None for pictures from another model.
        options: keyword arguments of the model's methods.
        pictures: the folder of pictures from another model.
        label: the model's label.
        files: extractor name -> key -> value; paths of weights, which are not in a protocol.
        skip_missing: leave out scores whose weights are not given or whose packages are not installed.
        allow_leaks, allow_reranker: see `leakage`.
    """

    protocol: Protocol
    task: Task
    registry: Registry
    out: Path
    model: Model | None = None
    options: dict[str, Any] = field(default_factory=dict)
    pictures: Path | None = None
    label: str = ""
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    skip_missing: bool = False
    allow_leaks: bool = False
    allow_reranker: bool = False

    def __post_init__(self) -> None:
        if (
            self.task.makes == "edits"
        ):  # the defaults of `Model.edit`, which are told with the model
            self.options = {"num_retrieved": 0, "num_candidates": 1, **self.options}

    def run(self) -> dict[str, Any]:
        """Run or resume; return the content of scores.json."""
        claim_results(self.out)
        busy = CM3Error(
            str(self.out), "another process is evaluating into this folder", "wait for it"
        )
        with held_folder(self.out, busy):
            return self._run()

    def _run(self) -> dict[str, Any]:
        start = time.perf_counter()
        files = ("protocol.json", "scores.json", "samples.jsonl", "environment.json", SHEET)
        check_links(self.out, *files)
        model_facts = self._model_facts()
        identity = {
            "protocol": self.protocol.values,
            "task": self.task.measurement,
            "model": model_facts,
        }
        claim = json.dumps(identity, indent=1, sort_keys=True) + "\n"
        self._check_unclaimed(claim)
        scored = self._scored()
        found = [one.extractor for one in scored if one.extractor is not None]
        checks: dict[str, Any] = {}
        if self.model is not None:
            check_tuned(self.model, self.task)
            leakage.check_extractors(self.model, found, self.options, allowed=self.allow_reranker)
            checks = leakage.check_memory(
                self.model, self.task, self.options, allowed=self.allow_leaks
            )
        # only now: what is refused above is asked for again with other settings, in the same folder
        write_text(self.out / "protocol.json", claim)
        made = Made(self.out, self.task)
        if self.model is not None and self._makes_something(scored):
            make(self.model, made, self.protocol.seed, self.options)
        elif self.pictures is not None:
            take_pictures(made, self.pictures)
        self._check_not_the_references(made)
        self._score(scored, made)
        self._bound(scored, made)
        self._show(scored, made)
        return self._write(scored, made, model_facts, checks, time.perf_counter() - start)

    def _model_facts(self) -> dict[str, Any]:
        if self.model is not None:
            return {"name": self.label, **model_keys(self.model, self.options)}
        return {"name": self.label, "pictures": "made elsewhere"}

    def _check_unclaimed(self, claim: str) -> None:
        """Refuse the folder of another evaluation."""
        path = self.out / "protocol.json"
        if path.is_file() and path.read_text(encoding="utf-8") != claim:
            raise DataError(
                str(path),
                "is of an evaluation with another model, protocol or setting",
                "name another folder (-o)",
            )

    def _makes_something(self, scored: list[Scored]) -> bool:
        """Whether a metric needs generated results and not only likelihoods."""
        columns = measured.needed([one.metric for one in scored if not one.skipped])
        return not self.protocol.scores or bool(columns & measured.OF_RESULTS)

    def _scored(self) -> list[Scored]:
        built: dict[str, Extractor] = {}
        scored = []
        for place, values in enumerate(self.protocol.scores):
            where = f"protocol {self.protocol.name}: scores {place}"
            filled = self._with_files(values, where)
            extractor, reason = None, ""
            if isinstance(filled, str):
                reason, filled = filled, {"metric": values["metric"]}
            config, extractor_config = score_configs(
                filled, self.registry, where, self.protocol.writer
            )
            name = measured_name("metric", values["metric"]["name"], config, self.registry)
            try:
                if extractor_config is not None:
                    key = json.dumps(filled["extractor"], sort_keys=True)
                    extractor = built[key] = built.get(key) or extractor_config.build()
                metric = config.build()
            except MissingPackageError as error:
                if not self.skip_missing:
                    raise
                scored.append(Scored(values, name, config, None, None, error.cause))
                continue
            columns = measured.needed([metric])
            if not reason and self.model is None and columns & measured.NEEDS_MODEL:
                reason = "needs the model itself"
            if not reason and extractor is None and any("features" in name for name in columns):
                raise DataError(
                    where, "the metric compares features, but has no extractor", "add one"
                )
            scored.append(Scored(values, name, config, extractor, metric, reason))
        return scored

    def _with_files(self, values: Mapping[str, Any], where: str) -> dict[str, Any] | str:
        """A score with the user's files, or the reason if a file is missing and may be."""
        extractor = dict(values.get("extractor", {}))
        name = _own_name("extractor", str(extractor.get("name")), self.registry)
        if name not in MISSING:
            return dict(values)
        files = self.files.get(name)
        if files is None:
            option, file = MISSING[name]
            if self.skip_missing:
                return f"{file.split(' ')[0]} is not given ({option})"
            raise DataError(where, f"needs {file}", f"give its path ({option}), or --skip-missing")
        return {**values, "extractor": {**extractor, **files}}

    def _check_not_the_references(self, made: Made) -> None:
        """Refuse the reference pictures themselves; a model may draw them."""
        if self.pictures is None:
            return
        rows = [index for index, row in made.rows.items() if "picture" in row][:64]
        same = 0
        for index in rows:
            reference = made.task.samples[index].reference
            if reference is not None and self.protocol.size is not None:
                same += picture_hash(made.load(index, self.protocol.size)) == picture_hash(
                    reference()
                )
        if rows and same == len(rows):
            raise DataError(
                str(self.pictures),
                "has the reference pictures themselves",
                "name the folder of the generated pictures",
            )

    def _score(self, scored: list[Scored], made: Made) -> None:
        active = [one for one in scored if not one.skipped]
        for extractor in dict.fromkeys(one.extractor for one in active):
            own = [one for one in active if one.extractor is extractor]
            metrics = [one.metric for one in own]
            if extractor is None:
                number = self.options.get("num_retrieved")
                measured.feed_samples(
                    metrics, made, self.protocol.size, self.model, num_retrieved=number
                )
                continue
            assert self.protocol.size is not None
            for prefix in dict.fromkeys(getattr(one.config, "prefix", "") for one in own):
                same = [one for one in own if getattr(one.config, "prefix", "") == prefix]
                metrics = [one.metric for one in same]
                sets = [one for one in same if set(one.metric.needs) == _TWO_SETS]
                halves = [one.config.build() for one in sets]
                seen = measured.Seen(extractor, self.protocol.size, prefix)
                measured.feed_features(metrics, seen, made, halves=halves)
                for one, half in zip(sets, halves, strict=True):
                    one.floor = _floor(half)

    def _bound(self, scored: list[Scored], made: Made) -> None:
        """The scores of other pictures, for comparison with those of the generated ones."""
        bounded = [one for one in scored if not one.skipped and one.config.bounded]
        if not bounded:
            return
        size = self.protocol.size
        assert size is not None
        for bound in bounding_pictures(made, size, self.model):
            for one in bounded:
                metric, pictures = one.config.build(), bound.pictures
                if one.extractor is None:
                    documents = bound.documents
                    measured.feed_samples([metric], made, size, self.model, pictures, documents)
                else:
                    seen = measured.Seen(one.extractor, size, getattr(one.config, "prefix", ""))
                    measured.feed_features([metric], seen, made, pictures)
                for score in metric.result():
                    one.beside.setdefault(score.name, {})[bound.name] = score.value
                    if score.spread is not None:
                        spreads = one.beside_spread.setdefault(score.name, {})
                        spreads[bound.name] = score.spread

    def _show(self, scored: list[Scored], made: Made) -> None:
        """Write a sheet of all cases with their verdicts, if they are judged."""
        for one in scored:
            if (
                one.built is not None
                and one.built.draws_sheet
                and not one.skipped
                and self.protocol.size
            ):
                cases = measured.shown_with(made, self.protocol.size, self.model)
                save_png(self.out / SHEET, one.built.sheet(cases))

    def _write(
        self,
        scored: list[Scored],
        made: Made,
        model: dict[str, Any],
        checks: dict[str, Any],
        seconds: float,
    ) -> dict[str, Any]:
        measurement = {
            "task": self.task.measurement,
            "size": self.protocol.size,
            "seed": self.protocol.seed,
            "seed_rule": "seed + number of the sample",
        }
        rows: list[dict[str, Any]] = []
        samples = {index: dict(row) for index, row in sorted(made.rows.items())}
        for one in scored:
            if one.skipped:
                rows.append({"name": one.metric_name, "skipped": one.skipped})
                continue
            own = one.measurement(self.task, self.model)
            key = measurement_hash(measurement, own)
            for score in one.metric.result():
                row = {
                    "name": one.name(score),
                    "value": score.value,
                    "spread": score.spread,
                    "num": score.num,
                    "higher_is_better": score.higher_is_better,
                    "hash": key,
                    "measurement": own,
                }
                if score.note:
                    row["note"] = score.note
                if score.name in one.floor:
                    row["real_against_real"] = one.floor[score.name]
                if score.name in one.beside:
                    row["beside"] = one.beside[score.name]
                    row["beside_spread"] = one.beside_spread.get(score.name, {})
                rows.append(row)
                for index, value in score.per_sample.items():
                    sample = samples.setdefault(index, self._line(index))
                    sample.setdefault("scores", {})[one.name(score)] = value
        result = {
            "format": FORMAT,
            "protocol": {"name": self.protocol.name, "sha256": self.protocol.sha256},
            "measurement": measurement,
            "model": model,
            "leakage": checks,
            "scores": rows,
        }
        write_text(
            self.out / "samples.jsonl",
            "".join(json.dumps(samples[index]) + "\n" for index in sorted(samples)),
        )
        write_text(self.out / "scores.json", json.dumps(result, indent=1) + "\n")
        write_text(
            self.out / "environment.json", json.dumps(_environment(seconds), indent=1) + "\n"
        )
        return result

    def _line(self, index: int) -> dict[str, Any]:
        sample = self.task.samples[index]
        return {"index": index, "key": sample.key, "prompt": sample.prompt}


def _own_name(kind: str, name: str, registry: Registry) -> str:
    """The bare name of one of cm3leon's own components; other names unchanged."""
    plugin, _, short = name.rpartition("/")
    own = {info.name for info in registry.plugins if info.distribution in OUR_DISTRIBUTIONS}
    return short if own & ({plugin} if plugin else set(registry.owners(kind, short))) else name


#: Extractor -> (the option for its weights, a description of the file).
MISSING = {
    "inception": (
        "--inception FILE",
        "pt_inception-2015-12-05-6726825d.pth (sha256 6726825d0af5f729cebd5821db510b11b1cfad8faad88a03"
        "f1befd49fb9129b2), published at https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights",
    ),
    "by_embedder": ("--clip FILE", "CLIP's weights, such as OpenAI's ViT-B-32.pt (MIT)"),
}


#: The columns that a distance between two sets needs.
_TWO_SETS = {("features",), ("reference_features",)}


def _floor(metric: Metric) -> dict[str, float]:
    """Its scores; nothing if the halves of the references are too small."""
    try:
        return {score.name: score.value for score in metric.result()}
    except DataError:
        return {}


def _environment(seconds: float) -> dict[str, Any]:
    return {
        "cm3leon": cm3core.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 1),
        "arguments": sys.argv[1:],
    }
