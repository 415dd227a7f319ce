"""The prepended documents of results: their form in responses, and their source files."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from threading import Lock
from typing import Any, TypeVar
from urllib.parse import urlencode

from cm3core.document import PixelArray
from cm3core.interfaces.dataset import Original
from cm3run.attribution import Credit, original_files, png, told_copy
from cm3run.model.facts import answer_as_json, facts_of_documents
from cm3run.model.results import GeneratedImage, InfilledImage, RetrievedDocument
from cm3run.picture_files import write_zip
from cm3serve.errors import APIError
from cm3serve.pictures import text_of_base64

#: Maximum number of documents to remember; each takes about a KB.
MOST_DOCUMENTS = 8192
ORIGINALS = "/v1/originals"

_Result = TypeVar("_Result", bound=GeneratedImage | InfilledImage)


class ShownDocuments:
    """The documents named in recent responses, by their pictures and ids. It may be used by any thread."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str | bytes], RetrievedDocument] = OrderedDict()
        self._lock = Lock()

    def note(self, model: str, document: RetrievedDocument) -> None:
        """Remember a document of the memory of `model`."""
        if document.index is None:
            return
        kept = replace(document, pixels=None)
        with self._lock:
            self._put((model, document.id), kept)
            if document.pixels is not None:
                self._put((model, _hash(document.pixels)), kept)

    def find(self, model: str, id: str) -> RetrievedDocument | None:
        """The document with that id, without its picture; None if it was not prepended recently."""
        with self._lock:
            return self._kept.get((model, id))

    def recognised(self, model: str, result: _Result) -> _Result:
        """The result, with documents from the user replaced by the memory's documents with the same pictures."""
        return replace(
            result, retrieved=tuple(self._recognised(model, one) for one in result.retrieved)
        )

    def _recognised(self, model: str, document: RetrievedDocument) -> RetrievedDocument:
        if document.index is not None or document.pixels is None:
            return document
        with self._lock:
            known = self._kept.get((model, _hash(document.pixels)))
        if known is None:
            return document
        return replace(document, id=known.id, provenance=known.provenance, index=known.index)

    def _put(self, key: tuple[str, str | bytes], document: RetrievedDocument) -> None:
        self._kept[key] = document
        self._kept.move_to_end(key)
        while len(self._kept) > MOST_DOCUMENTS:
            self._kept.popitem(last=False)


def _hash(pixels: PixelArray) -> bytes:
    return hashlib.sha256(f"{pixels.shape} ".encode() + pixels.tobytes()).digest()


@dataclass(frozen=True)
class Naming:
    """Describes the prepended documents of a model's results.

    Args:
        shown: remembers the documents.
        model: the model's name.
        with_pictures: whether to include their pictures.
    """

    shown: ShownDocuments
    model: str
    with_pictures: bool = False

    def recognised(self, result: _Result) -> _Result:
        """See `ShownDocuments.recognised`."""
        return self.shown.recognised(self.model, result)

    def of_picture(self, picture: GeneratedImage | InfilledImage) -> dict[str, Any]:
        """The fields of a response about a picture's prepended documents."""
        told = told_copy(picture.credits)
        near = picture.nearest
        answer = answer_as_json(picture) if isinstance(picture, GeneratedImage) else None
        note = picture.note if isinstance(picture, GeneratedImage) else ""
        told_of_it = {"answer": answer, "note": note}
        return {name: one for name, one in told_of_it.items() if one} | {
            "documents": self.documents(picture.retrieved, picture.credits),
            "nearness": None if near is None else round(near.nearness, 3),
            "nearest": None if near is None else near.document.id,
            "copy_of": told or None,
        }

    def documents(
        self, retrieved: Sequence[RetrievedDocument], credits: Sequence[Credit] | None = None
    ) -> list[dict[str, Any]]:
        """Each document, with its credits."""
        if credits is None:
            credits = [Credit(one.id, one.provenance) for one in retrieved]
        return [self._document(*both) for both in zip(retrieved, credits, strict=True)]

    def _document(self, one: RetrievedDocument, credit: Credit) -> dict[str, Any]:
        self.shown.note(self.model, one)
        told: dict[str, Any] = {"id": one.id, "score": one.score, "text": one.text}
        told |= {"looked_for": one.looked_for} if one.looked_for else {}
        told |= credit.as_json() | {"original": None}
        if one.index is not None:
            told["original"] = f"{ORIGINALS}?{urlencode({'model': self.model, 'id': one.id})}"
        if self.with_pictures:
            own = facts_of_documents([one])
            told["b64_json"] = None if one.pixels is None else text_of_base64(png(one.pixels, own))
        return told


def file_of_original(original: Original, document: RetrievedDocument) -> tuple[str, bytes, str]:
    """A document's source file with its credits: name, content and media type. Formats that can't store credits are sent
    in a zip."""
    files = original_files(original, Credit(document.id, document.provenance))
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", document.id).strip("-.")[:100] or "original"
    [(end, content), *beside] = files
    if not beside:
        return f"{stem}{end}", content, "image/svg+xml"
    target = BytesIO()
    write_zip(target, [(stem + end, content) for end, content in files])
    return f"{stem}.zip", target.getvalue(), "application/zip"


def no_original(id: str, cause: str) -> APIError:
    """The error for a missing source file."""
    return APIError(404, f"id: {cause}", param="id", code="no_original")
