"""`PublicTokenizer`: a published VQ network with the framework's image tokenizer interface, read from its file with
strict checks of every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from safetensors.torch import save_file
from torch import Tensor

from cm3core.errors import CheckpointError
from cm3core.files import atomic_path, sha256_file
from cm3plugins.image_tokenizers.by_network import NetworkTokenizer
from cm3plugins.trained.tensor_files import open_tensors
from cm3plugins.trained.weights_file import channels_last, check_finite
from cm3published.image_tokenizers import SAVED, Published
from cm3published.image_tokenizers.dvae import DVAE, dvae_names, dvae_of
from cm3published.image_tokenizers.model import PublicVQ, empty
from cm3published.image_tokenizers.names import Sizes, sizes_of, tamings

#: Names of networks in errors.
_NETWORKS = {
    "vqgan": "a VQGAN's network",
    "movq": "MoVQGAN's network",
    "emu3": "Emu3's network",
}


def check_hash(path: Path, sha256: str | None, key: str) -> None:
    """Raise `CheckpointError` if the file's hash differs from `sha256`; None: accept any."""
    if sha256 is not None and path.is_file() and (found := sha256_file(path)) != sha256:
        raise CheckpointError(
            str(path),
            f"its SHA-256 is {found}, but the recipe expects {sha256}",
            f"use the right file, or correct image_tokenizer.{key}",
        )


def read_network(
    path: Path, facts: Published, others: Mapping[str, Published], *, second: Path | None = None
) -> PublicVQ | DVAE:
    """Read a network with its weights; nothing in the file is executed.

    Args:
        path: the file.
        facts: expected facts of the network.
        others: other published files that it might be, for the error.
        second: the decoder's file, if the decoder has a separate one.

    Raises:
        CheckpointError: the file can't be read, or belongs to another network.
    """
    with open_tensors(path) as file:
        tensors = file.all()
    model: PublicVQ | DVAE
    try:
        if facts.network == "dvae":
            model, state = _dvae(tensors, facts, path, second)
        else:
            model, state = _vq(tensors, facts, path, others)
    except CheckpointError:
        raise
    except (KeyError, ValueError) as error:
        cause = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            str(path), f"is not a VQ tokenizer ({cause})", f"use {facts.file}"
        ) from error
    state = {name: tensor.float() for name, tensor in state.items()}
    check_finite(state, path)
    _fill(model, state, facts, path)
    return channels_last(model.eval().requires_grad_(False))


def _vq(
    tensors: Mapping[str, Tensor], facts: Published, path: Path, others: Mapping[str, Published]
) -> tuple[PublicVQ, dict[str, Tensor]]:
    """Return the network on the meta device, and its tensors by its names."""
    state = tamings(tensors, averaged=facts.quantizer == "dot")
    _require_decoder(state, facts, path)
    sizes = sizes_of(state)
    if _kind(sizes) != _published_kind(facts):
        arch = sizes.arch
        matching = [
            name for name, other in others.items() if _kind(sizes) == _published_kind(other)
        ]
        kind = "logits" if sizes.gumbel else "nearest codes"
        same = sizes.network == facts.network
        found, expected = (
            "" if same else f" in {_NETWORKS[name]}" for name in (sizes.network, facts.network)
        )
        raise CheckpointError(
            str(path),
            f"has {arch.codebook_size:,} codes of {arch.downsampling} px by {kind}{found}, but the "
            f"recipe expects {facts.num_codes:,} of {facts.downsampling} px ({facts.quantizer})"
            f"{expected}",
            f"set image_tokenizer.model={matching[0]}" if matching else f"use {facts.file}",
        )
    return empty(sizes, facts.quantizer), state


def _kind(sizes: Sizes) -> tuple[int, int, bool, str]:
    arch = sizes.arch
    return arch.codebook_size, arch.downsampling, sizes.gumbel, sizes.network


def _published_kind(facts: Published) -> tuple[int, int, bool, str]:
    return facts.num_codes, facts.downsampling, facts.quantizer == "gumbel", facts.network


