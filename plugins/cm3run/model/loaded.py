"""A loaded checkpoint: its recipe and components, and the engine that runs its decoder.

Also converts pictures and texts to the decoder's input and back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, cast

import numpy as np

from cm3core import images
from cm3core.arguments import Range, checked
from cm3core.config.overrides import in_place_of, with_options
from cm3core.document import (
    Codes,
    Document,
    Image,
    IntArray,
    MaskedText,
    PixelArray,
    Pixels,
    Text,
    TextHole,
    as_codes,
)
from cm3core.errors import DataError, GenerationError
from cm3core.files import open_regular
from cm3core.plugins.registry import built, finder
from cm3core.recipe.recipe import MissingComponent
from cm3core.recipe.sections import MOST_AHEAD
from cm3run.generation.engine import Engine, EngineOptions
from cm3run.generation.prepare import MAX_THREADS, SHORTEN_OR_TRUNCATE, too_long
from cm3run.life import most_new_tokens
from cm3run.model.precision import arranged, held_out
from cm3run.model.searching import ReadDocuments, SearchCache
from cm3run.prompting import AnsweringRetrieverConfig
from cm3run.tasks import TunedTasks

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import Original
    from cm3core.interfaces.image_tokenizer import ImageTokenizer
    from cm3core.interfaces.sampler import Sampler, SamplerConfig
    from cm3core.recipe import Recipe
    from cm3run.build import Components
    from cm3run.checkpoint.words import TrainingWords
    from cm3run.model.results import RetrievedDocument

_log = logging.getLogger(__name__)

#: RGB pixels uint8 [height, width, 3] of any size, or the file of a picture.
Picture: TypeAlias = Pixels | str | Path
#: Number of CPU threads of torch.
Threads = Annotated[int, Range(1, MAX_THREADS)]
#: Precision of a decoder's weights during generation.
Precision: TypeAlias = Literal["auto", "fp32", "bf16", "int8", "int4"]
#: Codes of a picture drawn per step.
Parallel: TypeAlias = Annotated[int, Range(1, MOST_AHEAD)] | Literal["auto", "off"]
#: Pictures whose codes a model caches; each takes a few KB.
MOST_CODED = 65_536
#: Grey level of pixels in a preview that are not generated yet.
GREY = 208


class Loaded:
    """A trained model's parts, shared by all its methods.

    Args:
        recipe: the checkpoint's.
        components: built from it, with the weights loaded.
        options: of its engine. The recipe sets the maximum length of texts.
        tasks: the tasks it was tuned for.
    """

    #: As the model was opened: a path, or `bundled:NAME`; "": it was not opened by name.
    name = ""
    #: The words of the training texts; None: unknown.
    words: TrainingWords | None = None
    #: Maximum pictures of one call, and candidates of one result, that are kept until the last is drawn. Guards against
    #: mistyped numbers, which would take hours and all memory. Change it on the model.
    max_pictures = 10_000
    #: Called with messages for the user, such as the measured and chosen precision or a structure that was not in
    #: training; logs them by default.
    told: Callable[[str], None] = staticmethod(_log.info)

    def __init__(
        self,
        recipe: Recipe,
        components: Components,
        options: EngineOptions,
        tasks: TunedTasks | None = None,
    ) -> None:
        self.recipe, self.components = recipe, components
        self.tasks = TunedTasks() if tasks is None else tasks
        most = recipe.data.max_text_tokens
        self.options = replace(options, max_text_tokens=most)
        self._engine: tuple[int, Engine] | None = None  # with the version of its weights
        self._codes: dict[str, Codes] = {}  # of pictures, by key
        self.searches, self.documents = SearchCache(), ReadDocuments()

    @checked(GenerationError)
    def unknown_words(self, text: str) -> dict[str, str | None]:
        """The words of a prompt that occur in no training text, in order, each with the most similarly spelled
        training word (None: none is close).

        The model draws something for such words too, but can't know their meaning. Empty if the checkpoint has no word
        list: older checkpoints, and data sets of more than two million documents.
        """
        if self.words is None:
            return {}
        return {word: self.words.nearest(word) for word in self.words.unknown(text)}

    @checked(GenerationError)
    def query_text(self, prompt: str) -> str:
        """The search query for a prompt, see the section `prompt_rewriter`."""
        return self.components.prompt_rewriter.rewrite(prompt, self.known_words)

    @checked(GenerationError)
    def thing_asked_for(self, prompt: str) -> str:
        """The part of `query_text` that names the object to draw; the rest is style."""
        return self.query_text(self.components.prompt_rewriter.subject(prompt))

    @property
    def known_words(self) -> frozenset[str] | None:
        """The words of the training texts, lower case; None: unknown."""
        return None if self.words is None else self.words.words

    @property
    def answers(self) -> bool:
        """Whether pictures carry what the memory has for their prompt, and some are found instead of drawn."""
        config = self.recipe.retriever
        return isinstance(config, AnsweringRetrieverConfig) and config.answers

    @property
    def knows_meanings(self) -> bool:
        """Whether the retriever finds things by other words than their names."""
        return self.answers or hasattr(self.recipe.retriever, "unknown_below")

    @cached_property
    def recipe_hash(self) -> str:
        """`Recipe.hash` of the model's recipe, computed at the first call (30 ms) and cached for every picture's
        metadata."""
        return self.recipe.hash

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the pictures that `generate` returns."""
        return self.components.image_tokenizer.image_size

    @property
    def engine(self) -> Engine:
        """The engine that completes all requests to this model.

        It is rebuilt when the decoder's weights change.
        """
        decoder, version = self.components.for_engine()
        if self._engine is None or self._engine[0] != version:
            parts = self.components
            self._engine = None  # free the old inference decoder before making the new one
            engine = Engine(
                decoder,
                parts.serializer,
                sampler_of(self),
                parts.vocabulary,
                self.options,
                inference=arranged(
                    decoder,
                    self.options.precision,
                    lambda: held_out(parts, self.recipe.data.max_text_tokens),
                    parts.vocabulary,
                    self.told,
                ),
            )
            self._engine = version, engine
        return self._engine[1]

    @checked(GenerationError)
    def sampler_config(self, sampler: str | None = None, /, **options: Any) -> SamplerConfig:
        """The sampler's config with some keys changed.

        Args:
            sampler: name of a sampler to use instead of the recipe's; temperature and filters
                after mixing keep the recipe's values.
            options: keys to change. A key that holds a sampler takes another sampler's name.

        Raises:
            GenerationError, RecipeError: the sampler, a key or a value is not valid.
        """
        config = self.recipe.sampler
        if isinstance(config, MissingComponent):
            config.refuse()  # the engine needs it, whichever sampler a request names
        own = self.recipe.component_names.get("sampler", "")
        if sampler is not None and sampler != own:
            chosen = self.components.registry.config_class("sampler", sampler, place="sampler")
            config = in_place_of(config, cast("type[SamplerConfig]", chosen), own, options)
        if config is None:
            raise GenerationError(
                f"recipe {self.recipe.name!r}",
                "has no section 'sampler'",
                "add 'sampler: {name: cfg}' to the recipe",
            )
        return with_options(config, options, find=finder(self.components.registry))

    @checked(GenerationError)
    def original(self, document: RetrievedDocument) -> Original | None:
        """The original file of a document's picture, as published. None: the memory has no such file (banks have
        none), or the caller passed the document.

        Raises:
            DataError: the file can't be read.
        """
        retriever = self.components.retriever
        if document.index is None or retriever is None:
            return None
        return retriever.memory.original(document.index)

    # ---- pictures and codes

    @checked(DataError)
    def encode(self, pictures: Sequence[Pixels]) -> list[Codes]:
        """Codes of pictures uint8 [height, width, 3] of the model's size (see `images.fit`)."""
        # one by one: in a batch, the last bits depend on the batch size
        tokenizer = self.components.image_tokenizer
        return [Codes(tokenizer.encode(pixels[None])[0], tokenizer.grid) for pixels in pictures]

    @checked(DataError)
    def coded(self, document: Document) -> Document:
        """The document with its pictures as codes; the codes of the last `MOST_CODED` pictures are cached."""
        new = {
            segment.key: segment
            for segment in document
            if isinstance(segment, Image) and segment.key not in self._codes
        }
        tokenizer = self.components.image_tokenizer
        for key, segment in new.items():
            self._codes[key] = Codes(tokenizer.encode_image(segment), tokenizer.grid)
        coded = tuple(
            as_codes(segment, self._codes[segment.key]) if isinstance(segment, Image) else segment
            for segment in document
        )
        while len(self._codes) > MOST_CODED:
            del self._codes[next(iter(self._codes))]
        return coded

    @checked(DataError)
    def decode(self, codes: Sequence[Codes]) -> list[PixelArray]:
        """Pictures uint8 [height, width, 3] of codes."""
        # one by one, see `encode`
        return [self.components.image_tokenizer.decode(one.codes[None])[0] for one in codes]

    @checked(DataError)
    def drawn(
        self, codes: Codes, texts: Iterable[str], pictures: Iterable[PixelArray]
    ) -> PixelArray:
        """A generated picture as shown to the user, uint8 [height, width, 3]: see the section `finisher`.

        Args:
            codes: the generated codes.
            texts: of its prompt.
            pictures: uint8 [height, width, 3] of any size; the pictures it was made from.
        """
        [pixels] = self.decode([codes])
        return self.components.finisher.finish(pixels, list(texts), list(pictures))

    @checked(DataError)
    def preview(self, codes: Codes) -> PixelArray:
        """A partial picture (`PictureGrown.codes`), uint8 [height, width, 3]; missing parts of a grid are grey, a
        sequence ends where it has come to."""
        if codes.missing is None or not codes.missing.any():
            return self.decode([codes])[0]
        form = self.components.serializer.form
        whole = form.completed(codes.codes, codes.missing)
        pixels = self.decode([Codes(whole, codes.grid)])[0]
        if form.is_sequence:
            return pixels
        pixels = pixels.copy()
        height, width = pixels.shape[:2]
        rows, columns = form.rows, form.columns
        missing = np.any(codes.missing.reshape(rows, columns, form.depth), axis=2)
        # a cell need not be a whole number of pixels
        row_of_pixel, column_of_pixel = (
            np.arange(height) * rows // height,
            np.arange(width) * columns // width,
        )
        pixels[missing[row_of_pixel][:, column_of_pixel]] = GREY
        return pixels


