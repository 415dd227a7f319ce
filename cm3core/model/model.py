"""`load` and `Model`: draw, describe and repair pictures with a trained checkpoint, in a few lines
of Python.

>>> import cm3core
>>> model = cm3core.load("bundled:emoji64")                                     # doctest: +SKIP
>>> pictures = model.generate("red apple, noto style", num_images=4, seed=1)    # doctest: +SKIP
>>> model.caption(pictures[0].pixels).text                                      # doctest: +SKIP
'red apple'

Every call only builds documents with holes (`cm3core.model.jobs`);
`cm3core.generation.engine.Engine` fills them. Many at once, from coroutines:
`cm3core.model.AsyncModel`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import numpy as np
import torch

from cm3core import images
from cm3core.config.overrides import in_place_of, with_options
from cm3core.document import (
    BoolArray,
    Codes,
    Document,
    Image,
    ImageHole,
    MaskedText,
    PixelArray,
    Segment,
    Text,
    TextHole,
    text_of,
)
from cm3core.errors import DataError, GenerationError, close_match
from cm3core.generation.engine import Completion, Engine, Event, Progress, Request, candidate_seed
from cm3core.interfaces.reranker import Candidate
from cm3core.model.crop import Box, VisibleSquare
from cm3core.model.jobs import Done, Task, results, run
from cm3core.model.results import (
    Choice,
    GeneratedImage,
    GeneratedText,
    ImageReady,
    InfilledImage,
    RetrievedDocument,
    Scored,
)
from cm3core.model.retrieval import InFront, with_memory

if TYPE_CHECKING:
    from cm3core.build import Components
    from cm3core.interfaces.reranker import Reranker, RerankerConfig
    from cm3core.interfaces.sampler import Sampler, SamplerConfig
    from cm3core.interfaces.upscaler import Upscaler, UpscalerConfig
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe

T = TypeVar("T")

#: The text before the picture that is to be edited, and that before one that is asked about (paper,
#: Table 5).
EDIT = "Edit first image following the instruction"
ASK = "Question: {question} Answer: {answer}."
#: Pixels of a preview that are not drawn yet, and how bright a mask's pixel is at least (0..255).
GREY, WHITE = 208, 127

#: RGB pixels uint8 [height, width, 3] of any size, or the file of a picture.
Picture: TypeAlias = PixelArray | str | Path

#: The model that is used when none is named.
DEFAULT_MODEL = "bundled:emoji64"


def load(
    model: str | Path = DEFAULT_MODEL,
    *,
    bank: str | Path | None = None,
    registry: Registry | None = None,
    device: torch.device | str = "cpu",
    num_threads: int | None = None,
    precision: str = "auto",
    max_rows: int = 64,
) -> Model:
    """Open a trained model.

    Args:
        model: a run's folder, one of its checkpoints, an exported model, or "PLUGIN:NAME" of a
            model that a plugin ships.
        bank: a memory bank to retrieve from in place of the recipe's memory, see
            `Model.with_memory`.
        registry: the components that recipes may name. None: those of the installed plugins.
        device: where the decoder runs.
        num_threads, precision, max_rows: see `Engine`.

    Raises:
        CheckpointError: nothing is there, or it is damaged.
        DataError: the bank can't be used.
        RecipeError, PluginError: its recipe needs what is not installed.
    """
    from cm3core.checkpoint import find_model, open_checkpoint
    from cm3core.plugins.discovery import load_registry

    registry = load_registry() if registry is None else registry
    opened = open_checkpoint(find_model(model, registry), registry, device=device)
    loaded = Model(
        opened.recipe,
        opened.components,
        name=str(model),
        step=opened.step,
        num_threads=num_threads,
        precision=precision,
        max_rows=max_rows,
    )
    return loaded if bank is None else loaded.with_memory(bank)


class Model:
    """A trained model. Every method gives equal results for equal arguments, whatever was called
    before.

    Methods that generate take these keyword arguments:

        seed                0..2**63-1; the same seed gives the same results
        num_retrieved       documents to retrieve from the model's memory and to put in front; None: as many as the recipe says
                            (none when `context` is given)
        context             (picture, text) pairs to put in front by hand, first of all
        num_candidates      results drawn for each one that is returned, the best by the reranker; None: `generate.num_candidates`
        reranker            name of another reranker than the recipe's, with its defaults
        sampler             name of another sampler than the recipe's; temperature and filters keep the recipe's values
        progress            called as the work goes on with (tokens drawn, most there can be)

    and the keys of the sampler, for that call:
    `model.generate("a red apple", guidance_scale=1.5, temperature=0.9)`.

    Args:
        recipe: the checkpoint's.
        components: what it builds, weights loaded.
        name: how the model was named to `load`.
        step: optimiser steps it was trained for.
        num_threads, precision, max_rows: see `Engine`.
    """

    def __init__(
        self,
        recipe: Recipe,
        components: Components,
        *,
        name: str = "",
        step: int = 0,
        num_threads: int | None = None,
        precision: str = "auto",
        max_rows: int = 64,
    ) -> None:
        self.recipe, self.components, self.name, self.step = recipe, components, name, step
        self.num_threads, self.precision, self.max_rows = num_threads, precision, max_rows
        self._in_front = InFront(recipe, components)
        self._engines: tuple[int, Engine] | None = None

    def with_memory(
        self, bank: str | Path | None = None, retriever: str | None = None, **settings: Any
    ) -> Model:
        """This model with another memory to retrieve from or the same searched otherwise. Weights
        are shared, nothing is trained.

        A recipe that retrieves nothing gets the retriever `dense`, one without an embedder that
        which the bank was built with.

        Args:
            bank: a folder of `cm3 memory build`. None: the memory that this model has.
            retriever: another one than the recipe's, by name; what all share (`RetrieverConfig`)
                keeps the recipe's values.
            settings: keys of the retriever to change, e.g. `num_retrieved=2`, `min_similarity=0.3`.

        Raises:
            DataError: the bank can't be opened, or was built with another embedder or image
                tokenizer.
            GenerationError: a key that the retriever does not have, or there is none and no bank,
                or no embedder that it needs.
            PluginError: no plugin brings that retriever.
        """
        return Model(
            *with_memory(self.recipe, self.components, bank, settings, retriever),
            name=self.name,
            step=self.step,
            num_threads=self.num_threads,
            precision=self.precision,
            max_rows=self.max_rows,
        )

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of what `generate` draws."""
        return self.components.image_tokenizer.image_size

    @property
    def engine(self) -> Engine:
        """The engine that completes all that this model is asked; it follows the decoder's weights
        when they change."""
        version = sum(parameter._version for parameter in self.components.decoder.parameters())
        if self._engines is None or self._engines[0] != version:
            parts = self.components
            engine = Engine(
                parts.decoder,
                parts.serializer,
                self.sampler_config().build(),
                parts.vocabulary,
                max_text_tokens=self.recipe.data.max_text_tokens,
                num_threads=self.num_threads,
                precision=self.precision,
                max_rows=self.max_rows,
            )
            self._engines = version, engine
        return self._engines[1]

    # ---- pictures

    def generate(
        self,
        prompt: str | Sequence[str],
        num_images: int | None = None,
        *,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[GeneratedImage]:
        """Draw pictures for a prompt.

        Args:
            prompt: what to draw, worded like the training captions; or several prompts, done in one
                batch.
            num_images: pictures for each prompt; None: the recipe's `generate.num_images`.
            progress, options: see `Model`. Documents are retrieved with the prompt as query. The
                first k pictures of a prompt are the same for any `num_images`, and whatever the
                other prompts. Also: truncate: read only the first `data.max_text_tokens` tokens of
                a longer prompt, as training did with captions. upscale: also enlarge them by the
                recipe's upscaler (True) or another one (its name).

        Returns:
            `num_images` pictures for each prompt, in order.

        Raises:
            GenerationError: an empty or too long prompt, a bad seed or count, no memory to retrieve
                from, no reranker.
            RecipeError: a sampler key that is not known, or a value out of range.
        """
        return list(self.stream(prompt, num_images, progress=progress, **options))

    def stream(
        self,
        prompt: str | Sequence[str],
        num_images: int | None = None,
        *,
        progress: Progress | None = None,
        **options: Any,
    ) -> Iterator[GeneratedImage]:
        """The pictures of `generate` with these arguments, in order, each as soon as it is drawn.

        Memory does not grow with `num_images`. What is wrong with the arguments is raised at once,
        not with the first picture.
        """
        tasks, total = self.image_tasks(prompt, num_images, **options)
        return results(self.engine, tasks, progress=progress, total=total)

    def events(
        self, prompt: str | Sequence[str], num_images: int | None = None, **options: Any
    ) -> Iterator[Event]:
        """What happens while `generate` works with these arguments: the events of `Engine.stream`
        for each candidate, `Scored` for each one when its picture's candidates are finished,
        `ImageReady` for each picture. Leaving the iterator ends it all.
        """
        tasks, total = self.image_tasks(prompt, num_images, **options)
        return self._told(run(self.engine, tasks, details=True, total=total))

    @staticmethod
    def _told(events: Iterator[Event]) -> Iterator[Event]:
        for event in events:
            if not isinstance(event, Done):
                yield event
                continue
            choice = event.result.choice
            if choice is not None:
                yield from (
                    Scored(event.request + place, score, choice.measure)
                    for place, score in enumerate(choice.scores)
                )
            yield ImageReady(event.request, event.result)

    def image_tasks(
        self,
        prompt: str | Sequence[str],
        num_images: int | None = None,
        *,
        seed: int = 0,
        truncate: bool = False,
        upscale: bool | str = False,
        **options: Any,
    ) -> tuple[Iterator[Task[GeneratedImage]], int]:
        """The tasks of `generate` with these arguments, one a picture, and how many tokens they
        draw."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        number = self.recipe.generate.num_images if num_images is None else num_images
        if number < 1:
            raise GenerationError("num_images", f"is {number}", "use 1 or more")
        for text in prompts:
            self._check_text("prompt", text, truncate=truncate)
        plan = self._plan(seed, options)
        requests = [Request((Text(text), ImageHole()), seed=seed) for text in prompts]
        in_front = self._put_in_front(plan, requests, [(Text(text),) for text in prompts])
        upscaler = self._upscaler(upscale)
        tasks = (
            plan.task(
                request,
                shown,
                self._image_of(text, shown, upscaler),
                first=place * plan.num_candidates,
            )
            for text, (request, shown) in zip(prompts, in_front, strict=True)
            for place in range(number)
        )
        return tasks, len(
            prompts
        ) * number * plan.num_candidates * self.components.serializer.num_codes

    def _image_of(
        self, prompt: str, shown: tuple[RetrievedDocument, ...], upscaler: Upscaler | None
    ) -> Callable[[Completion, int, Choice | None], GeneratedImage]:
        """Makes a picture of its chosen completion."""

        def make(completion: Completion, seed: int, choice: Choice | None) -> GeneratedImage:
            codes = _picture_of(completion.document)
            pixels = self.decode([codes])[0]
            return GeneratedImage(
                pixels,
                prompt,
                seed,
                shown,
                codes,
                completion.log_probability,
                choice,
                None if upscaler is None else upscaler.upscale(pixels),
            )

        return make

    def edit(
        self,
        picture: Picture,
        instruction: str,
        num_images: int | None = None,
        *,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[GeneratedImage]:
        """Draw a picture as an instruction changes it; for models tuned on editing (paper section
        4.1).

        Args:
            picture: any size; the model sees its largest centred square (in its own aspect).
            instruction: what to change.
            num_images: None: the recipe's `generate.num_images`.
            progress, options: see `generate`. Nothing is retrieved unless `num_retrieved` says so.
                Also: task_text: stands before the picture, as in tuning. sampler: None: `edit_cfg`,
                three guidance streams, where a plugin brings it.
        """
        tasks, total = self.edit_tasks(picture, instruction, num_images, **options)
        return list(results(self.engine, tasks, progress=progress, total=total))

    def edit_tasks(
        self,
        picture: Picture,
        instruction: str,
        num_images: int | None = None,
        *,
        seed: int = 0,
        truncate: bool = False,
        upscale: bool | str = False,
        task_text: str = EDIT,
        sampler: str | None = None,
        **options: Any,
    ) -> tuple[Iterator[Task[GeneratedImage]], int]:
        """The tasks of `edit` with these arguments, one a picture, and how many tokens they
        draw."""
        self._check_text("instruction", instruction, truncate=truncate)
        number = self.recipe.generate.num_images if num_images is None else num_images
        if number < 1:
            raise GenerationError("num_images", f"is {number}", "use 1 or more")
        if sampler is None and "edit_cfg" in self.components.registry.names("sampler"):
            sampler = "edit_cfg"
        options.setdefault("num_retrieved", 0)
        plan = self._plan(seed, options | {"sampler": sampler})
        document = (
            Text(task_text),
            self.encode([self._seen(picture)])[0],
            Text(instruction),
            ImageHole(),
        )
        [(request, shown)] = self._put_in_front(
            plan, [Request(document, seed=seed)], [(Text(instruction),)]
        )
        make = self._image_of(instruction, shown, self._upscaler(upscale))
        tasks = (
            plan.task(request, shown, make, first=place * plan.num_candidates)
            for place in range(number)
        )
        return tasks, number * plan.num_candidates * self.components.serializer.num_codes

    def infill(
        self,
        picture: Picture,
        box: Box | Sequence[Box] | None = None,
        text: str | None = None,
        *,
        mask: BoolArray | str | Path | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> InfilledImage:
        """Draw a part of a picture anew; codes that it doesn't touch stay exactly as they are.

        Args:
            picture: any size; the model sees its largest centred square (in its own aspect).
            box: (x0, y0, x1, y1) in pixels of the picture, x1 and y1 not included, inside what the
                model sees; or several boxes.
            text: of the whole picture as it should be. None: the model first writes one for what is
                left of the picture.
            mask: in place of a box any set of pixels: bool [height, width] of the picture, or a
                picture's file where it is white.
            progress, options: see `generate`. Documents are retrieved with the text as query, none
                without one.

        Raises:
            DataError: the picture or the mask can't be read.
            GenerationError: the region is empty, or outside of what the model sees.
        """
        task, total = self.infill_task(picture, box, text, mask=mask, **options)
        return next(results(self.engine, [task], progress=progress, total=total))

    def infill_task(
        self,
        picture: Picture,
        box: Box | Sequence[Box] | None = None,
        text: str | None = None,
        *,
        mask: BoolArray | str | Path | None = None,
        seed: int = 0,
        truncate: bool = False,
        **options: Any,
    ) -> tuple[Task[InfilledImage], int]:
        """The task of `infill` with these arguments, and how many tokens it draws at most."""
        whole = _pixels(picture)
        square, region_HW, missing = self._region(whole, box, mask)
        codes = replace(self.encode([self._seen(whole)])[0], missing=missing)
        if text is not None:
            self._check_text("text", text, truncate=truncate)
        first: Segment = self._text_hole(None) if text is None else Text(text)
        plan = self._plan(seed, options)
        [(request, shown)] = self._put_in_front(
            plan, [Request((first, codes), seed=seed)], [() if text is None else (Text(text),)]
        )
        rows, columns = np.flatnonzero(region_HW.any(1)), np.flatnonzero(region_HW.any(0))
        around = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

        def make(completion: Completion, own_seed: int, choice: Choice | None) -> InfilledImage:
            filled = _picture_of(completion.document)
            decoded = self.decode([filled])[0]
            return InfilledImage(
                square.pasted(whole, decoded, region_HW),
                decoded,
                filled,
                around,
                text_of(completion.document),
                own_seed,
                shown,
                completion.log_probability,
                choice,
            )

        total = plan.num_candidates * (
            int(missing.sum()) + (0 if text is not None else self._text_hole(None).max_tokens or 0)
        )
        return plan.task(request, shown, make), total

    def continue_image(
        self, picture: Picture, keep: int, text: str | None = None, **options: Any
    ) -> InfilledImage:
        """Keep the first `keep` rows of pixels of what the model sees of a picture, and draw all
        that is below, in drawing order.

        Args:
            picture, text, options: see `infill`.
            keep: rows of pixels of the picture, counted from the top of what the model sees; whole
                rows of codes are kept.
        """
        whole = _pixels(picture)
        x0, y0, x1, y1 = VisibleSquare(whole.shape[:2], self.image_size).pixels
        if not 0 <= keep < y1 - y0:
            raise GenerationError(
                "keep",
                f"is {keep}, the model sees {y1 - y0} rows of pixels",
                f"use 0 to {y1 - y0 - 1}",
            )
        return self.infill(whole, (x0, y0 + keep, x1, y1), text, **options)

    # ---- texts

    def caption(self, picture: Picture, **options: Any) -> GeneratedText:
        """Describe a picture; see `captions`."""
        return self.captions([picture], **options)[0]

    def captions(
        self, pictures: Sequence[Picture], *, progress: Progress | None = None, **options: Any
    ) -> list[GeneratedText]:
        """Describe pictures: the text in front of each picture is masked, and infilled after it
        (paper section 2.2).

        Args:
            pictures: any sizes; the model sees the largest centred square of each (in its own
                aspect).
            progress, options: see `Model`; the seed is of every description. Documents are
                retrieved with the picture as query. Also: max_tokens: longest text; None: the
                recipe's `generate.max_text_tokens`, at most `data.max_text_tokens`.

        Raises:
            DataError: a picture can't be read.
            GenerationError: it doesn't fit the context.
        """
        tasks, total = self.caption_tasks(pictures, **options)
        return list(results(self.engine, tasks, progress=progress, total=total))

    def caption_tasks(
        self, pictures: Sequence[Picture], *, max_tokens: int | None = None, **options: Any
    ) -> tuple[list[Task[GeneratedText]], int]:
        """The tasks of `captions` with these arguments, one a picture, and how many tokens they
        draw at most."""
        return self._text_tasks(pictures, (self._text_hole(max_tokens),), options)

    def ask(
        self, picture: Picture, question: str, *, progress: Progress | None = None, **options: Any
    ) -> GeneratedText:
        """Answer a question about a picture: the answer in the text before it is masked; for models
        tuned on questions.

        Args:
            picture: any size; the model sees its largest centred square (in its own aspect).
            question: the question.
            progress, options: see `captions`. Nothing is retrieved unless `num_retrieved` says so.
                Also: template: the text before the picture, as in tuning, with "{question}" and
                "{answer}" (paper, Table 5).
        """
        task, total = self.ask_task(picture, question, **options)
        return next(results(self.engine, [task], progress=progress, total=total))

    def ask_task(
        self,
        picture: Picture,
        question: str,
        *,
        template: str = ASK,
        max_tokens: int | None = None,
        **options: Any,
    ) -> tuple[Task[GeneratedText], int]:
        """The task of `ask` with these arguments, and how many tokens it draws at most."""
        if template.count("{answer}") != 1 or "{question}" not in template:
            raise GenerationError(
                "template", f"is {template!r}", "write one with {question} and one {answer}"
            )
        self._check_text("question", question, truncate=False)
        before, after = template.replace("{question}", question).split("{answer}")
        parts: tuple[str | TextHole, ...] = tuple(
            part for part in (before, self._text_hole(max_tokens), after) if part != ""
        )
        options.setdefault("num_retrieved", 0)
        [task], total = self._text_tasks([picture], parts, options)
        return task, total

    def _text_tasks(
        self,
        pictures: Sequence[Picture],
        parts: tuple[str | TextHole, ...],
        options: dict[str, Any],
    ) -> tuple[list[Task[GeneratedText]], int]:
        """Tasks whose result is what is written in the one hole of `parts`, which stand before each
        picture."""
        seen, seed = [self._seen(picture) for picture in pictures], options.pop("seed", 0)
        plan = self._plan(seed, options)
        hole = next(part for part in parts if isinstance(part, TextHole))
        first: Segment = hole if len(parts) == 1 else MaskedText(parts)
        requests = [Request((first, own), seed=seed) for own in self.encode(seen)]
        in_front = self._put_in_front(plan, requests, [(_image(pixels),) for pixels in seen])
        index = parts.index(hole)

        def task(request: Request, shown: tuple[RetrievedDocument, ...]) -> Task[GeneratedText]:
            def make(completion: Completion, own_seed: int, choice: Choice | None) -> GeneratedText:
                text = text_of(completion.document[:1])
                text = text[
                    len("".join(map(str, parts[:index]))) : len(text)
                    - len("".join(map(str, parts[index + 1 :])))
                ]
                return GeneratedText(text, own_seed, shown, completion.log_probability, choice)

            return plan.task(request, shown, make)

        return [task(*one) for one in in_front], len(requests) * plan.num_candidates * (
            hole.max_tokens or 0
        )

    # ---- any documents

    def complete(
        self,
        documents: Sequence[Document],
        *,
        retrieved: Sequence[Sequence[Document]] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        sampler: str | None = None,
        **options: Any,
    ) -> list[Completion]:
        """Fill the holes of any documents: text and pictures, whole or in part, in any order, many
        kinds in one batch.

        Args:
            documents: pictures as `Image` or `Codes`; at least one hole each.
            retrieved: for each document those to put in front. None: none.
            seed: of every document.
            progress, sampler, options: see `Model`; there are no candidates.

        Returns:
            one `Completion` a document; `decode` turns its `Codes` into pixels.
        """
        return self.engine.complete(
            self.requests(documents, retrieved=retrieved, seed=seed, sampler=sampler, **options),
            progress=progress,
        )

    def requests(
        self,
        documents: Sequence[Document],
        *,
        retrieved: Sequence[Sequence[Document]] | None = None,
        seed: int = 0,
        sampler: str | None = None,
        **options: Any,
    ) -> list[Request]:
        """What `complete` with these arguments asks of the engine; for `Engine.stream` and
        sessions."""
        in_front = [()] * len(documents) if retrieved is None else retrieved
        built = self.sampler_config(sampler, **options).build()
        return [
            Request(self.coded(document), [self.coded(other) for other in others], seed, built)
            for document, others in zip(documents, in_front, strict=True)
        ]

    # ---- pictures and codes

    def encode(self, pictures: Sequence[PixelArray]) -> list[Codes]:
        """Codes of pictures uint8 [height, width, 3] of the model's own size (`images.fit` makes
        them so)."""
        return self._in_front.encode(pictures)

    def coded(self, document: Document) -> Document:
        """The document with its pictures as codes; each picture is encoded once in the model's
        life."""
        return self._in_front.coded(document)

    def decode(self, codes: Sequence[Codes]) -> list[PixelArray]:
        """Pictures uint8 [height, width, 3] of codes."""
        # one by one, see `encode`
        return [self.components.image_tokenizer.decode(one.codes[None])[0] for one in codes]

    def preview(self, codes: Codes) -> PixelArray:
        """A picture in the making (`PictureGrown.codes`), uint8 [height, width, 3]: what is missing
        is grey."""
        if codes.missing is None or not codes.missing.any():
            return self.decode([codes])[0]
        rows, columns = codes.grid
        pixels = self.decode([Codes(np.where(codes.missing, 0, codes.codes), codes.grid)])[0].copy()
        height, width = pixels.shape[:2]
        missing = codes.missing.reshape(rows, columns)
        by_pixel = missing[np.arange(height) * rows // height][
            :, np.arange(width) * columns // width
        ]
        pixels[by_pixel] = GREY
        return pixels

    def _seen(self, picture: Picture) -> PixelArray:
        """A picture as the model sees it."""
        return images.fit(_pixels(picture), self.image_size)

    def _region(
        self,
        whole: PixelArray,
        box: Box | Sequence[Box] | None,
        mask: BoolArray | str | Path | None,
    ) -> tuple[VisibleSquare, BoolArray, BoolArray]:
        """What is to be drawn anew: pixels bool [height, width] of the picture, and codes bool
        [rows * columns]."""
        if (box is None) == (mask is None):
            raise GenerationError("infill", "takes a box or a mask", "give one of the two")
        square = VisibleSquare(whole.shape[:2], self.image_size)
        grid = self.components.image_tokenizer.grid
        if mask is not None:
            if isinstance(mask, (str, Path)):
                mask = images.open_image(mask).mean(2) > WHITE
            region_HW = np.asarray(mask, np.bool_)
            return square, region_HW, square.mask_cells(region_HW, grid)
        boxes = (
            [cast(Box, box)]
            if box and isinstance(box[0], int)
            else [cast(Box, one) for one in box or ()]
        )
        if not boxes:
            raise GenerationError(
                "box", "there is none", "give (x0, y0, x1, y1), or several of them"
            )
        missing = np.any([square.cells(one, grid) for one in boxes], axis=0)
        return square, square.mask_of(boxes), missing

    # ---- sampler, candidates, checks

    def _plan(self, seed: int, options: dict[str, Any]) -> _Plan:
        """What the options say, checked."""
        candidate_seed(seed, 0)
        names = ("num_candidates", "reranker", "sampler", "num_retrieved", "context")
        own = {name: options[name] for name in names if name in options}
        sampler = self.sampler_config(
            own.get("sampler"), **{key: options[key] for key in options if key not in names}
        ).build()
        number = own.get("num_candidates")
        number = self.recipe.generate.num_candidates if number is None else number
        if number < 1:
            raise GenerationError("num_candidates", f"is {number}", "use 1 or more")
        reranker = self.reranker(own.get("reranker")) if number > 1 else None
        context = [(self._seen(picture), text) for picture, text in own.get("context", ())]
        return _Plan(self, sampler, number, reranker, own.get("num_retrieved"), context)

    def _put_in_front(
        self, plan: _Plan, requests: Sequence[Request], queries: Sequence[Document]
    ) -> list[tuple[Request, tuple[RetrievedDocument, ...]]]:
        asked = [replace(request, sampler=plan.sampler) for request in requests]
        return self._in_front.of(self.engine, asked, queries, plan.num_retrieved, plan.context)

    def _check_text(self, place: str, text: str, *, truncate: bool) -> None:
        if not text.strip():
            raise GenerationError(place, "is empty", "say what the picture shows")
        number, limit = (
            len(self.components.text_tokenizer.encode(text)),
            self.recipe.data.max_text_tokens,
        )
        if number > limit and not truncate:
            raise GenerationError(
                place,
                f"is {number} tokens long; the model was trained on texts of at most {limit}, "
                f"in a context of {self.components.decoder.context_length}",
                "shorten it, or read only its beginning (truncate)",
            )

    def _text_hole(self, max_tokens: int | None) -> TextHole:
        if max_tokens is None:  # longer texts than in training are never meant
            return TextHole(
                min(self.recipe.generate.max_text_tokens, self.recipe.data.max_text_tokens)
            )
        if max_tokens < 1:
            raise GenerationError("max_tokens", f"is {max_tokens}", "use 1 or more")
        return TextHole(max_tokens)

    def sampler_config(self, sampler: str | None = None, /, **options: Any) -> SamplerConfig:
        """The sampler's config with some keys changed; raises `GenerationError` and `RecipeError`
        for what can't be.

        Args:
            sampler: name of another one than the recipe's; temperature and filters after mixing
                keep the recipe's values.
            options: keys to change.
        """
        config = self.recipe.sampler
        if sampler is not None and sampler != self.recipe.component_names.get("sampler"):
            chosen = self.components.registry.config_class("sampler", sampler, place="sampler")
            config = in_place_of(config, cast("type[SamplerConfig]", chosen))
        if config is None:
            raise GenerationError(
                f"recipe {self.recipe.name!r}",
                "has no section 'sampler'",
                "add 'sampler: {name: cfg}' to the recipe",
            )
        return with_options(config, options)

    def score(self, picture: GeneratedImage, reranker: str | None = None) -> float:
        """A drawn picture's score for its prompt, by the recipe's reranker or another one; see
        `Choice` for what scores are."""
        candidate = Candidate(
            (Text(picture.prompt), ImageHole()),
            (Text(picture.prompt), picture.codes),
            lambda codes: self.decode([codes])[0],
            (),
            picture.log_probability,
            0,
            picture.seed,
        )
        return self.reranker(reranker).score([candidate])[0]

    def reranker(self, name: str | None = None) -> Reranker:
        """The recipe's reranker, or the one of this name with its defaults; raises
        `GenerationError` where there is none."""
        if name is None or name == self.recipe.component_names.get("reranker"):
            reranker = self.components.reranker
            if reranker is None:
                known = close_match("", self.components.registry.names("reranker"))
                raise GenerationError(
                    "reranker",
                    f"the model's recipe {self.recipe.name!r} has none to choose candidates by",
                    f"name one (reranker); {known}",
                )
            return reranker
        config = cast(
            "RerankerConfig",
            self.components.registry.config_class("reranker", name, place="reranker")(),
        )
        config.check()
        return config.build(
            embedder=self.components.embedder, likelihood=self.components.likelihood
        )

    def _upscaler(self, upscale: bool | str) -> Upscaler | None:
        if upscale is False:
            return None
        if isinstance(upscale, str) and upscale != self.recipe.component_names.get("upscaler"):
            config = cast(
                "UpscalerConfig",
                self.components.registry.config_class("upscaler", upscale, place="upscale")(),
            )
            config.check()
            return config.build()
        if self.components.upscaler is None:
            known = close_match("", self.components.registry.names("upscaler"))
            raise GenerationError(
                "upscale",
                f"the model's recipe {self.recipe.name!r} has no upscaler",
                f"name one; {known}",
            )
        return self.components.upscaler


@dataclass(eq=False)
class _Plan:
    """How the results of one call are drawn and chosen."""

    model: Model
    sampler: Sampler
    num_candidates: int
    reranker: Reranker | None
    num_retrieved: int | None
    context: list[tuple[PixelArray, str]]

    def task(
        self,
        request: Request,
        shown: tuple[RetrievedDocument, ...],
        make: Callable[[Completion, int, Choice | None], T],
        *,
        first: int = 0,
    ) -> Task[T]:
        """The task of one result; its candidates are `first`, `first` + 1, ... of the request's."""
        requests = [
            replace(
                request,
                seed=candidate_seed(request.seed, index),
                sampler=self.sampler.for_candidate(index),
            )
            for index in range(first, first + self.num_candidates)
        ]

        def finish(completions: Sequence[Completion]) -> T:
            if self.reranker is None:
                return make(completions[0], requests[0].seed, None)
            decode = self.model.decode
            scores = self.reranker.score(
                [
                    Candidate(
                        one.document,
                        completion.document,
                        lambda codes: decode([codes])[0],
                        tuple(one.retrieved),
                        completion.log_probability,
                        completion.num_tokens,
                        one.seed,
                    )
                    for one, completion in zip(requests, completions, strict=True)
                ]
            )
            best = max(range(len(scores)), key=scores.__getitem__)
            return make(
                completions[best],
                requests[best].seed,
                Choice(tuple(scores), best, self.reranker.measure),
            )

        return Task(requests, finish)


def _pixels(picture: Picture) -> PixelArray:
    """Pixels of a picture given as an array or a file."""
    if isinstance(picture, (str, Path)):
        return images.open_image(picture)
    is_array = isinstance(picture, np.ndarray)
    if (
        is_array
        and picture.dtype == np.uint8
        and picture.ndim == 3
        and picture.shape[2] == 3
        and picture.size
    ):
        return picture
    shown = f"{picture.dtype} {list(picture.shape)}" if is_array else type(picture).__name__
    raise DataError(
        "picture", f"is {shown}", "pass a file's path, or RGB pixels as uint8 [height, width, 3]"
    )


def _image(pixels: PixelArray) -> Image:
    """A picture by reference whose key is its content."""
    import hashlib

    return Image("sha256:" + hashlib.sha256(pixels.tobytes()).hexdigest(), lambda: pixels)


def _picture_of(document: Document) -> Codes:
    """The last picture of a filled document."""
    return next(segment for segment in reversed(document) if isinstance(segment, Codes))
