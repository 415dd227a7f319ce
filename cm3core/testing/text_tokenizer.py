"""Conformance kit of kind `text_tokenizer`.

class TestMine(TextTokenizerContract):
    config = MyTokenizerConfig()
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st

from cm3core.errors import TokenizerError
from cm3core.interfaces.text_tokenizer import TextTokenizer
from cm3core.testing._laws import Contract
from cm3core.testing.samples import SAMPLE_TEXTS, SPECIAL_SPELLINGS
from cm3core.testing.strategies import texts

__all__ = ["SAMPLE_TEXTS", "SPECIAL_SPELLINGS", "TextTokenizerContract"]

#: Texts with other frequent pairs of letters than the samples.
OTHER_TEXTS = ("quick quilts", "quick quails", "wizards quiz wizards", "puzzles puzzle puzzlers")


class TextTokenizerContract(Contract[TextTokenizer]):
    """Laws of a text tokenizer. `config` must be set: its `load` reads what `save` wrote."""

    kind: ClassVar[str] = "text_tokenizer"

    def build(self, config: Any) -> TextTokenizer:
        """Build, training on `SAMPLE_TEXTS` if it is trained."""
        tokenizer: TextTokenizer = config.build(SAMPLE_TEXTS)
        return tokenizer

    def trained_on(self, corpus: Sequence[str]) -> TextTokenizer:
        """Return the tokenizer of another corpus."""
        tokenizer: TextTokenizer = self.config.build(corpus)
        return tokenizer

    def law_round_trip_is_lossless(self, data: st.DataObject) -> None:
        """Every valid string comes back: spaces, control characters, joined emoji, special tokens."""
        text = data.draw(texts())
        assert self.subject.decode(self.subject.encode(text)) == text

    def law_ids_are_in_range(self, data: st.DataObject) -> None:
        """Ids are whole numbers 0..vocab_size-1, the same in every call and in a batch."""
        batch = data.draw(st.lists(texts(), max_size=4))
        encoded = [self.subject.encode(text) for text in batch]
        assert all(
            type(token) is int and 0 <= token < self.subject.vocab_size
            for ids in encoded
            for token in ids
        )
        assert self.subject.encode_batch(batch) == encoded

    def law_every_sequence_of_ids_is_text(self, data: st.DataObject) -> None:
        """Any ids that a model generates decode to a valid string."""
        ids = data.draw(st.lists(st.integers(0, self.subject.vocab_size - 1), max_size=12))
        assert not any("\ud800" <= letter <= "\udfff" for letter in self.subject.decode(ids)), (
            "not a valid string: a lone surrogate"
        )

    def law_special_tokens_cant_be_injected(self, data: st.DataObject) -> None:
        """A spelled special token is ordinary text: it is more than one id, and comes back."""
        spelling = data.draw(st.sampled_from(SPECIAL_SPELLINGS))
        before, after = data.draw(texts()), data.draw(texts())
        ids = self.subject.encode(before + spelling + after)
        assert self.subject.decode(ids) == before + spelling + after
        assert len(self.subject.encode(spelling)) > 1, f"{spelling} is one id of the tokenizer"

    def law_special_ids_are_no_text(self, data: st.DataObject) -> None:
        """`special_ids` are ids of the tokenizer, and no text has one, its own name least of all."""
        special = self.subject.special_ids()
        assert all(0 <= one < self.subject.vocab_size for one in special.values())
        text = data.draw(texts()) + data.draw(st.sampled_from([*special, ""]))
        assert set(special.values()).isdisjoint(self.subject.encode(text))

    def law_ids_outside_are_refused(self) -> None:
        """An id that is not a text id raises, with its place."""
        size = self.subject.vocab_size
        for bad in (-1, size):
            with pytest.raises(TokenizerError) as caught:
                self.subject.decode([0, bad])
            assert caught.value.place == "ids[1]"
            assert caught.value.cause == f"{bad} is not a text id (0..{size - 1})"

    def law_lone_surrogates_are_refused(self) -> None:
        """Invalid Unicode raises; it is never changed silently."""
        with pytest.raises(TokenizerError, match="is not valid Unicode"):
            self.subject.encode("a\ud800")

    def law_equal_makes_are_equal(self) -> None:
        """Equal configs and texts give the same non-empty fingerprint, size and ids."""
        again = self.make_again()
        assert again.fingerprint
        assert (again.fingerprint, again.vocab_size) == (
            self.subject.fingerprint,
            self.subject.vocab_size,
        )
        assert again.encode_batch(SAMPLE_TEXTS) == self.subject.encode_batch(SAMPLE_TEXTS)

    def law_different_ids_have_different_fingerprints(self) -> None:
        """Tokenizers of different corpora that give some text different ids differ in fingerprint.

        A checkpoint would otherwise be used with ids that its model has not learned.
        """
        corpora = SAMPLE_TEXTS, SAMPLE_TEXTS + OTHER_TEXTS, (*OTHER_TEXTS, *SAMPLE_TEXTS[::-1])
        tokenizers = [self.subject, *map(self.trained_on, corpora)]
        for first, second in itertools.combinations(tokenizers, 2):
            same = first.vocab_size == second.vocab_size and first.encode_batch(
                corpora[1]
            ) == second.encode_batch(corpora[1])
            assert same or first.fingerprint != second.fingerprint

    def law_inputs_are_not_written_to(self, data: st.DataObject) -> None:
        """The lists of texts and of ids are unchanged."""
        batch = data.draw(st.lists(texts(), min_size=1, max_size=4))
        given_texts = list(batch)
        encoded = self.subject.encode_batch(given_texts)
        assert given_texts == batch
        for ids in encoded:
            given_ids = list(ids)
            self.subject.decode(given_ids)
            assert given_ids == ids

    def law_saved_is_loaded(self) -> None:
        """`save`, then `load`, gives the same tokenizer, which saves the same files."""
        with tempfile.TemporaryDirectory() as name:
            folder, second = Path(name, "first"), Path(name, "second")
            folder.mkdir()
            second.mkdir()
            self.subject.save(folder)
            loaded = self.config.load(folder)
            assert (loaded.fingerprint, loaded.vocab_size) == (
                self.subject.fingerprint,
                self.subject.vocab_size,
            )
            assert loaded.encode_batch(SAMPLE_TEXTS) == self.subject.encode_batch(SAMPLE_TEXTS)
            loaded.save(second)
            assert _contents(second) == _contents(folder)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
