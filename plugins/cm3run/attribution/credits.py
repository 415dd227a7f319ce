"""The documents that were in front of a picture, as those who are to be named for it, and all else that is written with
it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cm3core._version import SOFTWARE, program
from cm3core.interfaces.dataset import UNKNOWN_LICENCE, Provenance, provenance_in
from cm3run.nearness import NEARLY_A_COPY

#: Keys of a PNG's text chunks: the documents' ids, and all that is known of them.
RETRIEVED, DOCUMENTS = "retrieved", "documents"


@dataclass(frozen=True)
class Credit:
    """A document that was in front of a picture.

    Args:
        id: its name in the memory; "context 0", ... for one that was given by hand.
        provenance: what is known of it.
        nearness: of the picture to it, 0..1; None where that is not known.
    """

    id: str
    provenance: Provenance = field(default_factory=Provenance)
    nearness: float | None = None

    @property
    def is_copy(self) -> bool:
        """Whether the picture is nearly a copy of it."""
        return self.nearness is not None and self.nearness >= NEARLY_A_COPY

    @property
    def named(self) -> str:
        """Its id and licence.

        >>> Credit("ph/bell", Provenance("MIT")).named
        'ph/bell (MIT)'
        """
        known = self.provenance.licence != UNKNOWN_LICENCE
        return f"{self.id} ({self.provenance.licence if known else 'licence unknown'})"

    @property
    def line(self) -> str:
        """The full attribution: title, author, set, licence with its address, address, and where it was published.

        >>> print(Credit("x/bell", Provenance("CC-BY-4.0", "npm x 1", "Ann", "x", "bell", "https://x.org")).line)
        x/bell: "bell" by Ann, of x; CC-BY-4.0, https://creativecommons.org/licenses/by/4.0/; https://x.org; npm x 1
        >>> print(Credit("context 0").line)
        context 0: author unknown; licence unknown
        """
        own = self.provenance
        title = f'"{own.title}" by ' if own.title and own.attribution else ""
        author = own.attribution or "author unknown"
        collection = f", of {own.collection}" if own.collection else ""
        licence = own.licence if own.licence != UNKNOWN_LICENCE else "licence unknown"
        link = f", {own.licence_link}" if own.licence_link else ""
        parts = (f"{title}{author}{collection}", f"{licence}{link}", own.address, own.source)
        return f"{self.id}: {'; '.join(dict.fromkeys(part for part in parts if part))}"

    def as_json(self) -> dict[str, Any]:
        """All of it, as files and the API have it; texts that are not known are ""."""
        own = self.provenance
        known = {"id": self.id, **asdict(own), "link": own.address}
        known["licence_link"] = own.licence_link
        if self.nearness is not None:
            known["nearness"] = round(self.nearness, 3)
        return known


def credit_in(values: object) -> Credit:
    """What `Credit.as_json` made, read again; raises `TypeError`, `KeyError` or `ValueError` for anything else."""
    if not isinstance(values, dict) or not isinstance(values["id"], str):
        raise TypeError("no document")
    near = values.get("nearness")
    if near is not None and (type(near) not in (int, float) or not 0 <= near <= 1):
        raise ValueError("nearness")
    texts = {key: value for key, value in values.items() if isinstance(value, str)}
    return Credit(values["id"], provenance_in(texts), None if near is None else float(near))


def nearest(credits: Iterable[Credit]) -> Credit | None:
    """The one that the picture is nearest to, the first of equals; None: that is known of none."""
    known = [one for one in credits if one.nearness is not None]
    return max(known, key=lambda one: one.nearness or 0.0, default=None)


def told_copy(credits: Iterable[Credit]) -> str:
    """What a picture is that is nearly a copy of a document; "" for one that is none.

    >>> told_copy([Credit("ph/bell", Provenance("MIT"), 0.91), Credit("ph/key", nearness=0.2)])
    'nearly a copy of ph/bell (MIT)'
    """
    found = nearest(credits)
    return f"nearly a copy of {found.named}" if found is not None and found.is_copy else ""


def together(pictures: Iterable[Sequence[Credit]]) -> tuple[Credit, ...]:
    """The documents of all pictures of a sheet, each once, with the greatest nearness of any picture to it."""
    found: dict[tuple[str, Provenance], Credit] = {}
    for one in (one for own in pictures for one in own):
        key = one.id, one.provenance
        same = [one, *filter(None, [found.get(key)])]
        near = [each.nearness for each in same if each.nearness is not None]
        found[key] = replace(one, nearness=max(near, default=None))
    return tuple(found.values())


@dataclass(frozen=True)
class PictureFacts:
    """All that is written with a picture.

    Args:
        texts: what made it: prompt, seed, model, ...; by their keys in PNG files.
        credits: the documents that were in front.
    """

    texts: Mapping[str, str]
    credits: tuple[Credit, ...]

    def with_texts(self, **texts: str) -> PictureFacts:
        """The same of the same picture, with more texts."""
        return replace(self, texts={**self.texts, **texts})

    def after(self, credits: Iterable[Credit]) -> PictureFacts:
        """The same of a picture that was made of another one: also the documents that were in front of that."""
        own = {(one.id, one.provenance) for one in self.credits}
        more = together([[replace(one, nearness=None) for one in credits]])
        new = tuple(one for one in more if (one.id, one.provenance) not in own)
        return replace(self, credits=(*self.credits, *new))

    def chunks(self) -> dict[str, str]:
        """The text chunks of a PNG, without the XMP packet."""
        ids = json.dumps([one.id for one in self.credits], ensure_ascii=False)
        documents = json.dumps([one.as_json() for one in self.credits], ensure_ascii=False)
        return {**self.texts, RETRIEVED: ids, DOCUMENTS: documents, SOFTWARE: program()}

    @property
    def generator(self) -> str:
        """The program, and the model if it is known."""
        return ", ".join([program(), *filter(None, [self.texts.get("model", "")])])
