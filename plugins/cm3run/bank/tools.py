"""What makes the vectors and codes of a memory bank, and how a bank keeps it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3core.files import new_place, sync_directory
from cm3run.bank.manifest import ImageTokenizerMaker, Maker, Manifest
from cm3run.devices import choose_device

if TYPE_CHECKING:
    from cm3core.interfaces.embedder import Embedder
    from cm3core.interfaces.image_tokenizer import ImageTokenizer
    from cm3core.interfaces.reach import Reach


@dataclass(frozen=True, eq=False)
class Tools:
    """What makes a bank's vectors and codes, and the recipe names and values by which it is built
    again.

    Args:
        embedder, image_tokenizer: built.
        embedder_name, image_tokenizer_name: in a recipe.
        embedder_config, image_tokenizer_config: their configs' values, as YAML holds them.
        reaches: what these values name outside; the bank of a user's own tools may use it.
    """

    embedder: Embedder
    image_tokenizer: ImageTokenizer
    embedder_name: str = ""
    embedder_config: Mapping[str, Any] = field(default_factory=dict)
    image_tokenizer_name: str = ""
    image_tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    reaches: Sequence[Reach] = ()

    def on(self, device: str | None) -> Tools:
        """These, computing on the device; None: the GPU when there is one, and the embedder where
        its config says."""
        chosen = choose_device(device)
        self.image_tokenizer.move_to(chosen)
        if device is not None:
            self.embedder.move_to(chosen)
        return self

    @property
    def manifest(self) -> Manifest:
        """Of a bank without documents."""
        tokenizer = self.image_tokenizer
        return Manifest(
            self.embedder.dimension,
            Maker(self.embedder_name, self.embedder_config, self.embedder.fingerprint),
            ImageTokenizerMaker(
                self.image_tokenizer_name,
                self.image_tokenizer_config,
                tokenizer.fingerprint,
                tokenizer.grid,
                tokenizer.codebook_size,
            ),
        )


def save_tokenizer(tokenizer: ImageTokenizer, folder: Path) -> None:
    """What is needed to build the image tokenizer again wherever the bank is moved; nothing when
    its config is enough."""
    if folder.exists():
        shutil.rmtree(folder)
    with new_place(folder) as temporary:
        temporary.mkdir()
        tokenizer.save(temporary)
        if any(temporary.iterdir()):
            temporary.rename(folder)
            sync_directory(folder.parent)
