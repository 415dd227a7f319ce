"""`HFTokenizer`: any `tokenizer.json`, with special tokens that texts can't produce.

Added tokens are matched in a text before anything else, so they are removed from the file, except
those that are white space. Vocabulary tokens that are control tokens are renamed to strings that no text
is split into, and merges that produce them are dropped: a tokenizer with whole words as tokens
(`ignore_merges`, Unigram) would find them otherwise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cm3core.errors import TokenizerError
from cm3core.files import write_text
from cm3core.interfaces.text_tokenizer import TextTokenizer
from cm3plugins.text_tokenizers.shielding import (
    MOST_IDS,
    Encoded,
    is_control,
    read_file,
    shielded,
    without,
)
from cm3run.faults import panics_as_errors

#: File written by `save`.
FILE_NAME = "tokenizer.json"
_NEXT = "use a model's tokenizer.json in the format of Hugging Face's tokenizers"


class HFTokenizer(TextTokenizer):
    """A tokenizer from Hugging Face's `tokenizers`.

    Args:
        content: text of a `tokenizer.json`.
        place: its origin, for error messages.
        control: regular expressions of control tokens.
    """

    def __init__(self, content: str, place: str, control: Sequence[str]) -> None:
        self._content, self._place = content, place
        try:
            values = json.loads(content)
            tokens = _numbered(values)
            added = {one["content"]: one["id"] for one in values.get("added_tokens") or []}
            special = {text for text in added if text.strip()}
            unknown = values["model"].get("unk_token")
            if values["model"].get("unk_id") is not None:
                unknown = values["model"]["vocab"][values["model"]["unk_id"]][0]
            hidden = special | {token for token in tokens if is_control(token, control)}
            with panics_as_errors():
                self._tokenizer = Tokenizer.from_str(json.dumps(_without_special(values, hidden)))
        except Exception as error:
            # the Rust library raises plain Exception for anything it can't read
            text = f"{type(error).__name__}: {str(error)[:200]}"
            raise TokenizerError(place, f"is not a tokenizer.json ({text})", _NEXT) from error
        ids = added | tokens
        self._hidden = frozenset(ids[token] for token in hidden)
        #: Ids that texts must never produce; unknown characters may produce the unknown token.
        self._control = self._hidden - ({ids[unknown]} if unknown in ids else set())
        self._special = {token: ids[token] for token in hidden if ids[token] in self._control}
        self._vocab_size = 1 + max(ids.values(), default=-1)
        if self._vocab_size > MOST_IDS:
            raise TokenizerError(
                place,
                f"has the id {self._vocab_size - 1}, above the limit of {MOST_IDS - 1:,}",
                _NEXT,
            )
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        facts = json.dumps([values, list(control)], sort_keys=True)
        self._fingerprint = hashlib.sha256(facts.encode()).hexdigest()

    @classmethod
    def from_file(cls, path: Path, control: Sequence[str]) -> HFTokenizer:
        """Read a `tokenizer.json`. Raises `TokenizerError` if it can't be used."""
        try:
            content = read_file(path).decode("utf-8")
        except UnicodeDecodeError as error:
            raise TokenizerError(str(path), f"is not UTF-8 ({error.reason})", _NEXT) from error
        return cls(content, str(path), control)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, including special tokens, which texts never produce."""
        return self._vocab_size

    @property
    def fingerprint(self) -> str:
        """Hash of the file's values, and of the control tokens."""
        return self._fingerprint

    def special_ids(self) -> Mapping[str, int]:
        """Added tokens and control tokens, except the unknown token."""
        return self._special

    def _encode(self, text: str) -> list[int]:
        return shielded(text, self._plainly, self._control, self._place)

    def _plainly(self, text: str) -> Encoded:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(without(ids, self._hidden), skip_special_tokens=False)
        return text

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` into `folder`, unchanged."""
        write_text(folder / FILE_NAME, self._content)


def _numbered(values: dict[str, Any]) -> dict[str, int]:
    """Return the model's tokens and their ids."""
    vocab = values["model"]["vocab"]
    if isinstance(vocab, list):
        return {piece[0]: place for place, piece in enumerate(vocab)}
    numbered: dict[str, int] = vocab
    return numbered


def _without_special(values: dict[str, Any], hidden: set[str]) -> dict[str, Any]:
    """Return the file's values with `hidden` tokens unreachable; ids are unchanged."""
    # merge dropout is only for training: a text would get other ids each time
    model = dict(values["model"])
    if isinstance(model.get("dropout"), float):
        model["dropout"] = None
    kept_names = {model.get("unk_token")} if model.get("type") in ("WordPiece", "WordLevel") else {}
    names = {
        token: f"\ue000{number}\ue001"
        for token, number in _numbered(values).items()
        if token in hidden and token not in kept_names
    }
    if isinstance(model["vocab"], list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {names.get(token, token): n for token, n in model["vocab"].items()}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if model.get("merges"):
        pairs = ((merge, _pair(merge)) for merge in model["merges"])
        model["merges"] = [
            merge
            for merge, (first, second) in pairs
            if not {first, second, first + second} & names.keys()
        ]
    added = [one for one in values.get("added_tokens") or [] if not one["content"].strip()]
    return values | {"model": model, "added_tokens": added, "post_processor": None}


def _pair(merge: Any) -> tuple[str, str]:
    """Return the two tokens of a merge; older files write them as one text with a space."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second
