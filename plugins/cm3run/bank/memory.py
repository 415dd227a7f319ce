"""What memory banks and databases of documents have in common: they know what made their vectors and
codes, and refuse to be used with anything else."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from cm3core.arguments import checked
from cm3core.errors import DataError
from cm3core.interfaces.dataset import DocumentSource

if TYPE_CHECKING:
    from cm3core.interfaces.embedder import Embedder
    from cm3core.interfaces.image_tokenizer import ImageTokenizer
    from cm3run.bank.manifest import Maker, Manifest


class Memory(DocumentSource):
    """Documents of `Text` and `Codes` segments with their vectors.

    Args (set by subclasses):
        manifest: what made the vectors and codes.
    """

    manifest: Manifest

    @property
    @abstractmethod
    def place(self) -> str:
        """Where it is, for messages."""

    @checked(DataError)
    def check_embedder(self, embedder: Embedder) -> None:
        """Raise `DataError` unless the vectors are this embedder's."""
        maker = self.manifest.embedder
        if maker.fingerprint != embedder.fingerprint:
            raise self._made_with("embedder", maker, embedder.fingerprint)

    @checked(DataError)
    def check_tokenizer(self, image_tokenizer: ImageTokenizer) -> None:
        """Raise `DataError` unless the codes are this image tokenizer's."""
        maker = self.manifest.image_tokenizer
        if maker.fingerprint != image_tokenizer.fingerprint:
            raise self._made_with("image_tokenizer", maker, image_tokenizer.fingerprint)

    def _made_with(self, kind: str, maker: Maker, here: str) -> DataError:
        name = kind.replace("_", " ")
        return DataError(
            self.place,
            f"was built with another {name} ({maker.name!r}, fingerprint "
            f"{maker.fingerprint[-12:]}; the one here has {here[-12:]})",
            f"use the {name} that it was built with, or build a bank for the model: cm3 memory build "
            "DATA --model MODEL -o FOLDER (the model's goes before a recipe's)",
        )