#: Next steps for an empty text other than a caption, by its name in messages.
_ASKED = {"question": "ask something about the picture", "instruction": "say what to change"}


def check_text(loaded: Loaded, place: str, text: str, *, truncate: bool) -> None:
    """Raise `GenerationError` for an empty text, or one longer than the training texts.

    With `truncate`, the length is not checked.
    """
    if not text.strip():
        raise GenerationError(place, "is empty", _ASKED.get(place, "say what the picture shows"))
    if not truncate:
        check_length(loaded, place, text)


def check_length(
    loaded: Loaded,
    place: str,
    text: str,
    *,
    num_more: int = 0,
    without: str = "",
    next_step: str = SHORTEN_OR_TRUNCATE,
) -> None:
    """Raise `GenerationError` if a text plus `num_more` tokens is longer than the training texts; `without`: uncounted
    parts, for the message."""
    number = len(loaded.components.text_tokenizer.encode(text))
    limit = loaded.recipe.data.max_text_tokens
    if number + num_more > limit:
        raise too_long(place, number, limit, loaded.components.context_length, next_step, without)


def check_kept(loaded: Loaded, number: int, place: str, instead: str) -> None:
    """Raise `GenerationError` for more pictures than a call may keep, stating the memory they need.

    Args:
        loaded: the model.
        number: of pictures.
        place: name of the option that asks for them.
        instead: an alternative, for the next step.
    """
    if number > loaded.max_pictures:
        height, width = loaded.image_size
        codes = loaded.components.serializer.num_codes
        raise GenerationError(
            place,
            f"{number:,} pictures of {height} x {width} pixels need {number * codes:,} codes to generate and "
            f"{number * height * width * 3 / 1e9:,.1f} GB of memory; one call may keep {loaded.max_pictures:,} pictures",
            f"{instead}, or set the model's max_pictures",
        )


