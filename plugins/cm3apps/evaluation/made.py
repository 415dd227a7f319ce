"""A model's results for the samples of a task, stored in the evaluation's folder so that an interrupted evaluation
resumes; and, as JSON, everything about the model and its settings that may change the results.

    made.jsonl          a line per finished sample: number, key, prompt, seed, documents, picture, text
    pictures/000000.png

A sample's seed is the protocol's seed plus its number, so results do not depend on batches, on existing files, or on
where an earlier call was interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cm3apps.evaluation.tasks.base import OF_PICTURES, Sample, Task
from cm3core.config.schema import to_plain
from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3core.files import check_links, sha256_file, write_bytes
from cm3core.images import fit, open_image, save_png
from cm3core.outputs import AppendedFile
from cm3run.attribution import png
from cm3run.generation.weights import sha256_of
from cm3run.model import Model
from cm3run.model.facts import facts_of
from cm3run.model.jobs import results
from cm3run.model.tasks import record_of, task_for
from cm3run.nearness import Nearest
from cm3run.progress import make_bar

PICTURES, LOG = "pictures", "made.jsonl"
#: Number of pictures to caption, or to ask about, in one batch.
_TEXT_BATCH = 16


class Made:
    """The finished samples in a folder.

    Args:
        folder: the evaluation's folder, locked by this process.
        task: the task.
    """

    def __init__(self, folder: Path, task: Task) -> None:
        self.folder, self.task = folder, task
        check_links(folder, LOG, PICTURES)
        #: The log, opened for the first new line, and its complete lines before that.
        self._log: AppendedFile | None = None
        self._whole = b""
        self.rows: dict[int, dict[str, Any]] = self._read()
        #: Finds the nearest training picture of the task, once a metric needs it.
        self.nearest: Nearest | None = None

    def missing(self) -> list[int]:
        """Numbers of the samples that are not finished."""
        return [index for index in range(len(self.task.samples)) if index not in self.rows]

    def add(self, index: int, row: dict[str, Any]) -> None:
        """Store a finished sample; its picture is already on disk."""
        sample = self.task.samples[index]
        row = {"index": index, "key": sample.key, "prompt": sample.prompt, **row}
        if "metadata" in sample.target:  # another benchmark's own line, for its scorer
            row["metadata"] = sample.target["metadata"]
        if sample.references:  # so that `cm3 eval score` reads samples.jsonl
            row["references"] = list(sample.references)
        if self._log is None:
            self._log = AppendedFile(self.folder / LOG, self._whole)
        self._log.write(json.dumps(row).encode() + b"\n")
        self.rows[index] = row

    def picture_path(self, index: int) -> Path:
        """The path of a sample's picture."""
        return self.folder / PICTURES / f"{index:06d}.png"

    def load(self, index: int, size: int) -> PixelArray:
        """A sample's picture at the protocol's size."""
        return fit(open_image(self.picture_path(index)), (size, size))

    def _read(self) -> dict[int, dict[str, Any]]:
        """The complete lines whose pictures are unchanged."""
        path, rows = self.folder / LOG, {}
        if not path.is_file():
            return {}
        whole, end, _ = path.read_bytes().rpartition(b"\n")  # without an incomplete last line
        self._whole = whole + end
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                index, key = row["index"], row["key"]
                fits = 0 <= index < len(self.task.samples) and key == self.task.samples[index].key
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}, line {number}", "is damaged", "remove this line, or the folder"
                ) from error
            if not fits:
                raise DataError(
                    f"{path}, line {number}",
                    f"has the sample {key!r}, which is not the protocol's sample with this number",
                    "name another folder (-o): this one belongs to another evaluation",
                )
            picture = row.get("sha256")
            if picture is None or self._is_whole(index, picture):
                rows[index] = row
        return rows

    def _is_whole(self, index: int, sha256: str) -> bool:
        path = self.picture_path(index)
        return path.is_file() and sha256_file(path) == sha256


def check_tuned(model: Model, task: Task) -> None:
    """Raise `DataError` for a model that was never taught what a task asks for."""
    if task.makes == "edits" and not model.tasks.names:
        raise DataError(
            "the model",
            "was not tuned for edits; its results would be meaningless",
            "tune it (docs/tuning.md), or evaluate another one",
        )


