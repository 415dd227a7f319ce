"""Columns for metrics, sample by sample: features, pictures, texts, and the model's own likelihoods; and the pictures for
comparison: real pictures, their reconstructions by the image tokenizer, copies of the first prepended document, and the
real pictures that the task names as baselines.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from cm3apps.evaluation.made import Made
from cm3apps.evaluation.tasks.base import Sample
from cm3core.document import Codes, Document, Image, ImageHole, PixelArray, Text, TextHole
from cm3core.errors import DataError
from cm3core.images import fit
from cm3core.interfaces import Extractor, Metric, MetricBatch
from cm3core.interfaces.metric import Case
from cm3run.evaluation.features import CHUNK, Load, features_in_chunks
from cm3run.generation.engine import Request
from cm3run.model import Model
from cm3run.model.prepending import Retrieval
from cm3run.nearness import Nearest
from cm3run.progress import make_bar

#: Columns that only the model itself can give.
OF_MODEL = {
    "image_nats",
    "retrieved_image_nats",
    "image_tokens",
    "text_nats",
    "text_tokens",
    "choices",
    "answers",
    "codes",
}
#: Columns of what a model generates.
OF_RESULTS = {"features", "pictures", "texts"}
#: Columns that pictures made elsewhere lack.
NEEDS_MODEL = OF_MODEL | {"documents"}
#: Columns that count in tokens -> the model's tokenizer: other tokenizers make more or fewer tokens, with less or more
#: information each.
_TOKENIZER_OF = {
    "image_nats": "image_tokenizer",
    "retrieved_image_nats": "image_tokenizer",
    "image_tokens": "image_tokenizer",
    "codes": "image_tokenizer",
    "text_tokens": "text_tokenizer",
}
#: Number of captions in a ranking, including the right one.
NUM_CHOICES = 10
#: Documents with holes, and the same documents filled.
Pairs = Sequence[tuple[Document, Document]]
_BATCH = 8


def needed(metrics: Sequence[Metric]) -> set[str]:
    """All columns that some metrics need."""
    return {name for metric in metrics for group in metric.needs for name in group}


def units(metrics: Sequence[Metric], model: Model) -> dict[str, str]:
    """The tokenizers in whose tokens some metrics count, with their fingerprints; and, for codes of drawings, what they
    are made of."""
    columns = needed(metrics)
    names = {_TOKENIZER_OF[name] for name in columns & _TOKENIZER_OF.keys()}
    found = {name: getattr(model.components, name).fingerprint for name in sorted(names)}
    if columns & OF_MODEL and model.components.image_tokenizer.reads_drawings:
        found["codes_of"] = "drawings"
    return found


@dataclass(frozen=True)
class Seen:
    """The input of a metric's network.

    Args:
        extractor: the network.
        size: side of the pictures, in pixels.
        prefix: text before each prompt.
    """

    extractor: Extractor
    size: int
    prefix: str = ""


def feed_features(
    metrics: Sequence[Metric],
    seen: Seen,
    made: Made,
    pictures: Sequence[Load] | None = None,
    halves: Sequence[Metric] = (),
) -> None:
    """Give metrics the features of all pictures, references, candidates and prompts.

    Features are streamed: the metrics keep what they need of the features of pictures and references, and nothing
    else is kept.

    Args:
        metrics: empty metrics, all with this network.
        seen: the network and its input.
        made: the samples and their results.
        pictures: pictures of all samples, instead of the results.
        halves: metrics for real against real, which get one half of the references as pictures and the other
            half as references.
    """
    columns, task, extractor = needed(metrics), made.task, seen.extractor
    num = len(task.samples)
    given: dict[str, Any]
    if "features" in columns:
        among = _CandidateFeatures(extractor, made) if "candidate_features" in columns else None
        loads = pictures or [partial(made.load, index, seen.size) for index in range(num)]
        for places, features in _chunks(loads, extractor, "pictures"):
            given = {"features": features}
            if "text_features" in columns:
                prompts = [seen.prefix + task.samples[place].prompt for place in places]
                given["text_features"] = extractor.extract_texts(prompts)
            if among is not None:
                given["candidate_features"] = [among.of(place) for place in places]
            _update(metrics, places, given)
    if "reference_features" in columns:
        loads = [_reference(made, index) for index in range(num)]
        for places, features in _chunks(loads, extractor, "references"):
            given = {"reference_features": features}
            _update(metrics, places, given)
            for half, column in enumerate(("features", "reference_features")):
                own = [place for place in places if place % 2 == half]
                given = {column: features[[place - places.start for place in own]]}
                _update(halves, [place // 2 for place in own], given)


def _chunks(
    loads: Sequence[Load], extractor: Extractor, words: str
) -> Iterator[tuple[range, np.ndarray[Any, Any]]]:
    with make_bar(
        desc=f"features of {words}, {extractor.label}", total=len(loads), unit="picture"
    ) as bar:
        yield from features_in_chunks(loads, extractor, advance=bar.update)


class _CandidateFeatures:
    """Features of the real pictures for rankings; each is computed once."""

    def __init__(self, extractor: Extractor, made: Made) -> None:
        self._names = [[name for name, _ in one] for one in made.task.candidates]
        loads = {name: load for one in made.task.candidates for name, load in one}
        self._rows: dict[str, np.ndarray[Any, Any]] = {}
        names = list(loads)
        for places, features in _chunks(list(loads.values()), extractor, "candidates"):
            self._rows |= {names[place]: row for place, row in zip(places, features, strict=True)}

    def of(self, place: int) -> np.ndarray[Any, Any]:
        """Of a sample's, float32 [C, D]."""
        return np.stack([self._rows[name] for name in self._names[place]])


