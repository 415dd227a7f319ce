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

from hypothesis import strategies as st

from cm3core.errors import TokenizerError
from cm3core.interfaces.text_tokenizer import TextTokenizer
from cm3kits._config_laws import ConfigLaws, Outputs
from cm3kits._findings import difference, holds, refuses, same, shown
from cm3kits.samples import SAMPLE_TEXTS, SPECIAL_SPELLINGS
from cm3kits.strategies import texts

__all__ = ["SAMPLE_TEXTS", "SPECIAL_SPELLINGS", "TextTokenizerContract"]

#: Texts with other frequent pairs of letters than the samples.
OTHER_TEXTS = ("quick quilts", "quick quails", "wizards quiz wizards", "puzzles puzzle puzzlers")
#: Ids that `observe` decodes.
_MOST_IDS = 512


class TextTokenizerContract(ConfigLaws[TextTokenizer]):
    """Laws of a text tokenizer. `config` must be set: its `load` reads what `save` wrote."""

    kind: ClassVar[str] = "text_tokenizer"

    def build(self, config: Any) -> TextTokenizer:
        """Build, training on `SAMPLE_TEXTS` if it is trained."""
        tokenizer: TextTokenizer = config.build(SAMPLE_TEXTS)
        return tokenizer

    def observe(self, component: TextTokenizer) -> Outputs:
        """Ids of texts, and texts of ids."""
        some = (*SAMPLE_TEXTS, *OTHER_TEXTS, *SPECIAL_SPELLINGS, "Wet  PAINT\n\n 12,345.67 Ünïcode")
        size = component.vocab_size
        return {
            "vocab_size": size,
            "ids": component.encode_batch(some),
            "special ids": dict(component.special_ids()),
            "decoded ids": [component.decode([one]) for one in range(min(size, _MOST_IDS))],
        }

    def trained_on(self, corpus: Sequence[str]) -> TextTokenizer:
        """Return the tokenizer of another corpus."""
        tokenizer: TextTokenizer = self.config.build(corpus)
        return tokenizer

    def law_round_trip_is_lossless(self, data: st.DataObject) -> None:
        """Every valid string comes back: spaces, control characters, joined emoji, special tokens."""
        text = data.draw(texts())
        ids = self.subject.encode(text)
        same(self.subject.decode(ids), text, f"encoded {text!r} to {shown(ids)}, and decoded that")

    def law_ids_are_in_range(self, data: st.DataObject) -> None:
        """Ids are whole numbers 0..vocab_size-1, the same in every call and in a batch."""
        batch, size = data.draw(st.lists(texts(), max_size=4)), self.subject.vocab_size
        encoded = [self.subject.encode(text) for text in batch]
        for text, ids in zip(batch, encoded, strict=True):
            for place, one in enumerate(ids):
                holds(
                    type(one) is int and 0 <= one < size,
                    f"encoded {text!r}",
                    f"ids of type int in 0..{size - 1}",
                    f"{shown(one)} of type {type(one).__name__}",
                    where=f"id {place}",
                )
        same(
            self.subject.encode_batch(batch),
            encoded,
            f"encoded {batch!r} with encode_batch, and one by one with encode",
        )

    def law_every_sequence_of_ids_is_text(self, data: st.DataObject) -> None:
        """Any ids that a model generates decode to a valid string."""
        ids = data.draw(st.lists(st.integers(0, self.subject.vocab_size - 1), max_size=12))
        text = self.subject.decode(ids)
        lone = [letter for letter in text if "\ud800" <= letter <= "\udfff"]
        holds(
            not lone,
            f"decoded the ids {ids}",
            "a valid string",
            f"{text!r}, which is not a valid string: a lone surrogate",
            next_step='decode bytes with errors="replace"',
        )

    def law_special_tokens_cant_be_injected(self, data: st.DataObject) -> None:
        """A spelled special token is ordinary text: it is more than one id, and comes back."""
        spelling = data.draw(st.sampled_from(SPECIAL_SPELLINGS))
        before, after = data.draw(texts()), data.draw(texts())
        text = before + spelling + after
        same(
            self.subject.decode(self.subject.encode(text)),
            text,
            f"encoded {text!r} and decoded its ids",
        )
        ids = self.subject.encode(spelling)
        holds(
            len(ids) > 1,
            f"encoded the text {spelling!r}",
            "several ids, as of any text",
            f"{ids}: {spelling} is one id of the tokenizer",
            next_step="encode without recognising special tokens in texts: whoever writes a caption "
            "could otherwise write the end of a document",
        )

    def law_special_ids_are_no_text(self, data: st.DataObject) -> None:
        """`special_ids` are ids of the tokenizer, and no text has one, its own name least of all."""
        special = self.subject.special_ids()
        for name, one in special.items():
            holds(
                0 <= one < self.subject.vocab_size,
                f"looked at the special id of {name!r}",
                f"one of 0..{self.subject.vocab_size - 1}",
                one,
            )
        text = data.draw(texts()) + data.draw(st.sampled_from([*special, ""]))
        both = sorted(set(special.values()).intersection(self.subject.encode(text)))
        holds(not both, f"encoded {text!r}", "no special id", f"the special ids {both}")

    def law_ids_outside_are_refused(self) -> None:
        """An id that is not a text id raises, with its place."""
        size = self.subject.vocab_size
        for bad in (-1, size):
            error = refuses(
                lambda bad=bad: self.subject.decode([0, bad]),  # type: ignore[misc]  # a default
                f"decoded the ids [0, {bad}]",
                TokenizerError,
            )
            same(error.place, "ids[1]", "looked at the error's place")
            cause = f"{bad} is not a text id (0..{size - 1})"
            same(error.cause, cause, "looked at the error's cause")

    def law_lone_surrogates_are_refused(self) -> None:
        """Invalid Unicode raises; it is never changed silently."""
        refuses(
            lambda: self.subject.encode("a\ud800"),
            "encoded 'a\\ud800', which is not valid Unicode",
            TokenizerError,
            match="is not valid Unicode",
        )

    def law_equal_makes_are_equal(self) -> None:
        """Equal configs and texts give the same non-empty fingerprint, size and ids."""
        again, did = self.make_again(), "made it twice, and compared "
        holds(again.fingerprint, "looked at its fingerprint", "a text", again.fingerprint)
        same(again.fingerprint, self.subject.fingerprint, did + "the fingerprints")
        same(again.vocab_size, self.subject.vocab_size, did + "vocab_size")
        same(
            again.encode_batch(SAMPLE_TEXTS),
            self.subject.encode_batch(SAMPLE_TEXTS),
            did + "the ids of texts",
        )

    def law_different_ids_have_different_fingerprints(self) -> None:
        """Tokenizers of different corpora that give some text different ids differ in fingerprint.

        A checkpoint would otherwise be used with ids that its model has not learned.
        """
        corpora = SAMPLE_TEXTS, SAMPLE_TEXTS + OTHER_TEXTS, (*OTHER_TEXTS, *SAMPLE_TEXTS[::-1])
        with self.building():
            tokenizers = [self.subject, *map(self.trained_on, corpora)]
        for first, second in itertools.combinations(tokenizers, 2):
            found = difference(second.encode_batch(corpora[1]), first.encode_batch(corpora[1]))
            holds(
                (found is None and first.vocab_size == second.vocab_size)
                or first.fingerprint != second.fingerprint,
                "built it with two corpora, which give texts other ids",
                "two fingerprints",
                f"the same fingerprint: {first.fingerprint!r}",
                next_step="hash what was learned, not the config alone",
            )

    def law_inputs_are_not_written_to(self, data: st.DataObject) -> None:
        """The lists of texts and of ids are unchanged."""
        batch = data.draw(st.lists(texts(), min_size=1, max_size=4))
        given_texts = list(batch)
        encoded = self.subject.encode_batch(given_texts)
        same(given_texts, batch, "encoded a list of texts, and looked at the list")
        for ids in encoded:
            given_ids = list(ids)
            self.subject.decode(given_ids)
            same(given_ids, list(ids), "decoded a list of ids, and looked at the list")

    def law_saved_is_loaded(self) -> None:
        """`save`, then `load`, gives the same tokenizer, which saves the same files."""
        did = "saved it, loaded that, and compared "
        with tempfile.TemporaryDirectory() as name:
            folder, second = Path(name, "first"), Path(name, "second")
            folder.mkdir()
            second.mkdir()
            self.subject.save(folder)
            with self.building():
                loaded = self.config.load(folder)
            same(loaded.fingerprint, self.subject.fingerprint, did + "the fingerprints")
            same(loaded.vocab_size, self.subject.vocab_size, did + "vocab_size")
            same(
                loaded.encode_batch(SAMPLE_TEXTS),
                self.subject.encode_batch(SAMPLE_TEXTS),
                did + "the ids of texts",
            )
            loaded.save(second)
            same(_contents(second), _contents(folder), did + "the files that both save")


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
