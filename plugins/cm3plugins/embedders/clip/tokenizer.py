"""CLIP's text tokenizer: lower-cased byte-level BPE with end-of-word marks, using `tokenizers`.

Legend: N texts, T tokens of the longest text.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor

from cm3core.errors import CheckpointError
from cm3run.faults import panics_as_errors

#: The merges of all OpenAI CLIPs (MIT, see `assets/README.md`), and the number of its lines that
#: are
#: used.
BUNDLED_MERGES = Path(__file__).parent / "assets" / "bpe_simple_vocab_16e6.txt.gz"
_NUM_MERGES = 49152 - 256 - 2
START, END = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

logger = logging.getLogger("cm3plugins.clip")


class CLIPTokenizer:
    """Encodes texts as CLIP's ids between start and end tokens, truncated to the context.

    Args:
        tokenizer: encodes plain text, without the two tokens.
        context_length: tokens that the text tower reads, including the two.
        place: name used in messages.

    Raises:
        CheckpointError: the vocabulary lacks the start or end token.
    """

    def __init__(self, tokenizer: Tokenizer, context_length: int, place: str) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
        if start is None or end is None:
            raise CheckpointError(
                place,
                f"its vocabulary has no {START if start is None else END}",
                "use CLIP's tokenizer",
            )
        self._tokenizer, self._context_length, self._start, self._end = (
            tokenizer,
            context_length,
            start,
            end,
        )
        self._has_told = False

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return max(self._tokenizer.get_vocab().values()) + 1

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines the ids."""
        return hashlib.sha256(self._tokenizer.to_str().encode("utf-8")).hexdigest()

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return ids int64 [N, T], padded with 0, and the positions int64 [N] of the end tokens.

        The first truncation is logged.
        """
        room = self._context_length - 2
        rows = [
            encoding.ids
            for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ]
        longest = max(map(len, rows))
        if longest > room and not self._has_told:
            self._has_told = True
            logger.warning(
                "clip reads at most %d tokens of a text, and one has %d: longer texts are truncated "
                "(reported once)",
                room,
                longest,
            )
        rows = [[self._start, *row[:room], self._end] for row in rows]
        ids_NT = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        for place, row in enumerate(rows):
            ids_NT[place, : len(row)] = torch.tensor(row)
        return ids_NT, torch.tensor([len(row) - 1 for row in rows])


def load_tokenizer(folder: Path, context_length: int) -> CLIPTokenizer:
    """Load the tokenizer of a folder, or OpenAI's, which is bundled.

    The files are `tokenizer.json`, otherwise `vocab.json` and `merges.txt`.

    Raises:
        CheckpointError: the files can't be read.
    """
    whole, vocabulary, merges = (
        folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt")
    )
    if whole.is_file():
        try:
            with panics_as_errors():
                read = Tokenizer.from_file(str(whole))
            return CLIPTokenizer(read, context_length, str(whole))
        except CheckpointError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise _unreadable(whole, error) from error
    if vocabulary.is_file() and merges.is_file():
        try:
            ids = json.loads(vocabulary.read_text(encoding="utf-8"))
            pairs = _pairs(merges.read_text(encoding="utf-8").splitlines())
            return CLIPTokenizer(_tokenizer(ids, pairs), context_length, str(vocabulary))
        except CheckpointError:
            raise
        except Exception as error:  # the Rust library raises plain Exception for a user's files
            raise _unreadable(vocabulary, error) from error
    return CLIPTokenizer(_tokenizer(*bundled_vocabulary()), context_length, BUNDLED_MERGES.name)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        str(path),
        f"is not a readable tokenizer ({error})",
        "copy it again, or remove it: OpenAI's is then used",
    )


def bundled_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the ids and merges of OpenAI's CLIPs.

    Ids are 256 bytes, the same bytes at the end of a word, the merges in order, then start and end token.
    """
    lines = (
        gzip.decompress(BUNDLED_MERGES.read_bytes())
        .decode("utf-8")
        .split("\n")[1 : _NUM_MERGES + 1]
    )
    pairs = _pairs(lines)
    letters = _byte_letters()
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *("".join(pair) for pair in pairs),
        START,
        END,
    ]
    return {token: index for index, token in enumerate(tokens)}, pairs


def _pairs(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Parse pairs, one `left right` per line; comments and empty lines are skipped."""
    pairs = []
    for line in lines:
        if line and not line.startswith("#version"):
            left, right = line.split()
            pairs.append((left, right))
    return pairs


def _byte_letters() -> list[str]:
    """GPT-2's letter for each byte, printable bytes first, in OpenAI's order."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    return [*map(chr, printable), *(chr(256 + place) for place in range(256 - len(printable)))]


def _tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """Build the tokenizer as in transformers.

    Start and end tokens are never parsed from text: spelled out, they are ordinary letters.
    """
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=END,
            fuse_unk=False,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer
