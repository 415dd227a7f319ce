"""The data sets' kit: a right source passes, and each law fails for one that is wrong in just that
way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from cm3core.document import Codes, Document, Image, PixelArray, Text
from cm3core.interfaces.dataset import Judged, Original, SkippedRecord
from cm3kits.dataset import DocumentSourceContract
from cm3kits.samples import ListSource, example_documents
from kit_mutants import assert_covers, assert_law_fails, cases
from planted_mistakes import ThingsConfig, planted


class Right(ListSource):
    """Documents with text, with a picture, with both, whose texts vary with a generator; a record
    that is skipped."""

    def __init__(self) -> None:
        super().__init__(example_documents(9))
        self.calls = 0

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        document = super()._document(index, rng)
        self.calls += 1
        if rng is None:
            return document
        word = rng.choice(["one", "two"])
        return tuple(
            Text(f"{word} {part.text}") if isinstance(part, Text) else part for part in document
        )

    @property
    def skipped(self) -> list[SkippedRecord]:
        return [SkippedRecord("documents.txt, line 10", "is empty", "delete it")]


class TestRight(DocumentSourceContract):
    def make(self) -> Right:
        return Right()


class ItsOwnGenerator(Right):
    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        own = None if rng is None else np.random.default_rng(self.calls)
        return super()._document(index, own)


class TurnsPictures(Right):
    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        document = super()._document(index, rng)
        return document if rng is None else document[::-1]


class ComparesWithGrey(Right):
    def alternatives(self, index: int, size: int, num: int) -> Any:
        return [("one", lambda: np.zeros((size, size), np.uint8))]


class ComparesWithTooMany(Right):
    def alternatives(self, index: int, size: int, num: int) -> Any:
        return [(str(place), lambda: np.zeros((size, size, 3), np.uint8)) for place in range(9)]


class CopiesAtItsOwnSize(Right):
    def copies(self, index: int, size: int) -> Any:
        return {"nearest": lambda: np.zeros((24, 24, 3), np.uint8)}


class GoesRound(Right):
    def document(self, index: int, rng: np.random.Generator | None = None) -> Document:
        return self._document(index % len(self), rng)


class HasNoKeys(Right):
    def content_keys(self, index: int) -> frozenset[str]:
        return frozenset()


class KeysOfItsOwn(Right):
    def content_keys(self, index: int) -> frozenset[str]:
        return super().content_keys(index) | {f"object:{id(self)}"}


class ListsOfSegments(Right):
    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        return list(super()._document(index, rng))  # type: ignore[return-value]  # wrong on purpose


class BlankTexts(Right):
    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        return (*super()._document(index, rng), Text("  \n"))


class EmptyDocuments(Right):
    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        return ()


class NamelessPictures(Right):
    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        return tuple(
            replace(part, key="") if isinstance(part, Image) else part
            for part in super()._document(index, rng)
        )


class LongCodes(Right):
    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        return (Codes(np.arange(6), (2, 3)),)  # type: ignore[arg-type]  # wrong on purpose


class OneKeyForAll(Right):
    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        return tuple(
            replace(part, key="p") if isinstance(part, Image) else part
            for part in super()._document(index, rng)
        )


class NamedByItself(Right):
    @property
    def fingerprint(self) -> str:
        return str(id(self))


class Nameless(Right):
    fingerprint = ""


class NoGroup(Right):
    def group(self, index: int) -> str:
        return None  # type: ignore[return-value]  # wrong on purpose


class GroupsAsTheyCome(Right):
    def group(self, index: int) -> str:
        self.calls += 1
        return str(self.calls)


class IdsTwice(Right):
    def id(self, index: int) -> str:
        return f"d{index // 2}"


class IdsOfItsOwn(Right):
    def id(self, index: int) -> str:
        return f"{id(self)}-{index}"


def _with_pixels(document: Document, change: type[PictureOf]) -> Document:
    return tuple(
        replace(part, load=change(part)) if isinstance(part, Image) else part for part in document
    )


class PictureOf:
    def __init__(self, image: Image) -> None:
        self.pixels = image.load()

    def __call__(self) -> PixelArray:
        return self.pixels


class FloatsOf(PictureOf):
    def __call__(self) -> PixelArray:
        return self.pixels / np.float32(255)


class GreyOf(PictureOf):
    def __call__(self) -> PixelArray:
        return self.pixels[..., :1]


class OneArrayForAll(Right):
    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        return _with_pixels(super()._document(index, rng), PictureOf)


class FloatPictures(Right):
    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        return _with_pixels(super()._document(index, rng), FloatsOf)


class GreyPictures(Right):
    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        return _with_pixels(super()._document(index, rng), GreyOf)


class SkipsWithoutReason(Right):
    @property
    def skipped(self) -> list[SkippedRecord]:
        return [SkippedRecord("documents.txt, line 10", "", "delete it")]


class KeepsTexts(Right):
    def texts(self) -> Iterator[str]:
        return iter(["thing number 0"])


class RemembersTheGenerator(Right):
    last: np.random.Generator | None = None

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        self.last = rng or self.last
        return super()._document(index, self.last)


class OriginalsAsText(Right):
    def original(self, index: int) -> Original:
        return Original(".svg", b"<html/>")


@dataclass(kw_only=True)
class StatesAnotherField(ThingsConfig):
    """States a field that no record has."""

    def record_fields(self) -> tuple[str, ...]:
        return ("image", "title")


@dataclass(kw_only=True)
class JudgesAnotherSplit(ThingsConfig):
    """Is judged by a split that it does not have."""

    def judged(self) -> list[Judged]:
        return [Judged("unseen", "unseen things", "unseen")]


@dataclass(kw_only=True)
class JudgesTwice(ThingsConfig):
    """Has two results of one name."""

    def judged(self) -> list[Judged]:
        return [Judged("held-out", "held-out things", split) for split in ("valid", "all")]


MUTANTS: dict[str, list[Any]] = {
    "records_have_the_stated_fields": [StatesAnotherField],
    "a_generator_decides_the_document": [ItsOwnGenerator, TurnsPictures],
    "an_index_outside_is_refused": [GoesRound],
    "content_keys_name_the_document": [HasNoKeys, KeysOfItsOwn],
    "documents_are_texts_and_pictures": [
        ListsOfSegments,
        BlankTexts,
        EmptyDocuments,
        NamelessPictures,
        LongCodes,
    ],
    "equal_keys_are_equal_pictures": [OneKeyForAll],
    "fingerprint_is_stable": [NamedByItself, Nameless],
    "groups_are_names": [NoGroup, GroupsAsTheyCome],
    "ids_are_the_same_in_every_split": [
        planted(ThingsConfig, "ids by place"),
        planted(ThingsConfig, "ids with the split"),
    ],
    "ids_are_unique_and_stable": [IdsTwice, IdsOfItsOwn],
    "real_pictures_to_compare_with_load": [
        ComparesWithGrey,
        ComparesWithTooMany,
        CopiesAtItsOwnSize,
    ],
    "pictures_load": [OneArrayForAll, FloatPictures, GreyPictures],
    "skipped_records_say_why": [SkipsWithoutReason],
    "texts_hold_every_canonical_text": [KeepsTexts],
    "the_original_is_a_picture_file": [OriginalsAsText],
    "what_is_judged_are_its_splits": [JudgesAnotherSplit, JudgesTwice],
    "without_a_generator_it_is_canonical": [RemembersTheGenerator],
}


@pytest.mark.parametrize(("law", "wrong"), cases(MUTANTS))
def test_a_wrong_source_fails(law: str, wrong: type[Any]) -> None:
    made = wrong()
    attributes = (
        {"config": made} if isinstance(made, ThingsConfig) else {"make": lambda self: wrong()}
    )
    assert_law_fails(DocumentSourceContract, law, attributes)


def test_every_law_has_a_mutant() -> None:
    assert_covers(DocumentSourceContract, MUTANTS)
