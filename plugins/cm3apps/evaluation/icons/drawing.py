"""What a model does with what it is asked for: how probable the true picture's codes are, and the
pictures that it draws."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cm3core.document import Codes, Document, Image, ImageHole, PixelArray, Text
from cm3core.images import fit
from cm3core.progress import make_bar
from cm3run.model import Model
from cm3run.model.loaded import known_by_codes

#: Documents whose likelihood is computed between two updates of the bar.
_BATCH = 16


class Asked(Protocol):
    """A picture to draw: its caption, the document of both, and what may be prepended."""

    @property
    def text(self) -> str:
        """The caption."""

    @property
    def document(self) -> Document:
        """Caption and picture."""

    def front(self, condition: str) -> tuple[Document, ...]:
        """The documents prepended under a condition."""


@dataclass(frozen=True, eq=False)
class AskedPicture:
    """One picture to draw.

    Args:
        text: its canonical caption.
        document: caption and picture.
        prepended: condition -> the documents prepended, none where nothing was found.
    """

    text: str
    document: Document
    prepended: dict[str, tuple[Document, ...]]

    def pixels(self, size: tuple[int, int]) -> PixelArray:
        """The real picture, uint8 [H, W, 3]."""
        return fit(_image(self).load(), size)

    def front(self, condition: str) -> tuple[Document, ...]:
        """The documents prepended under a condition."""
        return self.prepended[condition]

    def front_pixels(self, condition: str, model: Model) -> PixelArray | None:
        """The first prepended picture, uint8 [H, W, 3]; None where there is none."""
        return _front_pixels(self.front(condition), model)


def nats_of_codes(model: Model, asked: Sequence[Asked], condition: str) -> list[float]:
    """Nats a code of each true picture, given its caption and what is prepended.

    Among image codes: at these positions the engine draws nothing else.
    """
    likelihood = model.components.likelihood
    found: list[float] = []
    with _bar(f"likelihood, {condition}", len(asked), "picture") as bar:
        for start in range(0, len(asked), _BATCH):
            part = asked[start : start + _BATCH]
            documents: list[Document] = [(Text(one.text), ImageHole()) for one in part]
            filled: list[Document] = [
                (Text(one.text), model.coded((_image(one),))[0]) for one in part
            ]
            contents = [
                likelihood.contents_of(*pair) for pair in zip(documents, filled, strict=True)
            ]
            retrieved = [[model.coded(front) for front in one.front(condition)] for one in part]
            values = likelihood.log_probability(documents, contents, retrieved=retrieved)
            found += [-value.per_token for value in values]
            bar.update(len(part))
    return found


def draw(
    model: Model, asked: Sequence[Asked], condition: str, seed: int, sampling: dict[str, Any]
) -> PixelArray:
    """A picture for each caption, uint8 [N, H, W, 3]; all in one batch of the engine."""
    cells = int(np.prod(model.components.image_tokenizer.grid))
    with _bar(f"drawing, {condition}", len(asked) * cells, "token") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        completions = model.complete(
            [(Text(one.text), ImageHole()) for one in asked],
            retrieved=[one.front(condition) for one in asked],
            seed=seed,
            truncate=True,
            progress=progress,
            **sampling,
        )
    return np.stack(
        [
            model.drawn(codes, [one.text], [] if front is None else [front])
            for one, completion in zip(asked, completions, strict=True)
            for front in [_front_pixels(one.front(condition), model)]
            for codes in completion.document
            if isinstance(codes, Codes)
        ]
    )


def reconstructed(model: Model, pictures: Sequence[PixelArray]) -> PixelArray:
    """Pictures through their codes and back, uint8 [N, H, W, 3]."""
    return np.stack(model.decode(model.encode(pictures)))


def _front_pixels(front: Sequence[Document], model: Model) -> PixelArray | None:
    for document in front:
        for segment in document:
            if isinstance(segment, Image):
                return fit(segment.load(), model.image_size)
            if isinstance(segment, Codes):  # of a memory bank
                return known_by_codes(model, segment)
    return None


def _image(one: Asked) -> Image:
    return next(segment for segment in one.document if isinstance(segment, Image))


def _bar(what: str, total: int, unit: str) -> Any:
    return make_bar(desc=f"  {what}", total=total, unit=unit, leave=False, file=sys.stderr)
