"""Token shards: a data set's documents with pictures as codes and texts as ids, in tar files
that any WebDataset reader can read. `cm3 data encode` writes them with any number of processes; a streaming
data set reads them.

    FOLDER/manifest.json             splits, shards with their SHA-256, tokenizers, licences; written last
    FOLDER/text_tokenizer/           files for building the text tokenizer again
    FOLDER/skipped.jsonl             records that could not be used, and why
    FOLDER/SPLIT-000000.tar          for each document KEY.json (texts, ids, source) and KEY.npy (codes)
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