def make(model: Model, made: Made, seed: int, options: dict[str, Any]) -> None:
    """Generate the missing samples.

    Args:
        model: the model.
        made: the store of finished samples.
        seed: the first sample's seed.
        options: keyword arguments of the model's methods.
    """
    missing = made.missing()
    if made.task.makes in OF_PICTURES:
        _make_pictures(model, made, missing, seed, options)
    else:
        _make_texts(model, made, missing, seed, options)


def _make_pictures(
    model: Model, made: Made, missing: list[int], seed: int, options: dict[str, Any]
) -> None:
    samples = made.task.samples

    def jobs() -> Iterator[Any]:
        for index in missing:
            yield from _picture_jobs(model, made.task, samples[index], seed + index, options)

    if missing:  # refuse wrong options before the bar is shown
        _picture_jobs(model, made.task, samples[missing[0]], seed, options)
    with make_bar(desc="generating", total=len(missing), unit="picture") as bar:
        for index, picture in zip(missing, results(model.engine, jobs()), strict=True):
            path = made.picture_path(index)
            write_bytes(path, png(picture.pixels, facts_of(model, picture)))
            row: dict[str, Any] = {
                "seed": picture.seed,
                "documents": [one.id for one in picture.retrieved],
                "picture": f"{PICTURES}/{path.name}",
                "sha256": sha256_file(path),
            }
            if picture.choice is not None:
                row["choice"] = {"index": picture.choice.index, "scores": picture.choice.scores}
            made.add(index, row)
            bar.update(1)


def _picture_jobs(
    model: Model, task: Task, sample: Sample, seed: int, options: dict[str, Any]
) -> Iterator[Any]:
    if task.makes == "pictures":
        return model.image_jobs(
            [sample.prompt], 1, seed=seed, truncate=True, draw=True, force=True, **options
        )[0]
    assert sample.picture is not None
    if task.makes == "fillings":
        own = {**options, "seed": seed, "truncate": True}
        return iter(model.infill_job(sample.picture(), sample.hidden, sample.prompt, **own)[:1])
    given = {**options, "seed": seed, "task": task.component}
    return model.edit_jobs(sample.picture(), sample.prompt, 1, truncate=True, **given)[0]


def _make_texts(
    model: Model, made: Made, missing: list[int], seed: int, options: dict[str, Any]
) -> None:
    samples = made.task.samples
    if made.task.makes == "answers" and any(sample.choices for sample in samples):
        _rank_answers(model, made, missing)
        return
    with make_bar(desc="writing", total=len(missing), unit="text") as bar:
        for start in range(0, len(missing), _TEXT_BATCH):
            part = missing[start : start + _TEXT_BATCH]

            def jobs(part: list[int] = part) -> Iterator[Any]:
                for index in part:
                    yield from _text_jobs(model, made.task, samples[index], seed + index, options)

            for index, text in zip(part, results(model.engine, jobs()), strict=True):
                documents = [one.id for one in text.retrieved]
                made.add(index, {"seed": text.seed, "documents": documents, "text": text.text})
                bar.update(1)


def _rank_answers(model: Model, made: Made, missing: list[int]) -> None:
    """The most probable of each sample's answers."""
    with make_bar(desc="ranking answers", total=len(missing), unit="question") as bar:
        for index in missing:
            sample = made.task.samples[index]
            assert sample.picture is not None
            pixels = fit(sample.picture(), model.image_size)
            text, nats = most_probable(model, pixels, sample.prompt, sample.choices)
            made.add(index, {"documents": [], "text": text, "log_probability": max(nats)})
            bar.update(1)


def _text_jobs(
    model: Model, task: Task, sample: Sample, seed: int, options: dict[str, Any]
) -> list[Any]:
    assert sample.picture is not None
    given = {**options, "seed": seed, "task": task.component}
    if task.makes == "captions":
        jobs, _ = model.caption_jobs([sample.picture()], **given)
        return jobs
    job, _ = model.ask_job(sample.picture(), sample.prompt, **given)
    return [job]


def take_pictures(made: Made, folder: Path) -> None:
    """Import pictures from another model: a PNG per sample, named by its number or its key.

    Raises:
        DataError: a picture is missing, is not a PNG, or differs in size from the first.
    """
    size: tuple[int, ...] | None = None
    places = [_own(folder, index, sample.key) for index, sample in enumerate(made.task.samples)]
    load = [partial(open_image, place) for place in places]
    first = places[0].name
    for index in made.missing():
        pixels = load[index]()
        size = size or pixels.shape
        if pixels.shape != size:
            raise DataError(
                str(places[index]),
                f"is {pixels.shape[1]} x {pixels.shape[0]} pixels, {first} {size[1]} x {size[0]}",
                "bring all pictures to one size: scaling changes the scores",
            )
        path = made.picture_path(index)
        save_png(path, pixels, {"prompt": made.task.samples[index].prompt})
        made.add(index, {"picture": f"{PICTURES}/{path.name}", "sha256": sha256_file(path)})


