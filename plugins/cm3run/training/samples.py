"""Sample pictures during training, next to the real ones, for the same held-out prompts each time."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from cm3core import images
from cm3core.document import Codes, Document, Image, ImageHole, PixelArray, Text, text_of
from cm3core.errors import CM3Error
from cm3run.build import Components, section, split_or_reason
from cm3run.generation.engine import Engine, Request
from cm3run.training.neighbours import own_names
from cm3run.training.validation import spread

if TYPE_CHECKING:
    from cm3run.training.preparation import Preparation
    from cm3run.training.state import TrainState

NUM_PROMPTS = 8


class SamplePictures:
    """A callback that generates sample pictures every `train.sample_every_steps` steps.

    They go to `OUT/samples/step-N.png` and the trackers, sampled with the recipe's sampler. Prompts
    are the texts of the first validation split that the data set has, else of the training documents;
    retrieved documents are prepended if the recipe retrieves. Generation uses no random generator of
    torch, so it does not affect training.

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

    def __call__(self, state: TrainState) -> None:
        every = state.recipe.train.sample_every_steps
        if self._failed or every is None or state.step % every:
            return
        try:
            sheet = self.draw(state.components)
        except CM3Error as error:  # missing sample pictures are no reason to end hours of training
            self._failed = True
            tqdm.write(f"note: sample pictures are left out: {error}", file=sys.stderr)
            return
        path = state.out_dir / "samples" / f"step-{state.step:08d}.png"
        images.save_png(path, sheet, {"step": str(state.step), "recipe": state.recipe.hash})
        state.trackers.picture(state.step, "samples", sheet)

    def draw(self, components: Components) -> PixelArray:
        """The sheet: a row per prompt, with the generated and the real picture."""
        decoder = components.decoder.module
        engine = Engine(
            components.decoder,
            components.serializer,
            components.sampler,
            components.vocabulary,
            max_text_tokens=self.preparation.recipe.data.max_text_tokens,
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
        rows = [[picture, real] for picture, (_, real) in zip(drawn, self._prepared, strict=True)]
        texts = [text_of(request.document) for request, _ in self._prepared]
        return images.grid(rows, row_labels=texts, column_labels=["drawn", "real"])

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
                "set train.sample_every_steps=null",
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
