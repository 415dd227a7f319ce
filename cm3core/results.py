"""What `Model` returns: pictures and texts with all that is needed to make them again."""

from __future__ import annotations

from dataclasses import dataclass

from cm3core.boxes import Box
from cm3core.document import Codes, PixelArray


@dataclass(frozen=True, eq=False)
class RetrievedDocument:
    """A document that stood in front of a prompt.

    Args:
        id: its name in the memory; "context 0", ... for documents given by hand.
        score: similarity to the query, higher is nearer; None for documents given by hand.
        text: its text.
        pixels: its picture as the model saw it, uint8 [height, width, 3]; None when it has none.
    """

    id: str
    score: float | None
    text: str
    pixels: PixelArray | None


@dataclass(frozen=True, eq=False)
class GeneratedImage:
    """A picture drawn for a prompt.

    Args:
        pixels: uint8 [height, width, 3], the image tokenizer's size.
        prompt: what was asked for.
        seed: of this picture alone: `generate(prompt, num_images=1, seed=seed)` draws it again.
        retrieved: the documents in front of the prompt, in order.
        codes: the picture's codes.
        log_probability: nats, see `Completion`.
    """

    pixels: PixelArray
    prompt: str
    seed: int
    retrieved: tuple[RetrievedDocument, ...]
    codes: Codes
    log_probability: float


@dataclass(frozen=True, eq=False)
class GeneratedText:
    """A picture's description: `text`, the `seed` and `retrieved` documents it came from, `log_probability` in nats."""

    text: str
    seed: int
    retrieved: tuple[RetrievedDocument, ...]
    log_probability: float


@dataclass(frozen=True, eq=False)
class InfilledImage:
    """A picture with a part drawn anew.

    Args:
        pixels: uint8, the input's size; outside the box exactly the input's pixels, inside the model's.
        decoded: uint8, the image tokenizer's size; the whole picture as decoded from its codes.
        codes: the codes; those outside the box are exactly the encoded input's.
        box: (x0, y0, x1, y1) in pixels of the input.
        text: the text it was drawn for: the given one, or the one that the model wrote.
        seed: the seed.
        retrieved: the documents in front of the prompt, in order.
        log_probability: nats, see `Completion`.
    """

    pixels: PixelArray
    decoded: PixelArray
    codes: Codes
    box: Box
    text: str
    seed: int
    retrieved: tuple[RetrievedDocument, ...]
    log_probability: float