def _own(folder: Path, index: int, key: str) -> Path:
    """The picture of a sample in another model's folder."""
    names = [f"{index:06d}", f"{index:05d}", f"{index:04d}", f"{index:03d}", str(index)]
    names += [key] if "/" not in key else []
    for name in dict.fromkeys(names):
        if (folder / f"{name}.png").is_file():
            return folder / f"{name}.png"
        for other in ("jpg", "jpeg", "webp"):
            if (folder / f"{name}.{other}").is_file():
                raise DataError(
                    str(folder / f"{name}.{other}"),
                    "has lossy compression, which changes the scores",
                    "save the pictures as PNG when they are generated",
                )
    raise DataError(
        str(folder / f"{index:06d}.png"),
        f"there is no picture of sample {index} ({key!r})",
        "name pictures by the numbers of `samples.jsonl` (cm3 eval prompts), all of them",
    )


# Answers to questions by ranking: the most probable one of a list, as in VQA classifiers.
#
# Nothing is sampled or prepended. Probabilities are those of complete answers, so that a long answer is less
# probable than its beginning.


def most_probable(
    model: Model, picture: PixelArray, question: str, answers: Sequence[str]
) -> tuple[str, list[float]]:
    """The most probable answer (the first of equals), and log p of each in nats.

    Args:
        model: a model tuned for questions, or an untuned one.
        picture: uint8 [H, W, 3], of any size.
        question: the question.
        answers: at least one answer.

    Raises:
        GenerationError: the model was tuned, but not for questions.
    """
    task, likelihood = task_for(model, "ask"), model.components.likelihood
    record = record_of(task, question, model.encode([picture])[0])
    [response] = task.responses
    prompt = task.prompt(record, max_tokens=None)
    filled = [task.document({**record, response: answer}) for answer in answers]
    contents = [likelihood.contents_of(prompt, one) for one in filled]
    found = likelihood.log_probability([prompt] * len(answers), contents)
    nats = [value.nats for value in found]
    return answers[nats.index(max(nats))], nats


_SAMPLER_OPTIONS = ("seed", "num_retrieved", "num_candidates", "reranker", "sampler", "context")


def weights_sha256(model: Model) -> str:
    """Hash of the decoder's tensors, wherever they are stored."""
    return sha256_of(model.components.own_decoder)


def model_keys(model: Model, options: Mapping[str, Any]) -> dict[str, Any]:
    """Keys that may differ between models.

    Args:
        model: the model.
        options: keyword arguments of its methods.
    """
    recipe = model.recipe
    sampler = options.get("sampler")
    own = {key: value for key, value in options.items() if key not in _SAMPLER_OPTIONS}
    candidates = options.get("num_candidates") or recipe.generate.num_candidates
    keys: dict[str, Any] = {
        "recipe_hash": recipe.hash,
        "weights_sha256": weights_sha256(model),
        "step": model.step,
        "image_tokenizer": model.components.image_tokenizer.fingerprint,
        "sampler": {
            "name": sampler or recipe.component_names.get("sampler", ""),
            **to_plain(model.sampler_config(sampler, **own)),
        },
        "num_candidates": candidates,
    }
    if candidates > 1:
        keys["reranker"] = options.get("reranker") or recipe.component_names.get("reranker", "")
    keys["num_retrieved"] = num_retrieved(model, options)
    if keys["num_retrieved"] and recipe.retriever is not None:
        keys["retriever"] = {
            "name": recipe.component_names.get("retriever", ""),
            **to_plain(recipe.retriever),
        }
        keys["memory"] = model.components.memory.content_fingerprint
        if recipe.retriever.bank is None and recipe.dataset is not None:
            keys["memory_split"] = model.components.memory_split or recipe.dataset.split
    return keys


def num_retrieved(model: Model, options: Mapping[str, Any]) -> int:
    """The maximum number of documents retrieved for a prompt."""
    config, asked = model.recipe.retriever, options.get("num_retrieved")
    if asked is not None:
        return int(asked)
    if config is None or not model.recipe.generate.retrieve:
        return 0
    return config.num_retrieved