def feed_samples(
    metrics: Sequence[Metric],
    made: Made,
    size: int | None,
    model: Model | None,
    pictures: Sequence[Load] | None = None,
    documents: Sequence[Sequence[Load]] | None = None,
    *,
    num_retrieved: int | None = None,
) -> None:
    """Give metrics everything but features.

    Args:
        metrics, made, pictures: see `feed_features`.
        size: side of the pictures, in pixels.
        model: the model; None for pictures from elsewhere.
        documents: the documents before each prompt, instead of the model's.
        num_retrieved: documents that the model retrieves; None: as its recipe says.
    """
    columns = needed(metrics)
    samples = made.task.samples
    likelihoods = columns & OF_MODEL
    trained = _nearest_training(made) if "training_nearness" in columns else None
    before = _Prepended(made, size, model) if model is not None and "documents" in columns else None
    left_out: list[str] = []
    with make_bar(desc="measuring", total=len(samples), unit="sample") as bar:
        for start in range(0, len(samples), CHUNK):
            places = range(start, min(start + CHUNK, len(samples)))
            given: dict[str, Any] = {}
            for name in columns - OF_MODEL:
                if name == "pictures" and pictures is not None:
                    given[name] = [pictures[place]() for place in places]
                elif name == "training_nearness" and trained is not None:
                    shown = pictures or [
                        partial(made.load, one, size or 0) for one in range(len(samples))
                    ]
                    given[name] = [trained(shown[place]()) for place in places]
                elif name == "documents" and documents is not None:
                    given[name] = [[load() for load in documents[place]] for place in places]
                elif name == "documents" and before is not None:
                    given[name] = [before.of(place) for place in places]
                else:
                    given[name] = [_value(name, made, place, size) for place in places]
            _update(metrics, places, given)
            if likelihoods and model is not None:
                codes = _coded(model, samples, places, left_out)
                values = _likelihoods(model, samples, codes, likelihoods, num_retrieved)
                _update(metrics, list(codes), values)
            bar.update(len(places))
    if left_out:
        print(
            f"note: probabilities are measured on {len(samples) - len(left_out)} of {len(samples)} samples, as codes "
            f"can't say the drawings of the others; the first is {left_out[0]}",
            file=sys.stderr,
        )


def _nearest_training(made: Made) -> Nearest:
    """Finds the nearest training picture, which each comparison asks for again."""
    if made.nearest is None:
        if made.task.training is None:
            raise DataError(
                f"task {made.task.name!r}",
                "knows no training pictures",
                "remove the metric copy_of_training",
            )
        pictures = make_bar(made.task.training().loads, desc="training pictures", unit="picture")
        made.nearest = Nearest(load() for load in pictures)
    return made.nearest


def _update(metrics: Sequence[Metric], places: Sequence[int], given: dict[str, Any]) -> None:
    for metric in metrics:
        groups = [group for group in metric.needs if set(group) <= set(given)]
        if groups:
            own = {name: given[name] for group in groups for name in group}
            metric.update(MetricBatch(places, own))


def _reference(made: Made, index: int) -> Load:
    picture = made.task.samples[index].reference
    assert picture is not None
    return picture


def _value(name: str, made: Made, place: int, size: int | None) -> Any:
    """A sample's value in a column that needs no model."""
    sample = made.task.samples[place]
    if name == "pictures":
        assert size is not None
        return made.load(place, size)
    if name == "reference_pictures":
        return _reference(made, place)()
    values = {
        "prompts": sample.prompt,
        "texts": made.rows.get(place, {}).get("text"),
        "references": list(sample.references),
        "targets": dict(sample.target),
    }
    if values.get(name) is None:
        raise DataError(
            f"column {name!r}", "this protocol's task does not provide it", "remove the metric"
        )
    return values[name]


