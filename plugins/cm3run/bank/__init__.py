"""Memory banks: documents as texts and codes with their vectors, kept in a folder, for retrieval.

    bank/
        manifest.json       what the bank was made with, and its shards in order; it is replaced as a whole
        shards/HASH/        documents with vectors, written once and never changed, see `cm3run.bank.shard`
        image_tokenizer/    what the image tokenizer saved, when it needs files
        index/              what a retriever keeps to search faster; may be deleted

Whatever kills a process that changes a bank, a reader sees the old bank or the new one. Nothing in
it is a pickle.
"""

from cm3run.bank.building import BuildReport, add_documents, build_bank, help_build
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
    "Tools",
    "VectorRows",
    "add_documents",
    "build_bank",
    "help_build",
    "memory_of",
    "merge_banks",
    "remove_documents",
]
