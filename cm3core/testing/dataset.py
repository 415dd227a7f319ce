"""Conformance kit of kind `dataset`.

    class TestMine(DocumentSourceContract):
        config = MySourceConfig(path="tests/pictures")

The source must have at least one document; one with bad records as well is a better test.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import strategies as st

from cm3core.document import Codes, Image, Text, content_keys
from cm3core.errors import DataError
from cm3core.images import open_image
from cm3core.interfaces.dataset import DocumentSource
from cm3core.testing._laws import Contract


class DocumentSourceContract(Contract[DocumentSource]):
    """Laws of a data set."""

    kind: ClassVar[str] = "dataset"

    def build(self, config: Any) -> DocumentSource:
        """See `DocumentSourceConfig.build`."""
        source: DocumentSource = config.build()
        return source

    def law_ids_are_unique_and_stable(self) -> None:
        """Every document has a unique id, the same when the source is made again."""
        ids = _ids(self.subject)
        assert ids
        assert all(isinstance(name, str) and name for name in ids)
        assert len(set(ids)) == len(ids)
        assert _ids(self.make_again()) == ids

    def law_fingerprint_is_stable(self) -> None:
        """Sources of the same data have the same, non-empty fingerprint."""
        assert self.subject.fingerprint
        assert self.make_again().fingerprint == self.subject.fingerprint

    def law_the_original_is_a_picture_file(self, data: st.DataObject) -> None:
        """None, or a file of a picture: an SVG as such, any other of a format that is read; the same every time."""
        index = self._draw_index(data)
        original = self.subject.original(index)
        assert self.subject.original(index) == original
        if original is None:
            return
        assert re.fullmatch(r"\.[a-z0-9]{1,8}", original.suffix), original.suffix
        if original.suffix == ".svg":
            root = ElementTree.fromstring(original.content)
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
        else:
            assert open_image(original.content, self.subject.id(index)).size

    def law_documents_are_texts_and_pictures(self, data: st.DataObject) -> None:
        """Not empty; texts are non-blank, valid Unicode; pictures have keys or complete codes."""
        document = self.subject.document(self._draw_index(data), _draw_rng(data))
        assert isinstance(document, tuple)
        assert document
        for segment in document:
            assert isinstance(segment, (Text, Image, Codes))
            if isinstance(segment, Text):
                assert segment.text.strip()
                segment.text.encode("utf-8")
            elif isinstance(segment, Image):
                assert segment.key
            else:
                assert segment.codes.dtype == np.int32
                assert segment.codes.shape == (segment.grid[0] * segment.grid[1],)
                assert segment.codes.min() >= 0
                assert segment.missing is None

    def law_content_keys_name_the_document(self, data: st.DataObject) -> None:
        """Content keys are stable and include those of the canonical document."""
        index = self._draw_index(data)
        keys = self.subject.content_keys(index)
        assert keys >= content_keys(self.subject.document(index))
        assert keys == self.make_again().content_keys(index)

    def law_without_a_generator_it_is_canonical(self, data: st.DataObject) -> None:
        """Without `rng`, a document is always the same, also in a source made again."""
        index = self._draw_index(data)
        canonical = self.subject.document(index)
        self.subject.document(self._draw_index(data), np.random.default_rng(0))
        assert self.subject.document(index) == canonical
        assert self.make_again().document(index) == canonical

    def law_a_generator_decides_the_document(self, data: st.DataObject) -> None:
        """Equal generators give equal documents; only texts may differ from the canonical ones."""
        index, seed = self._draw_index(data), data.draw(st.integers(0, 2**32 - 1))
        first, second = (
            self.subject.document(index, np.random.default_rng(seed)) for _ in range(2)
        )
        assert first == second
        canonical = self.subject.document(index)
        assert [_kind_or_key(segment) for segment in first] == [
            _kind_or_key(segment) for segment in canonical
        ]

    def law_pictures_load(self, data: st.DataObject) -> None:
        """A picture is uint8 [height, width, 3], the same on each load, even if changed."""
        pictures = [
            segment
            for segment in self.subject.document(self._draw_index(data))
            if isinstance(segment, Image)
        ]
        for picture in pictures:
            pixels = picture.load()
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
            assert pixels.size
            kept = pixels.copy()
            if pixels.flags.writeable:
                pixels[:] = 255 - pixels
            assert np.array_equal(picture.load(), kept)

    def law_equal_keys_are_equal_pictures(self) -> None:
        """Two pictures share a key only when they share all pixels."""
        first: dict[str, Image] = {}
        for index in range(min(len(self.subject), 256)):
            for segment in self.subject.document(index):
                if (
                    isinstance(segment, Image)
                    and first.setdefault(segment.key, segment) is not segment
                ):
                    assert np.array_equal(first[segment.key].load(), segment.load())

    def law_texts_hold_every_canonical_text(self) -> None:
        """`texts` includes every canonical text, for tokenizers to learn from."""
        texts = "\n".join(self.subject.texts())
        for index in range(min(len(self.subject), 256)):
            for segment in self.subject.document(index):
                if isinstance(segment, Text):
                    assert segment.text in texts

    def law_groups_are_names(self, data: st.DataObject) -> None:
        """A group is a string, "" for none, and stable."""
        index = self._draw_index(data)
        assert isinstance(self.subject.group(index), str)
        assert self.subject.group(index) == self.subject.group(index)

    def law_skipped_records_say_why(self) -> None:
        """Bad records don't raise: each is listed with place, cause and next step."""
        for record in self.subject.skipped:
            assert all(
                isinstance(part, str) and part
                for part in (record.place, record.cause, record.next_step)
            )

    def law_an_index_outside_is_refused(self) -> None:
        """Document -1 and documents after the last are refused."""
        count = len(self.subject)
        for index in (-1, count):
            with pytest.raises(DataError, match=f"^document {index}: the data set has {count}"):
                self.subject.document(index)

    def _draw_index(self, data: st.DataObject) -> int:
        return data.draw(st.integers(0, len(self.subject) - 1))


def _draw_rng(data: st.DataObject) -> np.random.Generator | None:
    seed = data.draw(st.none() | st.integers(0, 2**32 - 1))
    return None if seed is None else np.random.default_rng(seed)


def _ids(source: DocumentSource) -> list[str]:
    return [source.id(index) for index in range(len(source))]


def _kind_or_key(segment: object) -> str | type:
    return segment.key if isinstance(segment, Image) else type(segment)
