"""`VQGANTokenizer`: the VQGAN network with the framework's image tokenizer interface, and its weights file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from cm3core.errors import CheckpointError
from cm3core.files import sha256_file
from cm3core.picture_form import PictureForm
from cm3plugins.image_tokenizers.by_network import NetworkTokenizer
from cm3plugins.image_tokenizers.vqgan.model import VQModel
from cm3plugins.image_tokenizers.vqgan.settings import SAVED, VQGANArchitecture, facts
from cm3plugins.trained.bundled import weights_path
from cm3plugins.trained.weights_file import WeightsFormat, check_architecture, filled

FORMAT = WeightsFormat(
    "vqgan_architecture",
    VQGANArchitecture,
    how_to_train="train a tokenizer with `cm3 tokenizer train-image`",
)


def save_weights(
    path: str | Path,
    arch: VQGANArchitecture,
    state: Mapping[str, Tensor],
    *,
    half: bool = False,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write `state` atomically; `half` stores everything but the codebook as fp16.

    `notes` are further metadata.
    """
    tensors = {
        name: tensor.half() if half and not name.startswith("quantize.") else tensor
        for name, tensor in state.items()
    }
    FORMAT.save(path, arch, tensors, notes)


def load_weights(path: str | Path) -> tuple[VQGANArchitecture, dict[str, Tensor]]:
    """Read architecture and fp32 tensors of a file written by `save_weights`; see `WeightsFormat.load`."""
    return FORMAT.load(path)


def build_model(arch: VQGANArchitecture, state: Mapping[str, Tensor], place: str) -> VQModel:
    """Return the network with `state` loaded, in evaluation mode.

    Raises:
        CheckpointError: keys or shapes differ.
    """
    return filled(VQModel(arch), state, place)


class VQGANTokenizer(NetworkTokenizer):
    """Encodes and decodes pixels with a VQGAN.

    Args:
        model: the network; set to evaluation mode.
        bundled: whether its weights are part of this package, so that checkpoints need no copy.
    """

    batch_pixels: ClassVar[int] = 32 * 64 * 64  # 32 pictures of 64 px

    def __init__(self, model: VQModel, *, bundled: bool = False) -> None:
        super().__init__(model)
        self.model, self.bundled = model, bundled
        self._form = model.arch.form
        self._grid = self._form.grid

    @classmethod
    def from_file(
        cls,
        path: Path,
        arch: VQGANArchitecture,
        *,
        sha256: str | None = None,
        bundled: bool = False,
    ) -> VQGANTokenizer:
        """Load the tokenizer from a weights file.

        Args:
            path: the file.
            arch: expected architecture. `resolution` may differ if
                `attn_resolutions` is empty.
            sha256: expected SHA-256 of the file, if given.
            bundled: see the class.

        Raises:
            CheckpointError: the file can't be read, or has another architecture or hash.
        """
        stored, state = load_weights(path)
        if sha256 is not None and (found := sha256_file(path)) != sha256:
            raise CheckpointError(
                str(path),
                f"its SHA-256 is {found}, the recipe expects {sha256}",
                "use the right file, or correct image_tokenizer.weights_sha256",
            )
        if not stored.attn_resolutions:
            # convolutions, and attention in the middle, work at any size
            stored = replace(stored, resolution=arch.resolution)
        check_architecture(arch, stored, path, "image_tokenizer")
        return cls(build_model(stored, state, str(path)), bundled=bundled)

    @property
    def image_size(self) -> tuple[int, int]:
        return self.model.arch.resolution, self.model.arch.resolution

    @property
    def form(self) -> PictureForm:
        return self._form

    @property
    def grid(self) -> tuple[int, int]:
        return self._grid

    @property
    def codebook_size(self) -> int:
        return self.model.arch.codebook_size

    def facts_of_codes(self) -> str:
        """Return the network's architecture as text."""
        arch = self.model.arch
        return json.dumps(facts(arch, arch), sort_keys=True)

    def save(self, folder: Path) -> None:
        """Write the weights, unless they are bundled.

        Lossless: uses fp16 only if that is exact (training stores fp16).
        """
        if self.bundled:
            return
        state = {name: tensor.cpu() for name, tensor in self.model.state_dict().items()}
        halved = [tensor for name, tensor in state.items() if not name.startswith("quantize.")]
        half = all(torch.equal(tensor.half().float(), tensor) for tensor in halved)
        save_weights(folder / SAVED, self.model.arch, state, half=half)


def weights_file(weights: str | None) -> Path:
    """Return the path for a recipe's `weights`.

    Raises:
        CheckpointError: `weights` is an unknown bundled name, or None.
    """
    assets = Path(__file__).parent / "assets"
    return weights_path(
        weights,
        {path.parent.name: path for path in assets.glob("*/model.safetensors")},
        owner="vqgan",
        section="image_tokenizer",
        component="tokenizer",
        trainer="cm3 tokenizer train-image",
    )
