"""Results of `Model`: pictures and texts, with everything needed to reproduce them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from cm3core.document import Codes, PixelArray
from cm3core.errors import GenerationError
from cm3core.interfaces.dataset import Original, Provenance
from cm3run.attribution import Credit, PictureFacts, png, together, told_copy
from cm3run.generation.engine import Event
from cm3run.model.crop import Box
from cm3run.nearness import NEARLY_A_COPY, nearness
from cm3run.prompting import Answer
from cm3run.sheets import grid


@dataclass(frozen=True, eq=False)
class RetrievedDocument:
    """A document that was prepended to a prompt.

    Args:
        id: its name in the memory; "context 0", ... for the caller's documents.
        score: similarity to the query, higher is more similar; None for the caller's documents.
        text: its text.
        pixels: its picture as the model saw it, uint8 [height, width, 3]; None if it has none.
        provenance: its licence and source, as stated by its memory; unknown for the caller's documents.
        looked_for: the query text, if it differs from the prompt; otherwise empty.
        index: its position in the memory; None for the caller's documents.
    """

    id: str
    score: float | None
    text: str
    pixels: PixelArray | None
    provenance: Provenance = field(default_factory=Provenance)
    looked_for: str = ""
    index: int | None = None

    def _repr_png_(self) -> bytes | None:
        """The picture, if there is one, for display in notebooks."""
        own = PictureFacts({}, (Credit(self.id, self.provenance),))
        return None if self.pixels is None else png(self.pixels, own)


def credits_of(pixels: PixelArray, documents: Sequence[RetrievedDocument]) -> tuple[Credit, ...]:
    """Credits of the documents prepended for a picture, each with the nearness of its picture."""
    return tuple(
        Credit(
            one.id,
            one.provenance,
            None if one.pixels is None else nearness(pixels, one.pixels),
        )
        for one in documents
    )


@dataclass(frozen=True, eq=False)
class Nearest:
    """The prepended document nearest to a result, with their `cm3run.nearness.nearness`, 0..1."""

    document: RetrievedDocument
    nearness: float

    @property
    def is_copy(self) -> bool:
        """Whether the result is almost a copy of it."""
        return self.nearness >= NEARLY_A_COPY

    @property
    def told(self) -> str:
        """Describes a near-copy: "nearly a copy of SET/NAME (LICENCE)"; otherwise ""."""
        return told_copy([Credit(self.document.id, self.document.provenance, self.nearness)])


def nearest_of(documents: Sequence[RetrievedDocument], credits: Sequence[Credit]) -> Nearest | None:
    """The document with the nearest picture, the first on ties; None: none has a picture. `credits`: of the documents,
    in order."""
    near = [
        Nearest(one, credit.nearness)
        for one, credit in zip(documents, credits, strict=True)
        if credit.nearness is not None
    ]
    return max(near, key=lambda one: one.nearness, default=None)


@dataclass(frozen=True)
class Choice:
    """How a result was chosen among its candidates.

    Args:
        scores: of all candidates, in the order of their seeds; higher is better.
        index: position of the chosen candidate, which has the highest score (the first on ties) of those that are no
            near copies, or of all if all are.
        measure: what the scores measure.
        copies: whether each is nearly a copy of a document that was prepended to it; never for texts and inpainted pictures.
    """

    scores: tuple[float, ...]
    index: int
    measure: str
    copies: tuple[bool, ...]

    @property
    def score(self) -> float:
        """The chosen candidate's score."""
        return self.scores[self.index]


@dataclass(frozen=True, eq=False)
class GeneratedImage:
    """A picture generated for a prompt, or found in the memory (`original`).

    Args:
        pixels: uint8 [height, width, 3], the image tokenizer's size.
        prompt: the prompt.
        seed: of this picture alone: `generate(prompt, num_images=1, seed=seed, num_candidates=1)`
            reproduces it; with `draw=True`, if it was drawn although there are found ones.
        retrieved: the documents prepended to the prompt, in order; or the one that was found.
        drawn: the picture's codes; None: it was found.
        log_probability: nats, see `Completion`; 0: it was found.
        choice: how it was chosen; None when it was the only candidate.
        upscaled: the enlarged picture, uint8; None when not requested.
        sampler: name of the sampler that drew it: the requested one, the default for edits or structures, or the
            model's; "": none.
        number: its place among the pictures of its prompt.
        answer: what the memory has for the prompt; None: its retriever does not tell.
        original: the file of a picture that was found, as published; None: it was drawn.
        note: how its instruction was read, or why it may be wrong; "": nothing to say.
    """

    pixels: PixelArray
    prompt: str
    seed: int
    retrieved: tuple[RetrievedDocument, ...]
    drawn: Codes | None
    log_probability: float
    choice: Choice | None = None
    upscaled: PixelArray | None = None
    sampler: str = ""
    number: int = 0
    answer: Answer | None = None
    original: Original | None = None
    note: str = ""

    @property
    def codes(self) -> Codes:
        """The codes that were drawn; raises `GenerationError` for a picture that was found."""
        if self.drawn is None:
            raise GenerationError(
                "codes",
                "the picture was found in the memory, and has none",
                "ask for drawn pictures (draw=True), or encode its pixels",
            )
        return self.drawn

    @cached_property
    def credits(self) -> tuple[Credit, ...]:
        """Credits of the prepended documents, in order; of a picture that was found, without a nearness: it is the
        document's own."""
        if self.original is not None:
            return tuple(Credit(one.id, one.provenance) for one in self.retrieved)
        return credits_of(self.pixels, self.retrieved)

    @property
    def told(self) -> str:
        """The answer in words: found, restyled or composed, and of which document; "" if there is none."""
        return "" if self.answer is None else told_answer(self)

    @property
    def nearest(self) -> Nearest | None:
        """The nearest prepended document; None: none has a picture."""
        return nearest_of(self.retrieved, self.credits)

    def _repr_png_(self) -> bytes:
        """The picture, enlarged if it was, for display in notebooks."""
        pixels = self.pixels if self.upscaled is None else self.upscaled
        return png(pixels, PictureFacts({"prompt": self.prompt}, self.credits))


