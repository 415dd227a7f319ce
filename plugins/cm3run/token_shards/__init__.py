"""Token shards: a data set's documents with their pictures as codes and their texts as ids, in tar files
that any WebDataset reader reads. Written by `cm3 data encode`, by many processes; read by a data set that
streams them.

    FOLDER/manifest.json             splits, shards with their SHA-256, tokenizers, licences; written last
    FOLDER/text_tokenizer/           what builds the text tokenizer again
    FOLDER/skipped.jsonl             records that could not be used, and why
    FOLDER/SPLIT-000000.tar          for each document KEY.json (texts, ids, where it is from) and KEY.npy (codes)
"""

from cm3run.token_shards.manifest import (
    DUPLICATES,
    MANIFEST,
    Manifest,
    Settings,
    ShardInfo,
    SplitInfo,
    StoredFile,
    TokenizerInfo,
    kept_documents,
)
from cm3run.token_shards.record import Entry, StoredDocument, entries_of, stored_document
from cm3run.token_shards.writing import SHARD_SIZE, Encoder, Part, Progress, Tokenizers

__all__ = [
    "DUPLICATES",
    "MANIFEST",
    "SHARD_SIZE",
    "Encoder",
    "Entry",
    "Manifest",
    "Part",
    "Progress",
    "Settings",
    "ShardInfo",
    "SplitInfo",
    "StoredDocument",
    "StoredFile",
    "TokenizerInfo",
    "Tokenizers",
    "entries_of",
    "kept_documents",
    "stored_document",
]