def check_alone(own_words: str, task: str | None) -> None:
    """Raise `GenerationError` if a task is named together with the caller's own words, which replace it."""
    if task is not None:
        raise GenerationError(
            "task", f"is {task!r}, but {own_words} replaces it", "give only one of the two"
        )


def check_prompt(
    loaded: Loaded,
    place: str,
    prompt: Document,
    *,
    truncate: bool,
    next_step: str = SHORTEN_OR_TRUNCATE,
) -> None:
    """Raise `GenerationError` for a text of a task's prompt that is longer than the training texts.

    With `truncate`, the length is not checked. `next_step` is for a text without a hole.
    """
    if truncate:
        return
    for text, has_hole in _known_texts(prompt):
        if has_hole:
            check_length(
                loaded,
                place,
                text,
                num_more=1,
                without=", not counting the answer",
                next_step="shorten one of the two (template)",
            )
        else:
            check_length(loaded, place, text, next_step=next_step)


def _known_texts(prompt: Document) -> list[tuple[str, bool]]:
    """The known tokens of each text of a prompt, as fed, and whether the text has a hole."""
    known: list[tuple[str, bool]] = []
    for segment in prompt:
        if isinstance(segment, Text):
            known.append((segment.text, False))
        elif isinstance(segment, MaskedText):
            parts = [part for part in segment.parts if isinstance(part, str)]
            first = parts[0].rstrip() if parts and parts[0] is segment.parts[0] else ""
            rest = parts[1:] if first else parts
            known.append((first + "".join(rest), True))
        elif isinstance(segment, TextHole):
            known.append(("", True))
    return known