def told_answer(picture: GeneratedImage) -> str:
    """See `GeneratedImage.told`."""
    assert picture.answer is not None
    remarks = picture.answer.remarks
    told = _told(picture, picture.answer)
    return f"{told}{' ' if told.endswith('?') else '; '}{remarks}" if remarks else told


def _told(picture: GeneratedImage, answer: Answer) -> str:
    """See `told_answer`, without how the prompt was read."""
    near = picture.nearest
    if picture.original is not None:
        [credit], [document] = picture.credits, picture.retrieved
        similar = f"similarity {document.score or 0:.2f}"
        return f"found: {credit.named} is {document.text!r}, {similar}; this is its original"
    after = (
        "" if near is None else f"; drawn after {near.document.id}, nearness {near.nearness:.2f}"
    )
    if answer.kind == "restyled":
        if answer.originals:
            return f"restyled: the index has {answer.thing!r} in this style, too: {answer.originals[0].id}{after}"
        return f"restyled: the index has {answer.thing!r} in other styles or sets only{after}"
    return f"composed: a guess{after}; the index: {answer.nearest_in_words}"


class GeneratedImages(list[GeneratedImage]):
    """Pictures of one call; notebooks show the list as a contact sheet."""

    #: Columns of the sheet, and approximate pixels per side of a picture.
    COLUMNS, SIDE = 4, 160

    def _repr_png_(self) -> bytes | None:
        """All pictures, each above its prompt; None for an empty list."""
        if not self:
            return None
        starts = range(0, len(self), self.COLUMNS)
        rows = [self[start : start + self.COLUMNS] for start in starts]
        shown = [
            [one.pixels if one.upscaled is None else one.upscaled for one in row] for row in rows
        ]
        sheet = grid(
            shown,
            captions=[[one.prompt for one in row] for row in rows],
            scale=max(1, self.SIDE // max(one.shape[0] for row in shown for one in row)),
        )
        return png(sheet, PictureFacts({}, together(one.credits for one in self)))


@dataclass(frozen=True, eq=False)
class GeneratedText:
    """A text written about a picture: a caption or an answer.

    `text`, the `seed` and `retrieved` documents that produced it, `log_probability` in nats, and
    `choice` as in `GeneratedImage`.
    """

    text: str
    seed: int
    retrieved: tuple[RetrievedDocument, ...]
    log_probability: float
    choice: Choice | None = None


@dataclass(frozen=True, eq=False)
class InfilledImage:
    """A picture with an inpainted part.

    Args:
        pixels: uint8, the input's size; exactly the input's pixels outside the region, the model's
            inside.
        decoded: uint8, the image tokenizer's size; the whole picture decoded from its codes.
        codes: the codes; outside the region exactly those of the encoded input.
        box: (x0, y0, x1, y1) in pixels of the input: the region, or the smallest box around it.
        text: its caption: the given one, or one written by the model.
        seed: the seed.
        retrieved: the documents prepended to the prompt, in order.
        log_probability: nats, see `Completion`.
        choice: as in `GeneratedImage`.
    """

    pixels: PixelArray
    decoded: PixelArray
    codes: Codes
    box: Box
    text: str
    seed: int
    retrieved: tuple[RetrievedDocument, ...]
    log_probability: float
    choice: Choice | None = None

    @cached_property
    def credits(self) -> tuple[Credit, ...]:
        """Credits of the prepended documents, in order, with the nearness of the inpainted box."""
        x0, y0, x1, y1 = self.box
        return credits_of(self.pixels[y0:y1, x0:x1], self.retrieved)

    @property
    def nearest(self) -> Nearest | None:
        """The prepended document nearest to the inpainted part; None: none has a picture."""
        return nearest_of(self.retrieved, self.credits)

    def _repr_png_(self) -> bytes:
        """The picture, for display in notebooks."""
        return png(self.pixels, PictureFacts({"prompt": self.text}, self.credits))


@dataclass(frozen=True, eq=False)
class Scored(Event):
    """A candidate's score; see `Choice`. Sent when all candidates of its result are finished."""

    score: float
    measure: str


@dataclass(frozen=True, eq=False)
class ImageReady(Event):
    """A picture is finished and chosen; `request` is its first candidate's number."""

    image: GeneratedImage


@dataclass(frozen=True, eq=False)
class InfillReady(Event):
    """A picture is inpainted and chosen; `request` is its first candidate's number."""

    image: InfilledImage
