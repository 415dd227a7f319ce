"""A layout of one request and one answer, for models that draw pictures and do not read them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from cm3core.document import IntArray
from cm3core.errors import DocumentError
from cm3core.interfaces.layout import Boundary, Frame, Layout
from cm3core.vocab import Vocabulary
from cm3published.layouts.turns import split_at


@dataclass(frozen=True)
class RequestTokens:
    """The token ids that a request layout writes.

    Args:
        begin: ids from the start of a sequence to the request.
        answer: ids between a request and its answer.
        end: ids after an answer.
        opening, closing: ids before and after a picture.
        blank: see `Layout.blank`.
        text_prefix: see `Layout.text_prefix`.
    """

    begin: tuple[int, ...]
    answer: tuple[int, ...]
    end: tuple[int, ...]
    opening: tuple[int, ...]
    closing: tuple[int, ...]
    blank: int
    text_prefix: str


class RequestLayout(Layout):
    """A layout of documents whose last segment is the answer.

    Args:
        name: for messages.
        vocabulary: its ids.
        tokens: ids around segments.
    """

    def __init__(self, name: str, vocabulary: Vocabulary, tokens: RequestTokens) -> None:
        self._name, self._vocabulary, self.tokens = name, vocabulary, tokens

    @property
    def name(self) -> str:
        return self._name

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    @property
    def fingerprint(self) -> str:
        """Hash of the tokens."""
        facts = json.dumps([self._name, asdict(self.tokens)])
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    @property
    def begin(self) -> tuple[int, ...]:
        return self.tokens.begin

    @property
    def end(self) -> tuple[int, ...]:
        return self.tokens.end

    @property
    def reads_pictures(self) -> bool:
        """No: see `between`."""
        return False

    @property
    def blank(self) -> int | None:
        return self.tokens.blank

    @property
    def text_prefix(self) -> str:
        return self.tokens.text_prefix

    def between(self, boundary: Boundary) -> tuple[int, ...]:
        """The ids before an answer.

        Raises:
            DocumentError: something follows a picture, or another document.
        """
        if boundary.before == "image":
            raise DocumentError(
                f"layout {self.name}",
                "has a picture with something behind it, and this model draws pictures but cannot "
                "read them: the network that it reads them through is not here",
                "put the picture last, or use a model that reads pictures",
            )
        if boundary.starts_document:
            raise DocumentError(
                f"layout {self.name}",
                "has one request and one answer, and retrieved documents would be others",
                "retrieve none (generate.retrieve=false)",
            )
        return self.tokens.answer

    def frame(self, grid: tuple[int, int]) -> Frame:
        return Frame(self.tokens.opening, (), self.tokens.closing)

    def segments(self, tokens: IntArray, grid: tuple[int, int]) -> list[tuple[str, IntArray]]:
        """As in other layouts; the ids before an answer include text ids."""
        parts = split_at(tokens, self.tokens.answer)
        return [one for part in parts for one in super(RequestLayout, self).segments(part, grid)]