def text_hole(recipe: Recipe, max_tokens: int | None) -> TextHole:
    """A hole for a text of at most `max_tokens` tokens.

    None: as long as the recipe allows, and never longer than the training texts.
    """
    if max_tokens is None:
        return TextHole(most_new_tokens(recipe))
    return TextHole(max_tokens)


#: Maximum size of an SVG file in bytes; thousands of times that of an icon.
MAX_DRAWING_BYTES = 4 << 20


def read_drawing(tokenizer: ImageTokenizer, path: Path) -> IntArray:
    """Codes of an SVG file; raises `DataError` with the file's name."""
    place = str(path)
    try:
        with open_regular(path) as file:
            content = file.read(MAX_DRAWING_BYTES + 1)
        svg = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataError(place, f"can't be read ({reason})", "give an SVG file") from error
    if len(content) > MAX_DRAWING_BYTES:
        raise DataError(
            place,
            f"has more than the {MAX_DRAWING_BYTES:,} bytes that a drawing may have",
            "give an icon's SVG file",
        )
    try:
        return tokenizer.encode_drawing(svg)
    except DataError as error:
        raise DataError(place, error.cause, error.next_step) from error


def is_drawing(loaded: Loaded, picture: Picture) -> bool:
    """Whether a picture is an SVG file, and the model's image tokenizer reads drawings."""
    return (
        isinstance(picture, (str, Path))
        and Path(picture).suffix.lower() == ".svg"
        and loaded.components.image_tokenizer.reads_drawings
    )


def codes_of(loaded: Loaded, picture: Picture, shown: PixelArray | None = None) -> Codes:
    """The codes of a picture: of an SVG file's commands, or of what the model sees (`shown`, if that is known)."""
    if not is_drawing(loaded, picture):
        return loaded.encode([seen(loaded, picture) if shown is None else shown])[0]
    assert isinstance(picture, (str, Path))
    tokenizer = loaded.components.image_tokenizer
    return Codes(read_drawing(tokenizer, Path(picture)), tokenizer.grid)


def given_pixels(loaded: Loaded, picture: Picture) -> PixelArray:
    """The pixels of a picture in its own size; of an SVG file, in the model's."""
    if is_drawing(loaded, picture):
        return loaded.decode([codes_of(loaded, picture)])[0]
    return pixels_of(picture)


def seen(loaded: Loaded, picture: Picture) -> PixelArray:
    """A picture as the model sees it; logs a note if a file shows nothing."""
    pixels = images.fit(given_pixels(loaded, picture), loaded.image_size)
    if isinstance(picture, (str, Path)) and (pixels == pixels[0, 0]).all():
        loaded.told(
            f"{picture}: the model sees a single colour; transparent parts are shown on white"
        )
    return pixels


def known_by_codes(loaded: Loaded, codes: Codes) -> PixelArray:
    """The pixels of a picture given only by its codes, uint8 [height, width, 3], as shown to the user."""
    [pixels] = loaded.decode([codes])
    return loaded.components.finisher.finish_decoded(pixels)


def pixels_of(picture: Picture) -> PixelArray:
    """The pixels of a picture given as an array or a file."""
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


def sampler_of(loaded: Loaded, name: str | None = None, /, **options: Any) -> Sampler:
    """The sampler that `Loaded.sampler_config` describes."""
    config = loaded.sampler_config(name, **options)
    sampler = config.build_for(loaded.components.parts)
    return built(sampler, config, loaded.components.registry)
