"""`classes`: a text is the number or the name of a class. Light: standard library only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cm3core.errors import TokenizerError
from cm3core.files import user_path, write_text
from cm3core.interfaces.reach import READS, Outside
from cm3core.interfaces.text_tokenizer import TextTokenizer, TextTokenizerConfig
from cm3plugins.text_tokenizers.shielding import read_file

#: What `save` writes into a folder.
FILE_NAME = "classes.txt"


@dataclass(kw_only=True)
class ClassesConfig(TextTokenizerConfig):
    """One id a text: that of a class, by its number (0, 1, ...) or its name. For models of classes.

    An empty text has no id, and any other is refused.

    Args:
        num_classes: how many there are (ImageNet: 1,000); it must be given.
        path: a text file with a name a line, in the order of the classes. null: numbers only.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(READS, "the names of the classes"),
    }

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"num_classes": (1, 2**24)}

    num_classes: int | None = None
    path: str | None = None

    @property
    def max_vocab_size(self) -> int | None:
        """`num_classes`."""
        return self.num_classes

    def build(self, corpus: Iterable[str] | None = None) -> ClassTokenizer:
        """Read `path`, if it is given. Raises `TokenizerError` for another number of names."""
        return self._read(None if self.path is None else user_path(self.path))

    def load(self, folder: Path) -> ClassTokenizer:
        """Return the tokenizer that was saved in `folder`."""
        saved = folder / FILE_NAME
        return self._read(saved if saved.is_file() else None)

    def _read(self, path: Path | None) -> ClassTokenizer:
        if self.num_classes is None:
            raise TokenizerError(
                "text_tokenizer.num_classes",
                "is null: nothing else says how many classes the model has",
                "give their number, for ImageNet 1000",
            )
        if path is None:
            return ClassTokenizer(self.num_classes, ())
        names = read_file(path).decode("utf-8", "replace").splitlines()
        if len(names) != self.num_classes or len({_plain(name) for name in names}) != len(names):
            raise TokenizerError(
                str(path),
                f"has {len(names)} lines, {len({_plain(name) for name in names})} of them different, for "
                f"{self.num_classes} classes",
                "write the name of each class on a line of its own, each another",
            )
        return ClassTokenizer(self.num_classes, names)


class ClassTokenizer(TextTokenizer):
    """Names and numbers of classes <-> their numbers.

    Args:
        num_classes: how many there are.
        names: of all, or none.
    """

    def __init__(self, num_classes: int, names: Sequence[str]) -> None:
        self._num, self._names = num_classes, tuple(names)
        self._ids = {_plain(name): number for number, name in enumerate(names)}

    @property
    def vocab_size(self) -> int:
        return self._num

    @property
    def fingerprint(self) -> str:
        """Hash of the number and the names."""
        facts = json.dumps([self._num, self._names])
        return hashlib.sha256(facts.encode()).hexdigest()

    def _encode(self, text: str) -> list[int]:
        """Raises `TokenizerError` for what is no class and not empty."""
        if not text:
            return []
        plain = _plain(text)
        if plain in self._ids:
            return [self._ids[plain]]
        if plain.isascii() and plain.isdigit() and len(plain) <= 9 and int(plain) < self._num:
            return [int(plain)]
        raise TokenizerError(
            "text",
            f"{text[:40]!r} is no class of the model",
            f"give its number, 0 to {self._num - 1}" + (", or its name" if self._names else ""),
        )

    def _decode(self, ids: Sequence[int]) -> str:
        """Names, or numbers, with spaces between."""
        return " ".join(self._names[one] if self._names else str(one) for one in ids)

    def save(self, folder: Path) -> None:
        """Write `classes.txt` into `folder`, if classes have names."""
        if self._names:
            write_text(folder / FILE_NAME, "\n".join(self._names) + "\n")


def _plain(name: str) -> str:
    return name.strip().casefold()
