"""Data set `tokens`: token shards, as `cm3 data encode` writes them, from a folder or an object store.

Here is its config, which imports nothing heavy.
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
    """Token shards that `cm3 data encode` wrote: documents with codes and text ids.

    Args:
        split: "train", or another that was encoded.
        path: the shards' folder, or its address in an object store, such as s3://bucket/folder (extra
            `s3`) or https://host/folder; any that fsspec knows. Keys and endpoints come from the
            environment, as fsspec and the store's own library read them.
        shuffle_shards: shards whose documents are shuffled together, a virtual loader's next ones of the
            shuffled shards. With at least as many as the split has, and `data.num_streams` 1, the order is that of
            any other data set.
        cache_dir: folder for shards that were fetched from a store; null: `CM3_CACHE`, else the user's cache
            folder.
        cache_gb: GB (10^9 bytes) that fetched shards may take there: those not used for longest are
            deleted; null: no limit.
        tries: times that a file of a store is asked for, with growing pauses, before training stops. The store's
            own library repeats each of them (AWS_MAX_ATTEMPTS).
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
        """Read the manifest; shards are read when their documents are.

        Raises:
            RecipeError: a value can't be used.
            DataError: there are no token shards, or not this split.
            MissingPackageError: the store needs a package.
        """
        from cm3core.files import cache_directory, user_path
        from cm3plugins.datasets.tokens.source import TokensSource
        from cm3plugins.datasets.tokens.storage import storage_of

        self.check()
        cache = cache_directory() if self.cache_dir is None else user_path(self.cache_dir)
        storage = storage_of(self.path, cache / "shards", self.cache_gb, self.tries)
        return TokensSource(storage, self.split, self.shuffle_shards)
