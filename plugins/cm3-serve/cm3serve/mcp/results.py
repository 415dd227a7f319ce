"""What the tools answer, as the schema of their structured results states it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Document:
    """A document of the memory, with its licence; unknown texts are "". `collection` is its set, `nearness` that of a
    picture to it, 0..1."""

    id: str
    licence: str = ""
    source: str = ""
    attribution: str = ""
    collection: str = ""
    title: str = ""
    link: str = ""
    licence_link: str = ""
    nearness: float | None = None


@dataclass(frozen=True, kw_only=True)
class FoundPicture:
    """A picture of the memory: its caption, its similarity to the prompt (at most 1), and the original SVG with its
    credits, where the memory has it."""

    document: Document
    caption: str
    similarity: float
    svg: str | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """The nearest pictures, best first. `answer` is found, restyled or composed; None: the model does not tell."""

    prompt: str
    answer: str | None
    told: str
    pictures: Sequence[FoundPicture]


@dataclass(frozen=True, kw_only=True)
class DrawnPicture:
    """A picture that was found or drawn.

    `id` names it in other calls. `svg` is its text; where it is None, the picture is the next of the images beside this
    result. `answer` and `told` say whether it was found, restyled or composed; `nearest` is the most similar of its
    `documents`, and `is_copy` says that it is nearly a copy of it.
    """

    id: str
    answer: str | None
    told: str
    seed: int
    media_type: str
    svg: str | None
    nearest: str | None
    nearness: float | None
    is_copy: bool
    documents: Sequence[Document]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Pictures for a prompt or an instruction, and what the model noted about them."""

    prompt: str
    pictures: Sequence[DrawnPicture]
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class CompletedThing:
    """A thing of a completed set. `kind` is found, restyled or composed; `file` and `svg` are the best candidate, None
    for a thing that the folder has already. `adapted` is a file with an existing drawing of the thing in the set's form,
    made without a model, and `adapted_from` that drawing; None: there is none."""

    name: str
    kind: str
    file: str | None
    svg: str | None
    nearness: float | None
    is_copy: bool
    documents: Sequence[Document]
    adapted: str | None = None
    adapted_from: Document | None = None


@dataclass(frozen=True, kw_only=True)
class Completed:
    """The things of a completed set, and the folder with their files."""

    folder: str
    things: Sequence[CompletedThing]
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Made:
    """How a picture was made, by key, and the documents that it was drawn from."""

    made: dict[str, str] = field(default_factory=dict)
    nearest: str | None = None
    nearness: float | None = None
    is_copy: bool = False
    documents: Sequence[Document] = ()


@dataclass(frozen=True)
class Reply:
    """A tool's answer: one of these results, and PNG files that go beside it, in the order in which it speaks of them."""

    result: Any
    pictures: Sequence[bytes] = ()
