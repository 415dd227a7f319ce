"""`classes`: each text is the number or the name of a class. Light: standard library only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from cm3core.errors import TokenizerError
from cm3core.files import user_path, write_text
from cm3core.interfaces.component import check_given
from cm3core.interfaces.reach import READS, Outside
from cm3core.interfaces.text_tokenizer import TextTokenizer, TextTokenizerConfig
from cm3plugins.text_tokenizers.shielding import read_file

#: File written by `save`.
FILE_NAME = "classes.txt"


_GIVE = "set it, for ImageNet to 1000, or set text_tokenizer.path to a file with their names"


@dataclass(kw_only=True)
class ClassesConfig(TextTokenizerConfig):
    """One id per text: a class, given by its number (0, 1, ...) or its name. For class-conditional models.

    An empty text has no id; any other text raises an error.

    Args:
        num_classes: number of classes (ImageNet: 1,000). null: as many as `path` has names.
        path: a text file with one class name per line, in the order of the classes. null: numbers only.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(READS, "the names of the classes"),
    }

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"num_classes": (1, 2**24)}
    reads_words: ClassVar[bool] = False

    num_classes: int | None = None
    path: str | None = None

    def check_ready(self) -> None:
        """The number of classes must be known from one of the two keys."""
        super().check_ready()
        if self.path is None:
            check_given("text_tokenizer.num_classes", self.num_classes, _GIVE)

    @property
    def max_vocab_size(self) -> int | None:
        """`num_classes`."""
        return self.num_classes

    def build(self, corpus: Iterable[str] | None = None) -> ClassTokenizer:
        """Read `path`, if given. Raises `TokenizerError` if the number of names doesn't match."""
        return self._read(None if self.path is None else user_path(self.path))

    def saved_in(self, folder: Path) -> ClassesConfig:
        """With the names in `folder`, if classes have names."""
        saved = folder / FILE_NAME
        return replace(self, path=str(saved) if saved.is_file() else None)

    def _read(self, path: Path | None) -> ClassTokenizer:
        if path is None:
            check_given("text_tokenizer.num_classes", self.num_classes, _GIVE)
            assert self.num_classes is not None
            return ClassTokenizer(self.num_classes, ())
        names = read_file(path).decode("utf-8", "replace").splitlines()
        number = len(names) if self.num_classes is None else self.num_classes
        if len(names) != number or len({_plain(name) for name in names}) != len(names):
            raise TokenizerError(
                str(path),
                f"has {len(names)} lines, {len({_plain(name) for name in names})} of them different, but there are "
                f"{number} classes",
                "write one unique class name per line",
            )
        return ClassTokenizer(number, names)


class ClassTokenizer(TextTokenizer):
    """Maps names and numbers of classes to numbers and back.

    Args:
        num_classes: number of classes.
        names: names of all classes, or none.
    """

    def __init__(self, num_classes: int, names: Sequence[str]) -> None:
        self._num, self._names = num_classes, tuple(names)
        self._ids = {_plain(name): number for number, name in enumerate(names)}

    @property
    def vocab_size(self) -> int:
        return self._num

    @property
    def fingerprint(self) -> str:
        """Hash of the number of classes and their names."""
        facts = json.dumps([self._num, self._names])
        return hashlib.sha256(facts.encode()).hexdigest()

    def _encode(self, text: str) -> list[int]:
        """Raises `TokenizerError` for a non-empty text that is not a class."""
        if not text:
            return []
        plain = _plain(text)
        if plain in self._ids:
            return [self._ids[plain]]
        if plain.isascii() and plain.isdigit() and len(plain) <= 9 and int(plain) < self._num:
            return [int(plain)]
        raise TokenizerError(
            "text",
            f"{text[:40]!r} is not a class of the model",
            f"give its number, 0 to {self._num - 1}" + (", or its name" if self._names else ""),
        )

    def _decode(self, ids: Sequence[int]) -> str:
        """Return names, or numbers, separated by spaces."""
        return " ".join(self._names[one] if self._names else str(one) for one in ids)

    def save(self, folder: Path) -> None:
        """Write `classes.txt` into `folder`, if classes have names."""
        if self._names:
            write_text(folder / FILE_NAME, "\n".join(self._names) + "\n")


def _plain(name: str) -> str:
    return name.strip().casefold()
