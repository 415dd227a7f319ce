"""Data set `tokens`: token shards written by `cm3 data encode`, from a folder or an object store.

This module holds its config, which imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cm3core.interfaces.dataset import DocumentSourceConfig
from cm3core.interfaces.reach import READS, WRITES, Outside

if TYPE_CHECKING:
    from cm3plugins.datasets.tokens.source import TokensSource


@dataclass(kw_only=True)
class TokensSourceConfig(DocumentSourceConfig):
    """Token shards written by `cm3 data encode`: documents with codes and text ids.

    Args:
        split: "train", or another encoded split.
        path: the shards' folder, or its address in an object store, such as s3://bucket/folder (extra
            `s3`) or https://host/folder; any protocol of fsspec works. Keys and endpoints come from the
            environment, as read by fsspec and the store's own library.
        shuffle_shards: number of shards whose documents are shuffled together: a virtual loader's next ones
            in the shuffled list of shards. If it is at least the split's number of shards, and `data.num_streams` is 1, the
            order is as in any other data set.
        cache_dir: folder for shards fetched from a store; null: `CM3_CACHE` or, if unset, the user's cache
            folder.
        cache_gb: limit of fetched shards in GB (10^9 bytes): the least recently used ones are deleted; null:
            no limit.
        tries: number of times to request a file from a store, with growing pauses, before training stops. The
            store's own library also repeats each request (AWS_MAX_ATTEMPTS).
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(
            READS, "token shards; a store's library uses the credentials that it finds"
        ),
        "cache_dir": Outside(WRITES, "fetched shards"),
    }

    splits: ClassVar[tuple[str, ...]] = ("train", "valid")
    reads_token_shards: ClassVar[bool] = True
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "shuffle_shards": (1, 1 << 20),
        "cache_gb": (1e-6, 1e9),
        "tries": (1, 100),
    }

    path: str
    shuffle_shards: int = 16
    cache_dir: str | None = None
    cache_gb: float | None = None
    tries: int = 5

    def build(self) -> TokensSource:
        """Read the manifest; shards are read together with their documents.

        Raises:
            RecipeError: a value is invalid.
            DataError: there are no token shards, or the split does not exist.
            MissingPackageError: the store needs a package that is not installed.
        """
        from cm3core.files import cache_directory, user_path
        from cm3plugins.datasets.tokens.source import TokensSource
        from cm3plugins.datasets.tokens.storage import storage_of

        self.check()
        cache = cache_directory() if self.cache_dir is None else user_path(self.cache_dir)
        storage = storage_of(self.path, cache / "shards", self.cache_gb, self.tries)
        return TokensSource(storage, self.split, self.shuffle_shards)