def _dvae(
    tensors: Mapping[str, Tensor], facts: Published, path: Path, second: Path | None
) -> tuple[DVAE, dict[str, Tensor]]:
    """As `_vq`, for DALL-E's network in two files, or in one file saved by this framework."""
    if second is None:
        state = dict(tensors)
    else:
        state = dvae_names(tensors, "encoder")
        with open_tensors(second) as file:
            state |= dvae_names(file.all(), "decoder")
    _require_decoder(state, facts, path)
    model, num_codes = dvae_of(state)
    if num_codes != facts.num_codes:
        raise CheckpointError(
            str(path),
            f"has {num_codes:,} codes, but the recipe expects {facts.num_codes:,}",
            f"use {facts.file}, or set image_tokenizer.num_codes",
        )
    return model, state


def _require_decoder(state: Mapping[str, Tensor], facts: Published, path: Path) -> None:
    if any(name.startswith("decoder.") for name in state):
        return
    encoder = any(name.startswith("encoder.") for name in state)
    raise CheckpointError(
        str(path),
        "has no decoder, so codes can't be decoded to pictures",
        f"use {facts.file}: files of transformers contain only the encoder"
        if encoder
        else f"give {facts.file}",
    )


def _fill(
    model: PublicVQ | DVAE, state: Mapping[str, Tensor], facts: Published, path: Path
) -> None:
    """Assign the network's tensors; raises `CheckpointError` for missing or unknown ones."""
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    problems = [f"{name} is missing" for name in wanted if name not in state]
    problems += [f"{name} is not used" for name in state if name not in wanted]
    problems += [
        f"{name} is {list(state[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in state and state[name].shape != shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            str(path),
            f"does not fit the network implied by its sizes: {', '.join(problems[:3])}{more}",
            f"use {facts.file} as published",
        )
    model.load_state_dict(state, assign=True)


class PublicTokenizer(NetworkTokenizer):
    """Encodes and decodes pixels with a published network.

    Args:
        model: the network.
        facts: facts about its file.
        image_size: (height, width) of pictures.
    """

    batch_pixels: ClassVar[int] = 512 * 512  # four pictures of 256 px

    def __init__(
        self, model: PublicVQ | DVAE, facts: Published, image_size: tuple[int, int]
    ) -> None:
        super().__init__(model)
        self.model, self.facts, self._image_size = model, facts, image_size

    @classmethod
    def from_file(
        cls,
        path: Path,
        facts: Published,
        image_size: tuple[int, int],
        *,
        sha256: str | None = None,
        others: Mapping[str, Published] | None = None,
        second: Path | None = None,
    ) -> PublicTokenizer:
        """Load the tokenizer from a file; tensors are read, nothing is executed.

        Args:
            path: the file.
            facts: expected facts of the network.
            image_size: (height, width) of pictures.
            sha256: expected SHA-256 of the file, if given.
            others: other published files that it might be, for the error.
            second: the decoder's file, if the decoder has a separate one.

        Raises:
            CheckpointError: the file can't be read, belongs to another model, or has another hash.
        """
        check_hash(path, sha256, "weights_sha256")
        return cls(read_network(path, facts, others or {}, second=second), facts, image_size)

    @property
    def image_size(self) -> tuple[int, int]:
        return self._image_size

    @property
    def grid(self) -> tuple[int, int]:
        height, width = self._image_size
        return height // self.facts.downsampling, width // self.facts.downsampling

    @property
    def codebook_size(self) -> int:
        return self.facts.num_codes

    def facts_of_codes(self) -> str:
        """Return the quantiser and the picture size as text."""
        return f"{self.facts.quantizer} {self._image_size}"

    def save(self, folder: Path) -> None:
        """Write the tensors with taming's names, in fp32."""
        tensors = {
            name: tensor.cpu().contiguous().clone()
            for name, tensor in self.model.state_dict().items()
        }
        with atomic_path(folder / SAVED) as temporary:
            save_file(tensors, temporary)
