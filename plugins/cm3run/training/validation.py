"""Validation of a run: the loss of fixed held-out documents, and sample pictures for fixed prompts.

Documents are in the order text -> image, with and without retrieved documents. The metric is the loss
of the query document's own tokens, nats per token: `validation/<split>/image_loss`,
`.../text_loss`, and `..._retrieved` if the recipe retrieves. Nothing is masked or random, so values
of different steps or runs are comparable. Samples are shown next to the real pictures.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor
from tqdm import tqdm

from cm3core import images
from cm3core.document import (
    Codes,
    Document,
    Image,
    ImageHole,
    MaskedSequence,
    PixelArray,
    Text,
    TokenSequence,
    text_of,
)
from cm3core.errors import CM3Error
from cm3core.interfaces import MaskingObjective
from cm3core.sequence import only_responses
from cm3run import sheets
from cm3run.build import Components, section, split_or_reason
from cm3run.generation.engine import Engine, EngineOptions, Request
from cm3run.processes import Processes
from cm3run.progress import make_bar
from cm3run.training.metrics import modality_metrics, part_metrics
from cm3run.training.neighbours import own_names

if TYPE_CHECKING:
    from cm3run.training.packing import TrainingBatch
    from cm3run.training.preparation import Preparation
    from cm3run.training.state import TrainState


class UnmaskedObjective(MaskingObjective):
    """The unmasked sequence, with loss on the query document only; if a task made it, only on its
    responses."""

    @property
    def max_added_tokens(self) -> int:
        return 0

    def _mask(
        self, sequence: TokenSequence, rng: np.random.Generator, max_length: int
    ) -> MaskedSequence:
        weights = np.zeros(len(sequence), np.float32)
        weights[sequence.segments[sequence.query_segment].start :] = 1.0
        weights = only_responses(weights, sequence)
        return MaskedSequence(sequence.tokens, sequence.cells, weights)


class Validation:
    """The recipe's validation splits, prepared at the first measurement.

    At most `train.validation_documents` of a split are measured, evenly spaced, and only their pictures are encoded; those
    that can't be read or are too long are left out. A split that the data set lacks is skipped with a note. Several
    processes divide the batches.
    """

    def __init__(
        self,
        preparation: Preparation,
        *,
        progress: bool = True,
        processes: Processes | None = None,
    ) -> None:
        self.preparation, self.progress = preparation, progress
        self.processes = Processes() if processes is None else processes
        self.splits = preparation.recipe.validation_splits
        #: Mean loss of the held-out tokens at the last measurement, over all splits, with retrieved documents if the
        #: recipe retrieves; NaN before, and without held-out documents.
        self.loss = math.nan
        self._batches: dict[str, Sequence[TrainingBatch]] | None = None

    def measure(self, forward: Callable[[TrainingBatch], Tensor]) -> dict[str, float]:
        """Metrics of all splits.

        `forward` returns a batch's loss sums by modality (see `Decoder.loss_sums`).
        """
        if self._batches is None:
            self._batches = self._prepare()
        values: dict[str, float] = {}
        losses: dict[str, list[float]] = {}
        for name, batches in self._batches.items():
            split, _, suffix = name.partition("+")
            bar = make_bar(
                self._own(batches),
                desc=f"validation {name}",
                leave=False,
                disable=not self.progress,
                unit="batch",
            )
            sums_G2 = self.processes.sum(_total(forward, bar))
            parts = self.preparation.components.source.parts
            for metric, value in part_metrics(sums_G2, parts).items():
                values[f"validation/{split}/{metric}{suffix}"] = value
            for metric, value in modality_metrics(sums_G2).items():
                if metric in ("image_loss", "text_loss"):
                    values[f"validation/{split}/{metric}{suffix}"] = value
                elif metric == "loss":
                    losses.setdefault(suffix, []).append(value)
        of_use = losses.get("_retrieved") or losses.get("") or [math.nan]
        self.loss = sum(of_use) / len(of_use)
        return values

    def _own(self, batches: Sequence[TrainingBatch]) -> Sequence[TrainingBatch]:
        """This process's batches. All processes have equally many, because those that share a decoder
        compute together: the last batches are repeated with weight 0."""
        rank, number = self.processes.rank, self.processes.world_size
        own = list(batches[rank::number])
        if len(own) < -(-len(batches) // number):
            filler = batches[-1]
            own.append(replace(filler, weights_BT=filler.weights_BT * 0))
        return own

    def _prepare(self) -> dict[str, Sequence[TrainingBatch]]:
        section, components = self.preparation.recipe.train, self.preparation.components
        prepared: dict[str, Sequence[TrainingBatch]] = {}
        for split in self.splits:
            source = split_or_reason(components, split)
            if isinstance(source, str):
                if split in section.validation_splits:
                    tqdm.write(
                        f"note: validation split {split!r} is skipped: {source}", file=sys.stderr
                    )
                continue
            measured = spread(len(source), section.validation_documents)
            for suffix, retrieve in (("", False), ("_retrieved", True)):
                if retrieve and not self.preparation.retrieves:
                    continue
                data = self.preparation.sequences(
                    source, UnmaskedObjective(), retrieve=retrieve, training=False, only=measured
                )
                sequences = data.fitting(range(len(data)))
                if sequences:  # otherwise no document fits the context
                    prepared[f"{split}+{suffix}"] = self.preparation.pack(sequences)
        return prepared


def spread(total: int, number: int) -> list[int]:
    """At most `number` indices of 0..total-1, evenly spaced.

    >>> spread(10, 4), spread(2, 4)
    ([0, 3, 6, 9], [0, 1])
    """
    return sorted(
        {round(place) for place in np.linspace(0, total - 1, min(total, number)).tolist()}
    )


def _total(forward: Callable[[TrainingBatch], Tensor], batches: Iterable[TrainingBatch]) -> Tensor:
    sums: Tensor | None = None
    for batch in batches:
        part = forward(batch)
        sums = part if sums is None else sums + part
    assert sums is not None, "a split with documents gives batches"
    return sums


NUM_PROMPTS = 8


class SamplePictures:
    """A callback that generates sample pictures every `train.sample_every_steps` steps; `save` does whenever it is called.

    They go to `OUT/samples/step-N.png` and the trackers, sampled with the recipe's sampler. Prompts
    are texts from the data set's first validation split, or from the training documents if it has none;
    retrieved documents are prepended if the recipe retrieves. Generation does not use torch's random
    generators, so it does not affect training.

    Args:
        preparation: of the run.
        num_prompts: pictures generated each time.

    Raises:
        RecipeError: the recipe has no sampler.
    """

    def __init__(self, preparation: Preparation, num_prompts: int = NUM_PROMPTS) -> None:
        section(preparation.recipe, "sampler")
        self.preparation, self.num_prompts = preparation, num_prompts
        self._prepared: list[tuple[Request, PixelArray]] | None = None
        self._failed = False
        self._last: Path | None = None
        self._kept: PixelArray | None = None

    def __call__(self, state: TrainState) -> None:
        every = state.recipe.train.sample_every_steps
        if every is not None and state.step % every == 0:
            self.save(state)

    def save(self, state: TrainState) -> None:
        """Generate them now, unless it has failed before or this step has them."""
        path = state.out_dir / "samples" / f"step-{state.step:08d}.png"
        if self._failed or path == self._last:
            return
        self._last = path
        try:
            sheet = self.draw(state.components)
        except CM3Error as error:  # missing sample pictures must not end hours of training
            self._failed = True
            tqdm.write(f"note: sample pictures are skipped: {error}", file=sys.stderr)
            return
        images.save_png(path, sheet, {"step": str(state.step), "recipe": state.recipe.hash})
        state.trackers.picture(state.step, "samples", sheet)

    def draw(self, components: Components) -> PixelArray:
        """The sheet: one row per prompt, with the generated picture, what the codes keep of the real one (no model can draw
        it better), and the real one."""
        decoder = components.decoder.module
        engine = Engine(
            components.decoder,
            components.serializer,
            components.sampler,
            components.vocabulary,
            EngineOptions(max_text_tokens=self.preparation.recipe.data.max_text_tokens),
        )
        if self._prepared is None:
            self._prepared = self._prepare(engine)
        training = decoder.training
        decoder.eval()
        try:
            completions = engine.complete([request for request, _ in self._prepared])
        finally:
            decoder.train(training)
        codes = [
            segment.codes
            for completion in completions
            for segment in completion.document
            if isinstance(segment, Codes)
        ]
        drawn = components.image_tokenizer.decode(np.stack(codes))
        real = np.stack([real for _, real in self._prepared])
        if self._kept is None:
            tokenizer = components.image_tokenizer
            self._kept = tokenizer.decode(tokenizer.encode(real))
        rows = [list(row) for row in zip(drawn, self._kept, real, strict=True)]
        texts = [text_of(request.document) for request, _ in self._prepared]
        return sheets.grid(rows, row_labels=texts, column_labels=["drawn", "real codes", "real"])

    def _prepare(self, engine: Engine) -> list[tuple[Request, PixelArray]]:
        """Requests and real pictures of documents spread over the split.

        As many retrieved documents as fit are prepended.
        """
        preparation, components = self.preparation, self.preparation.components
        splits = (
            split_or_reason(components, name) for name in preparation.recipe.validation_splits
        )
        source = next((split for split in splits if not isinstance(split, str)), components.source)
        usable = [
            index
            for index in range(len(source))
            if self._prompt(source.document(index)) is not None
        ]
        prepared = []
        for seed, place in enumerate(spread(len(usable), self.num_prompts)):
            document = source.document(usable[place])
            prompt = self._prompt(document)
            assert prompt is not None
            retrieved = preparation.retrieved(prompt[:-1], exclude=own_names(source, usable[place]))
            requests = (
                Request(prompt, retrieved[:number], seed, truncate=True)
                for number in range(len(retrieved), -1, -1)
            )
            request = next(
                (request for request in requests if engine.fits(request)),
                Request(prompt, seed=seed, truncate=True),
            )
            picture = next(segment for segment in document if isinstance(segment, Image))
            prepared.append(
                (request, images.fit(picture.load(), components.image_tokenizer.image_size))
            )
        if not prepared:
            raise CM3Error(
                "data set",
                "no document has a text followed by a picture",
                "set train.sample_every_steps and train.sample_every_minutes to null",
            )
        return prepared

    @staticmethod
    def _prompt(document: Document) -> Document | None:
        """A document of texts and a final picture, with a hole for the picture; None for others."""
        texts, last = document[:-1], document[-1] if document else None
        if (
            not texts
            or not isinstance(last, Image)
            or not all(isinstance(segment, Text) for segment in texts)
        ):
            return None
        return (*document[:-1], ImageHole())