def _coded(
    model: Model, samples: Sequence[Sample], places: range, left_out: list[str]
) -> dict[int, Codes]:
    """Place -> codes of the reference picture. `left_out` gets a line for each drawing that codes can't say: its pixels
    could be traced, but such codes are not those of the drawing."""
    found: dict[int, Codes] = {}
    for place in places:
        try:
            (codes,) = model.coded((_image(samples[place]),))
        except DataError as error:
            if samples[place].drawing is None:
                raise
            left_out.append(f"{samples[place].key!r}: {error.cause}")
            continue
        assert isinstance(codes, Codes)
        found[place] = codes
    return found


def _likelihoods(
    model: Model,
    samples: Sequence[Sample],
    codes: Mapping[int, Codes],
    columns: set[str],
    num_retrieved: int | None,
) -> dict[str, list[Any]]:
    """Columns with the model's own probabilities; only `retrieved_image_nats` is with prepended documents.

    Args:
        model: the model.
        samples: all samples.
        codes: place -> codes of the reference picture, for the samples to measure.
        columns: the columns to fill.
        num_retrieved: see `feed_samples`.
    """
    given: dict[str, list[Any]] = {name: [] for name in columns}
    items = list(codes.items())
    for part in (items[start : start + _BATCH] for start in range(0, len(items), _BATCH)):
        texts = [samples[place].prompt for place, _ in part]
        if "codes" in columns:
            given["codes"] += [np.asarray(one.codes) for _, one in part]
        pairs: Pairs = [
            ((Text(text), ImageHole()), (Text(text), one))
            for text, (_, one) in zip(texts, part, strict=True)
        ]
        if "retrieved_image_nats" in columns:
            before = _retrieved(model, texts, num_retrieved)
            values = _nats(model, pairs, before)
            given["retrieved_image_nats"] += [-nats for nats, _ in values]
            if "image_nats" not in columns:
                given["image_tokens"] += [number for _, number in values]
        if "image_nats" in columns:
            _add(given, "image", _nats(model, pairs))
        if columns & {"text_nats", "text_tokens"}:
            pairs = [
                ((TextHole(None), one), (Text(text), one))
                for text, (_, one) in zip(texts, part, strict=True)
            ]
            _add(given, "text", _nats(model, pairs))
        if columns & {"choices", "answers"}:
            for place, one in part:
                choices = choices_of(samples, place)
                pairs = [((TextHole(None), one), (Text(text), one)) for text in choices]
                given.setdefault("choices", []).append([value[0] for value in _nats(model, pairs)])
                given.setdefault("answers", []).append(0)
    return given


def choices_of(samples: Sequence[Sample], place: int) -> list[str]:
    """A sample's own choices; otherwise its caption, first, and other samples' captions, the same in
    every run."""
    if samples[place].choices:
        return list(samples[place].choices)
    rng = np.random.default_rng([2023, place])
    own = samples[place].prompt
    others = list(dict.fromkeys(one.prompt for one in samples if one.prompt != own))
    if len(others) < NUM_CHOICES - 1:
        raise DataError(
            "the samples",
            f"have {len(others) + 1} different captions, ranking takes {NUM_CHOICES}",
            "measure more samples, or remove the metric choice",
        )
    chosen = rng.choice(len(others), NUM_CHOICES - 1, replace=False)
    return [own, *(others[int(index)] for index in chosen)]


def _retrieved(
    model: Model, texts: Sequence[str], number: int | None
) -> list[tuple[Document, ...]]:
    """The documents that are prepended when each text is a prompt for a picture."""
    queries: list[Document] = [(Text(text),) for text in texts]
    requests = [Request((*query, ImageHole()), truncate=True) for query in queries]
    found = Retrieval(model).retrieve(requests, queries, number, [])
    return [tuple(one.all[0].request.retrieved) for one in found]


def _nats(
    model: Model, pairs: Pairs, retrieved: Sequence[Sequence[Document]] | None = None
) -> list[tuple[float, int]]:
    """(log p, tokens) of the content of the holes of each document, after the documents prepended to it."""
    likelihood = model.components.likelihood
    contents = [likelihood.contents_of(*pair) for pair in pairs]
    documents = [asked for asked, _ in pairs]
    found = likelihood.log_probability(documents, contents, retrieved=retrieved)
    return [(value.nats, value.num_tokens) for value in found]


def _add(given: dict[str, list[Any]], modality: str, values: Sequence[tuple[float, int]]) -> None:
    for name, column in (
        (f"{modality}_nats", [-nats for nats, _ in values]),
        (f"{modality}_tokens", [num for _, num in values]),
    ):
        if name in given:
            given[name] += column


def _image(sample: Sample) -> Image:
    assert sample.reference is not None
    key = sample.picture_key.removeprefix("image:")
    return Image(key, sample.reference, drawing=sample.drawing)


