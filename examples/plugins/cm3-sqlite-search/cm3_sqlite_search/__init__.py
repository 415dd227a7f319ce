"""A retriever for cm3leon whose index is a file: full-text search by SQLite (FTS5)."""

from dataclasses import dataclass
from pathlib import Path

from cm3core.hookspecs import hookimpl
from cm3core.interfaces import RetrieverConfig

CM3_API = 1


@dataclass(kw_only=True)
class SQLiteRetrieverConfig(RetrieverConfig):
    """Documents that share words with the query's text, by the BM25 of SQLite's FTS5.

    k1 is 1.2 and b 0.75. Pictures are ignored. The index is a file, named by the documents'
    contents: built once, opened in a moment, and rebuilt when they change.

    Args:
        stem: "apples" finds "apple" (Porter's stemmer, for English).
        cache: folder of the index. None: `sqlite-search` in cm3leon's cache (`CM3_CACHE`).
    """

    # the folder decides where the index is, not what is found
    not_in_outputs = ("cache",)

    stem: bool = True
    cache: str | None = None

    def build(self, memory, embedder):
        from cm3_sqlite_search.retriever import SQLiteRetriever
        from cm3core.files import cache_folder

        folder = (
            cache_folder("sqlite-search") if self.cache is None else Path(self.cache).expanduser()
        )
        return SQLiteRetriever(memory, folder, stem=self.stem)


@hookimpl
def cm3_retrievers():
    return {"sqlite": SQLiteRetrieverConfig}
