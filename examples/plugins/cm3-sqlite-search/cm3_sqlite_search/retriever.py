"""The index and the search."""

import re
import sqlite3
from contextlib import closing

from cm3core.document import text_of
from cm3core.errors import DataError, MissingPackageError
from cm3core.files import atomic_path
from cm3core.interfaces import Retrieved, Retriever
from cm3run.built_once import built_once

#: Best first; rowids begin at 1. FTS5's scores are negative, lower is better.
SEARCH = "SELECT rowid - 1, -rank FROM documents WHERE documents MATCH ? ORDER BY rank, rowid"


class SQLiteRetriever(Retriever):
    """Search by words: documents that share none with the query are never found.

    A query without text finds nothing.

    Words that most documents have ("style" in the bundled captions) have almost no weight in BM25
    and cost the most: every document that has one gets a score. They are left out of queries that
    have other words.

    Args:
        memory: the documents.
        folder: of the index; an index that another process built is reused.
        stem: compare stems of words.
    """

    memory = None  # set below; a class attribute fills the interface's abstract property

    def __init__(self, memory, folder, *, stem):
        self.memory = memory
        self.path = folder / f"{memory.content_fingerprint[:32]}{'-stems' if stem else ''}.sqlite"

        def build(path):
            with atomic_path(path) as temporary:
                _write(temporary, memory, stem)

        # processes that start together build one index
        self.path = built_once(
            self.path,
            "building a search index",
            lambda path: path if path.exists() else None,
            build,
        )
        self._database = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False
        )
        self._counts = {}

    def _retrieve(self, queries, num_retrieved, exclude):
        return [
            self._found(query, num_retrieved, names)
            for query, names in zip(queries, exclude, strict=True)
        ]

    def _found(self, query, number, exclude):
        words = {f'"{word}"': self._count(f'"{word}"') for word in words_of(text_of(query))}
        known = [word for word, count in words.items() if count]
        telling = [word for word in known if words[word] <= len(self.memory) / 2]
        results = []
        for index, score in self._rows(SEARCH, " OR ".join(telling or known)):
            if not self.is_excluded(index, exclude):
                results.append(Retrieved(index, self.memory.id(index), score))
            if len(results) == number:
                break
        return results

    def _count(self, word):
        """Number of documents that have the word."""
        if word not in self._counts:
            ((self._counts[word],),) = self._rows(
                "SELECT count(*) FROM documents WHERE documents MATCH ?", word
            )
        return self._counts[word]

    def _rows(self, statement, expression):
        try:
            yield from self._database.execute(statement, [expression]) if expression else ()
        except sqlite3.DatabaseError as error:
            raise DataError(
                str(self.path), f"can't be searched ({error})", "delete it; it will be rebuilt"
            ) from error


def words_of(text):
    """Distinct words in a fixed order, so that word order never changes a query's scores."""
    return sorted(set(re.findall(r"\w+", text.casefold())))


def _write(path, memory, stem):
    """The index of all texts, without the texts themselves."""
    tokenizer = "porter unicode61" if stem else "unicode61"
    with closing(sqlite3.connect(path)) as database, database:
        try:
            database.execute(
                "CREATE VIRTUAL TABLE documents USING fts5(text, content='', "
                f"tokenize='{tokenizer}')"
            )
        except sqlite3.OperationalError as error:
            raise MissingPackageError(
                "retriever sqlite",
                f"this Python's SQLite has no FTS5 ({error})",
                "use another build of Python, or retriever=bm25",
            ) from error
        rows = ((index + 1, text_of(memory.document(index))) for index in range(len(memory)))
        database.executemany("INSERT INTO documents(rowid, text) VALUES (?, ?)", rows)
        database.execute("INSERT INTO documents(documents) VALUES ('optimize')")