REAL, RECONSTRUCTED, COPIED = "real", "reconstructed", "copied"


@dataclass(frozen=True)
class Bound:
    """Pictures whose score is compared with the model's.

    Args:
        name: in tables.
        pictures: one of each sample.
        documents: those before each prompt; None: the model's.
    """

    name: str
    pictures: Sequence[Load]
    documents: Sequence[Sequence[Load]] | None = None


def bounding_pictures(made: Made, size: int, model: Model | None) -> Iterator[Bound]:
    """Yield the pictures for the comparisons.

    Args:
        made: the samples and their results.
        size: side of the pictures, in pixels.
        model: the model; None for pictures from elsewhere: only real ones are yielded.

    Raises:
        DataError: a sample has no reference picture.
    """
    real: list[Load] = []
    for sample in made.task.samples:
        if sample.reference is None:
            raise DataError(
                f"sample {sample.key!r}",
                "has no real picture, which the metric needs",
                "remove the metric from the protocol",
            )
        real.append(sample.reference)
    yield Bound(REAL, real)
    yield from _baselines(made.task.samples)
    if model is None:
        return
    kept = [_reconstructed(model, sample) for sample in made.task.samples]
    yield Bound(RECONSTRUCTED, [partial(_scaled, pixels, size) for pixels in kept])
    if copied := _copied(made, size, model):
        yield Bound(COPIED, copied)


def _reconstructed(model: Model, sample: Sample) -> PixelArray:
    """The reference picture after the image tokenizer; a drawing that codes can't say is traced."""
    image = _image(sample)
    try:
        coded = model.coded((image,))
    except DataError:
        if sample.drawing is None:
            raise
        coded = model.coded((Image(f"{image.key}, traced", image.load),))
    (pixels,) = model.decode([one for one in coded if isinstance(one, Codes)])
    return pixels


def _baselines(samples: Sequence[Sample]) -> Iterator[Bound]:
    """What could be copied instead of drawing, if the task names it: each with all of these as the documents."""
    found = [sample.baselines() for sample in samples if sample.baselines is not None]
    if found and len(found) == len(samples):
        documents = [list(one.values()) for one in found]
        for name in found[0]:
            yield Bound(name, [one[name] for one in found], documents)


def _copied(made: Made, size: int, model: Model) -> list[Load]:
    """The first prepended document of each sample, white if there was none; nothing if no sample had
    any."""
    before = _Prepended(made, size, model)
    white = np.full((size, size, 3), 255, np.uint8)
    return (
        [partial(before.first, place, white) for place in range(len(made.task.samples))]
        if before.found
        else []
    )


def shown_with(made: Made, size: int, model: Model | None) -> list[Case]:
    """All cases, with the pictures at one size."""
    before = None if model is None else _Prepended(made, size, model)
    found = []
    for place, sample in enumerate(made.task.samples):
        documents = [] if before is None else before.of(place)
        real = _reference(made, place)()
        found.append(Case(sample.prompt, made.load(place, size), documents, real))
    return found


class _Prepended:
    """The documents before the prompts.

    Args:
        made: the samples and their results.
        size: side of the pictures, in pixels.
        model: has the memory.
    """

    def __init__(self, made: Made, size: int | None, model: Model) -> None:
        assert size is not None
        self._size, self._model = size, model
        self._names = [made.rows[index]["documents"] for index in range(len(made.task.samples))]
        wanted = {name for one in self._names for name in one}
        self.found: dict[str, int] = {}
        if wanted:
            memory = model.components.memory
            ids = ((memory.id(index), index) for index in range(len(memory)))
            self.found = {name: index for name, index in ids if name in wanted}

    def of(self, place: int) -> list[PixelArray]:
        """The pictures of a sample's documents."""
        return [self._picture(name) for name in self._names[place] if name in self.found]

    def first(self, place: int, otherwise: PixelArray) -> PixelArray:
        """The picture of a sample's first document, or another one if there was none."""
        names = self._names[place][:1]
        return self._picture(names[0]) if names and names[0] in self.found else otherwise.copy()

    def _picture(self, name: str) -> PixelArray:
        document = self._model.components.memory.document(self.found[name])
        return _of_document(document, self._size, self._model)


def _of_document(document: Document, size: int, model: Model) -> PixelArray:
    for segment in document:
        if isinstance(segment, Image):
            return fit(segment.load(), (size, size))
        if isinstance(segment, Codes):  # of a memory bank
            return _scaled(model.decode([segment])[0], size)
    return np.full((size, size, 3), 255, np.uint8)  # a document of texts


def _scaled(pixels: PixelArray, size: int) -> PixelArray:
    return fit(pixels, (size, size))
