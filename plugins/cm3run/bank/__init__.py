"""Memory banks: documents as texts and codes with their vectors, stored in a folder for retrieval.

    bank/
        manifest.json       the tools the bank was made with, and its shards in order; always replaced as a whole
        shards/HASH/        documents with vectors, written once and never changed, see `cm3run.bank.shard`
        image_tokenizer/    the image tokenizer's files, if it needs any
        index/              a retriever's search index; may be deleted

If a process is killed while it changes a bank, readers see either the old bank or the new one. Nothing is
pickled.
"""

from cm3run.bank.building import BuildReport, Shards, add_documents, build_bank, help_build
from cm3run.bank.editing import RemoveReport, merge_banks, remove_documents
from cm3run.bank.manifest import Manifest
from cm3run.bank.memory_bank import Memory, MemoryBank, memory_of
from cm3run.bank.shard import VectorRows
from cm3run.bank.writing import Tools

__all__ = [
    "BuildReport",
    "Manifest",
    "Memory",
    "MemoryBank",
    "RemoveReport",
    "Shards",
    "Tools",
    "VectorRows",
    "add_documents",
    "build_bank",
    "help_build",
    "memory_of",
    "merge_banks",
    "remove_documents",
]
