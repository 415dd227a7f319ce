"""`load` and `Model`: draw, describe and repair pictures with a trained checkpoint, in a few lines of Python.

>>> import cm3core
>>> model = cm3core.load("bundled:emoji64")                                     # doctest: +SKIP
>>> pictures = model.generate("red apple, noto style", num_images=4, seed=1)    # doctest: +SKIP
>>> model.caption(pictures[0].pixels).text                                      # doctest: +SKIP
'red apple'

Every call only builds documents with holes; `cm3core.generate.Engine` fills them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from tqdm import tqdm

from cm3core import images
from cm3core.boxes import Box, VisibleSquare
from cm3core.document import Codes, Document, Image, ImageHole, PixelArray, Segment, Text, TextHole, text_of
from cm3core.errors import CheckpointError, DataError, GenerationError, close_match
from cm3core.generate import Completion, Engine, Progress, Request, candidate_seed
from cm3core.results import GeneratedImage, GeneratedText, InfilledImage, RetrievedDocument
from cm3core.sampler_options import with_options

if TYPE_CHECKING:
    from cm3core.build import Components
    from cm3core.interfaces.retriever import Retrieved
    from cm3core.interfaces.sampler import SamplerConfig
    from cm3core.plugins import Registry
    from cm3core.recipe import Recipe

#: RGB pixels uint8 [height, width, 3] of any size, or the file of a picture.
Picture: TypeAlias = PixelArray | str | Path

#: The model that is used when none is named.
DEFAULT_MODEL = "bundled:emoji64"


def bundled_models(registry: Registry | None = None) -> dict[str, Path]:
    """Model folders that the installed plugins ship: "PLUGIN:NAME" -> folder. None: the installed plugins' registry."""
    if registry is None:
        from cm3core.plugins import load_registry

        registry = load_registry()
    return registry.models()


def find_model(model: str | Path, registry: Registry) -> Path:
    """The folder of a model: a path (a run, a checkpoint, an exported model), or "PLUGIN:NAME" of a model that a plugin ships."""
    shipped = bundled_models(registry)
    if str(model) in shipped:
        return shipped[str(model)]
    if re.fullmatch(r"[\w-]+:[\w.-]+", str(model)) and not Path(model).exists():
        step = close_match(str(model), shipped) if shipped else "train one (cm3 quickstart, cm3 train) and name its folder"
        raise CheckpointError(f"model {str(model)!r}", "no installed plugin ships it", step)
    return Path(model)


def load(model: str | Path = DEFAULT_MODEL, *, registry: Registry | None = None, device: torch.device | str = "cpu",
         num_threads: int | None = None) -> Model:
    """Open a trained model.

    Args:
        model: a run's folder, one of its checkpoints, an exported model, or "PLUGIN:NAME" of a model that a plugin ships.
        registry: the components that recipes may name. None: those of the installed plugins.
        device: where the decoder runs.
        num_threads: see `Engine`.

    Raises:
        CheckpointError: nothing is there, or it is damaged.
        RecipeError, PluginError: its recipe needs what is not installed.
    """
    from cm3core.checkpoint import open_checkpoint
    from cm3core.plugins import load_registry

    registry = load_registry() if registry is None else registry
    opened = open_checkpoint(find_model(model, registry), registry, device=device)
    return Model(opened.recipe, opened.components, name=str(model), step=opened.step, num_threads=num_threads)


