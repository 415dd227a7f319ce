"""The documents that were in front of results, as answers name them, and their own files."""

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

from cm3apps.cli._picture_files import write_zip
from cm3apps.server.errors import APIError
from cm3apps.server.pictures import text_of_base64
from cm3core.document import PixelArray
from cm3core.interfaces.dataset import Original
from cm3run.attribution import Credit, original_files, png, told_copy
from cm3run.model.facts import facts_of_documents
from cm3run.model.results import GeneratedImage, InfilledImage, RetrievedDocument

#: Documents that are remembered; each takes about a KB.
MOST_DOCUMENTS = 8192
ORIGINALS = "/v1/originals"

_Result = TypeVar("_Result", bound=GeneratedImage | InfilledImage)


class ShownDocuments:
    """The documents that answers named last, by their pictures and ids. Any thread may use it."""

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
        """The document of that id, without its picture; None: it was in front of no result lately."""
        with self._lock:
            return self._kept.get((model, id))

    def recognised(self, model: str, result: _Result) -> _Result:
        """The result, documents that were given by hand named as those of the memory whose pictures they are."""
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
    """Names the documents of a model's results.

    Args:
        shown: remembers them.
        model: the model's name.
        with_pictures: whether their pictures come along.
    """

    shown: ShownDocuments
    model: str
    with_pictures: bool = False

    def recognised(self, result: _Result) -> _Result:
        """See `ShownDocuments.recognised`."""
        return self.shown.recognised(self.model, result)

    def of_picture(self, picture: GeneratedImage | InfilledImage) -> dict[str, Any]:
        """What an answer says of the documents that were in front of a picture."""
        told = told_copy(picture.credits)
        near = picture.nearest
        return {
            "documents": self.documents(picture.retrieved, picture.credits),
            "nearness": None if near is None else round(near.nearness, 3),
            "nearest": None if near is None else near.document.id,
            "copy_of": told or None,
        }

    def documents(
        self, retrieved: Sequence[RetrievedDocument], credits: Sequence[Credit] | None = None
    ) -> list[dict[str, Any]]:
        """Each document, with whom to name."""
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
    """A document's own file as it is sent, with whom to name: its name, content and media type. What can't hold that
    comes as a zip."""
    files = original_files(original, Credit(document.id, document.provenance))
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", document.id).strip("-.")[:100] or "original"
    [(end, content), *beside] = files
    if not beside:
        return f"{stem}{end}", content, "image/svg+xml"
    target = BytesIO()
    write_zip(target, [(stem + end, content) for end, content in files])
    return f"{stem}.zip", target.getvalue(), "application/zip"


def no_original(id: str, cause: str) -> APIError:
    """The answer where there is none."""
    return APIError(404, f"id: {cause}", param="id", code="no_original")