class Model:
    """A trained model. Every method gives equal results for equal arguments, whatever was called before.

    Methods that generate take the keys of the recipe's section `sampler` as keyword arguments, for that call only:
    `model.generate("a red apple", guidance_scale=1.5, temperature=0.9)`.

    Args:
        recipe: the checkpoint's.
        components: what it builds, weights loaded.
        name: how the model was named to `load`.
        step: optimiser steps it was trained for.
        num_threads: see `Engine`.
    """

    def __init__(self, recipe: Recipe, components: Components, *, name: str = "", step: int = 0,
                 num_threads: int | None = None) -> None:
        self.recipe, self.components, self.name, self.step, self.num_threads = recipe, components, name, step, num_threads
        self._codes: dict[str, Codes] = {}  # of retrieved documents' pictures, by key

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of what `generate` draws."""
        return self.components.image_tokenizer.image_size

    # ---- what can be asked

    def generate(self, prompt: str | Sequence[str], num_images: int | None = None, *, seed: int = 0,
                 num_retrieved: int | None = None, context: Sequence[tuple[Picture, str]] = (), truncate: bool = False,
                 progress: Progress | None = None, **sampler: Any) -> list[GeneratedImage]:
        """Draw pictures for a prompt.

        Args:
            prompt: what to draw, worded like the training captions; or several prompts, done in one batch.
            num_images: pictures for each prompt; None: the recipe's `generate.num_images`.
            seed: 0..2**63-1. The first k pictures of a prompt are the same for any `num_images`, and whatever the other prompts.
            num_retrieved: documents to retrieve from the model's memory with the prompt as query and to put in front; None: as
                many as the recipe says (none when `context` is given).
            context: (picture, text) pairs to put in front, first of all.
            truncate: read only the first `data.max_text_tokens` tokens of a longer prompt, as training did with captions.
            progress: called as the work goes on.
            sampler: keys of the recipe's section `sampler`, for this call.

        Returns:
            `num_images` pictures for each prompt, in order.

        Raises:
            GenerationError: an empty or too long prompt, a bad seed or count, no memory to retrieve from.
            RecipeError: a sampler key that is not known, or a value out of range.
        """
        return list(self.stream(prompt, num_images, seed=seed, num_retrieved=num_retrieved, context=context, truncate=truncate,
                                progress=progress, **sampler))

    def stream(self, prompt: str | Sequence[str], num_images: int | None = None, *, seed: int = 0,
               num_retrieved: int | None = None, context: Sequence[tuple[Picture, str]] = (), truncate: bool = False,
               progress: Progress | None = None, **sampler: Any) -> Iterator[GeneratedImage]:
        """The pictures of `generate` with these arguments, each as soon as the batch that it is drawn in is finished.

        Memory does not grow with `num_images`. What is wrong with the arguments is raised at once, not with the first picture.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        number = self.recipe.generate.num_images if num_images is None else num_images
        if number < 1:
            raise GenerationError("num_images", f"is {number}", "use 1 or more")
        candidate_seed(seed, 0)
        for text in prompts:
            self._check_text("prompt", text, truncate=truncate)
        engine = self._engine(sampler)
        requests = [Request((Text(text), ImageHole()), seed=seed) for text in prompts]
        in_front = self._in_front(engine, requests, [(Text(text),) for text in prompts], num_retrieved, context)
        candidates = ((replace(request, seed=candidate_seed(seed, index)), shown)
                      for request, shown in in_front for index in range(number))
        return self._drawn(engine, candidates, number * len(prompts), progress)

    def _drawn(self, engine: Engine, candidates: Iterator[tuple[Request, tuple[RetrievedDocument, ...]]], number: int,
               progress: Progress | None) -> Iterator[GeneratedImage]:
        """Pictures of `number` requests that have as many codes to draw each, with what stands in front of them."""
        done = 0

        def show(drawn: int, total: int) -> None:
            if progress is not None:  # of this batch -> of all
                each = total // len(batch)
                progress(done * each + drawn, number * each)

        while batch := list(islice(candidates, engine.batch_size)):
            completions = engine.complete([request for request, _ in batch], progress=show)
            drawn = [_picture_of(completion.document) for completion in completions]
            for (request, shown), completion, codes, pixels in zip(batch, completions, drawn, self.decode(drawn), strict=True):
                yield GeneratedImage(pixels, text_of(request.document), request.seed, shown, codes, completion.log_probability)
            done += len(batch)

    def caption(self, picture: Picture, *, seed: int = 0, max_tokens: int | None = None, num_retrieved: int | None = None,
                context: Sequence[tuple[Picture, str]] = (), progress: Progress | None = None, **sampler: Any) -> GeneratedText:
        """Describe a picture; see `captions`."""
        return self.captions([picture], seed=seed, max_tokens=max_tokens, num_retrieved=num_retrieved, context=context,
                             progress=progress, **sampler)[0]

    def captions(self, pictures: Sequence[Picture], *, seed: int = 0, max_tokens: int | None = None,
                 num_retrieved: int | None = None, context: Sequence[tuple[Picture, str]] = (), progress: Progress | None = None,
                 **sampler: Any) -> list[GeneratedText]:
        """Describe pictures: the text in front of each picture is masked, and infilled after it (paper section 2.2).

        Args:
            pictures: any sizes; the model sees the largest centred square of each (in its own aspect).
            seed: of every description.
            max_tokens: longest text; None: the recipe's `generate.max_text_tokens`, at most `data.max_text_tokens`.
            num_retrieved: documents to retrieve with the picture as query; None: as many as the recipe says.
            context: (picture, text) pairs to put in front.
            progress: called as the work goes on.
            sampler: keys of the recipe's section `sampler`, for this call.

        Raises:
            DataError: a picture can't be read.
            GenerationError: it doesn't fit the context.
        """
        seen = [self._seen(picture) for picture in pictures]
        codes = self.encode(seen)
        hole = self._text_hole(max_tokens)
        queries: list[Document] = [(_image(pixels),) for pixels in seen]
        engine = self._engine(sampler)
        in_front = self._in_front(engine, [Request((hole, own), seed=seed) for own in codes], queries, num_retrieved, context)
        completions = engine.complete([request for request, _ in in_front], progress=progress)
        return [GeneratedText(text_of(completion.document), seed, retrieved, completion.log_probability)
                for completion, (_, retrieved) in zip(completions, in_front, strict=True)]

    def infill(self, picture: Picture, box: Box, text: str | None = None, *, seed: int = 0, num_retrieved: int | None = None,
               context: Sequence[tuple[Picture, str]] = (), truncate: bool = False, progress: Progress | None = None,
               **sampler: Any) -> InfilledImage:
        """Draw a box of a picture anew; codes that the box doesn't touch stay exactly as they are.

        Args:
            picture: any size; the model sees its largest centred square (in its own aspect).
            box: (x0, y0, x1, y1) in pixels of the picture, x1 and y1 not included; inside what the model sees.
            text: of the whole picture as it should be. None: the model first writes one for what is left of the picture.
            seed: the seed.
            num_retrieved: documents to retrieve with the text as query; None: as many as the recipe says (none without a text).
            context: (picture, text) pairs to put in front.
            truncate: read only the first `data.max_text_tokens` tokens of a longer text.
            progress: called as the work goes on.
            sampler: keys of the recipe's section `sampler`, for this call.

        Raises:
            DataError: the picture can't be read.
            GenerationError: the box is empty, or outside of what the model sees.
        """
        whole = _pixels(picture)
        square = VisibleSquare(whole.shape[:2], self.image_size)
        missing = square.cells(box, self.components.image_tokenizer.grid)
        codes = replace(self.encode([self._seen(whole)])[0], missing=missing)
        if text is not None:
            self._check_text("text", text, truncate=truncate)
        first: Segment = self._text_hole(None) if text is None else Text(text)
        query: Document = () if text is None else (Text(text),)
        engine = self._engine(sampler)
        [(request, retrieved)] = self._in_front(engine, [Request((first, codes), seed=seed)], [query], num_retrieved, context)
        [completion] = engine.complete([request], progress=progress)
        filled = _picture_of(completion.document)
        decoded = self.decode([filled])[0]
        return InfilledImage(square.pasted(whole, decoded, box), decoded, filled, box, text_of(completion.document), seed,
                             retrieved, completion.log_probability)

    def complete(self, documents: Sequence[Document], *, retrieved: Sequence[Sequence[Document]] | None = None, seed: int = 0,
                 progress: Progress | None = None, **sampler: Any) -> list[Completion]:
        """Fill the holes of any documents: text and pictures, whole or in part, in any order, many kinds in one batch.

        Args:
            documents: pictures as `Image` or `Codes`; at least one hole each.
            retrieved: for each document those to put in front. None: none.
            seed: of every document.
            progress: called as the work goes on.
            sampler: keys of the recipe's section `sampler`, for this call.

        Returns:
            one `Completion` a document; `decode` turns its `Codes` into pixels.
        """
        in_front = [()] * len(documents) if retrieved is None else retrieved
        requests = [Request(self._coded(document), [self._coded(other) for other in others], seed)
                    for document, others in zip(documents, in_front, strict=True)]
        return self._engine(sampler).complete(requests, progress=progress)

    # ---- pictures and codes

    def encode(self, pictures: Sequence[PixelArray]) -> list[Codes]:
        """Codes of pictures uint8 [height, width, 3] of the model's own size (`images.fit` makes them so)."""
        tokenizer = self.components.image_tokenizer  # one by one: in a batch, the last bits depend on how many there are
        return [Codes(tokenizer.encode(np.stack([pixels]))[0], tokenizer.grid) for pixels in pictures]

    def decode(self, codes: Sequence[Codes]) -> list[PixelArray]:
        """Pictures uint8 [height, width, 3] of codes."""
        return [self.components.image_tokenizer.decode(one.codes[None])[0] for one in codes]  # one by one, see `encode`

    def _seen(self, picture: Picture) -> PixelArray:
        """A picture as the model sees it."""
        return images.fit(_pixels(picture), self.image_size)

    def _coded(self, document: Document) -> Document:
        """The document with its pictures as codes; each picture is encoded once in the model's life."""
        new = {segment.key: segment for segment in document if isinstance(segment, Image) and segment.key not in self._codes}
        codes = self.encode([images.fit(segment.load(), self.image_size) for segment in new.values()])
        self._codes.update(zip(new, codes, strict=True))
        return tuple(self._codes[segment.key] if isinstance(segment, Image) else segment for segment in document)

    # ---- what stands in front

    def _in_front(self, engine: Engine, requests: Sequence[Request], queries: Sequence[Document], num_retrieved: int | None,
                  context: Sequence[tuple[Picture, str]]) -> list[tuple[Request, tuple[RetrievedDocument, ...]]]:
        """Each request with documents in front of it, and these as they are shown. An empty query retrieves nothing.

        Of the documents retrieved as many stay, from the first on, as the decoder's context holds; in training it is the same.
        """
        number = self._num_retrieved(num_retrieved, bool(context))
        by_hand: list[tuple[Document, RetrievedDocument]] = []
        for place, (picture, text) in enumerate(context):
            pixels = self._seen(picture)
            by_hand.append(((Text(text), self.encode([pixels])[0]), RetrievedDocument(f"context {place}", None, text, pixels)))
        result, left_out = [], 0
        for request, found in zip(requests, self._retrieve(queries, number), strict=True):
            chosen = list(by_hand)
            for rank, one in enumerate(found):
                chosen.append(self._retrieved(one))
                if not engine.fits(replace(request, retrieved=[document for document, _ in chosen])):
                    chosen.pop()
                    left_out = max(left_out, len(found) - rank)
                    break
            result.append((replace(request, retrieved=[document for document, _ in chosen]), tuple(shown for _, shown in chosen)))
        if left_out:
            tqdm.write(f"note: the decoder's context of {self.components.decoder.context_length} tokens has no room for the last "
                       f"{left_out} of {number} retrieved documents; they are left out", file=sys.stderr)
        return result

    def _retrieve(self, queries: Sequence[Document], number: int) -> list[list[Retrieved]]:
        """The nearest documents of the memory for each query, best first."""
        found: list[list[Retrieved]] = [[] for _ in queries]
        asked = [place for place, query in enumerate(queries) if query]
        if number == 0 or not asked:
            return found
        retriever = self.components.retriever
        assert retriever is not None
        for place, results in zip(asked, retriever.retrieve([queries[place] for place in asked], number), strict=True):
            found[place] = results
        return found

    def _retrieved(self, found: Retrieved) -> tuple[Document, RetrievedDocument]:
        """A document of the memory, as codes and as it is shown."""
        retriever = self.components.retriever
        assert retriever is not None
        document = retriever.memory.document(found.index)
        picture = next((segment for segment in document if isinstance(segment, Image)), None)
        pixels = None if picture is None else images.fit(picture.load(), self.image_size)
        return self._coded(document), RetrievedDocument(found.id, found.score, text_of(document), pixels)

    def _num_retrieved(self, asked: int | None, has_context: bool) -> int:
        """How many documents to retrieve when the caller asked for so many (None: did not say)."""
        config = self.recipe.retriever
        has_memory = config is not None and self.recipe.component_names["retriever"].rpartition("/")[2] != "none"
        if asked is None:
            return config.num_retrieved if config and has_memory and self.recipe.generate.retrieve and not has_context else 0
        if asked < 0:
            raise GenerationError("num_retrieved", f"is {asked}", "use 0 or more")
        if asked > 0 and not has_memory:
            raise GenerationError("num_retrieved", f"is {asked}, but the model's recipe {self.recipe.name!r} has no retriever",
                                  "use 0, or give documents by hand (context)")
        return asked

    # ---- text and sampler

    def _check_text(self, place: str, text: str, *, truncate: bool) -> None:
        if not text.strip():
            raise GenerationError(place, "is empty", "say what the picture shows")
        number, limit = len(self.components.text_tokenizer.encode(text)), self.recipe.data.max_text_tokens
        if number > limit and not truncate:
            raise GenerationError(place, f"is {number} tokens long; the model was trained on texts of at most {limit}, "
                                  f"in a context of {self.components.decoder.context_length}",
                                  "shorten it, or read only its beginning (truncate)")

    def _text_hole(self, max_tokens: int | None) -> TextHole:
        if max_tokens is None:  # longer texts than in training are never meant
            return TextHole(min(self.recipe.generate.max_text_tokens, self.recipe.data.max_text_tokens))
        if max_tokens < 1:
            raise GenerationError("max_tokens", f"is {max_tokens}", "use 1 or more")
        return TextHole(max_tokens)

    def sampler_config(self, **sampler: Any) -> SamplerConfig:
        """The recipe's sampler with some keys changed; raises `GenerationError` and `RecipeError` for what can't be."""
        if self.recipe.sampler is None:
            raise GenerationError(f"recipe {self.recipe.name!r}", "has no section 'sampler'",
                                  "add 'sampler: {name: cfg}' to the recipe")
        return with_options(self.recipe.sampler, sampler)

    def _engine(self, sampler: Mapping[str, Any]) -> Engine:
        parts = self.components
        return Engine(parts.decoder, parts.serializer, self.sampler_config(**sampler).build(), parts.vocabulary,
                      max_text_tokens=self.recipe.data.max_text_tokens, num_threads=self.num_threads)


def _pixels(picture: Picture) -> PixelArray:
    """Pixels of a picture given as an array or a file."""
    if isinstance(picture, (str, Path)):
        return images.open_image(picture)
    is_array = isinstance(picture, np.ndarray)
    if is_array and picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and picture.size:
        return picture
    shown = f"{picture.dtype} {list(picture.shape)}" if is_array else type(picture).__name__
    raise DataError("picture", f"is {shown}", "pass a file's path, or RGB pixels as uint8 [height, width, 3]")


def _image(pixels: PixelArray) -> Image:
    """A picture by reference whose key is its content."""
    import hashlib

    return Image("sha256:" + hashlib.sha256(pixels.tobytes()).hexdigest(), lambda: pixels)


def _picture_of(document: Document) -> Codes:
    """The last picture of a filled document."""
    return next(segment for segment in reversed(document) if isinstance(segment, Codes))
