"""`InceptionExtractor`: the file is checked, pictures are scaled in one of two ways, features pooled."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor
from torch.nn import functional as F

from cm3core.document import PixelArray
from cm3core.errors import CheckpointError
from cm3core.files import sha256_file
from cm3core.interfaces.extractor import Extractor, FeatureArray
from cm3plugins.extractors.inception.network import NUM_FEATURES, Inception2015

FILE_NAME = "pt_inception-2015-12-05-6726825d.pth"
PUBLISHED = "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights"
SIDE = 299
LABELS = {"torch": "pytorch", "clean": "clean"}


class InceptionExtractor(Extractor):
    """Pooled features of the network.

    Args:
        network: with its weights.
        sha256: of the file.
        resize: "torch" or "clean", see the config.
        batch_size: pictures per forward pass.
    """

    def __init__(
        self, network: Inception2015, sha256: str, *, resize: str = "torch", batch_size: int = 32
    ) -> None:
        # in this layout a CPU convolves half as fast again; features differ by rounding
        self._network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stub
        self._sha256, self._resize, self._batch_size = sha256, resize, batch_size

    @classmethod
    def load(
        cls, path: Path, sha256: str | None, *, resize: str, batch_size: int
    ) -> InceptionExtractor:
        """Read the file; see `InceptionConfig`."""
        step = f"get {FILE_NAME} from {PUBLISHED}"
        if not path.is_file():
            raise CheckpointError(
                str(path),
                f"there is no such file; its sha256 is {sha256}"
                if sha256
                else "there is no such file",
                step,
            )
        found = sha256_file(path)
        if sha256 is not None and found != sha256:
            raise CheckpointError(
                str(path),
                f"has the sha256 {found}, not {sha256}",
                f"{step}, or set sha256 to null for other weights",
            )
        network = Inception2015()
        _fill(network, _tensors(path, step), path, step)
        return cls(network, found, resize=resize, batch_size=batch_size)

    @property
    def label(self) -> str:
        return LABELS[self._resize]

    @property
    def dimension(self) -> int:
        return NUM_FEATURES

    @property
    def fingerprint(self) -> str:
        return f"inception-2015 1 {self._resize} {self._sha256}"

    @torch.inference_mode()
    def _extract(self, pictures: Sequence[PixelArray]) -> FeatureArray:
        scale = _scaled_by_torch if self._resize == "torch" else _scaled_cleanly
        rows = []
        for start in range(0, len(pictures), self._batch_size):
            batch = [scale(one) for one in pictures[start : start + self._batch_size]]
            x_NCHW = torch.stack(batch).contiguous(memory_format=torch.channels_last)
            rows.append(self._network(x_NCHW).float().numpy())
        return np.concatenate(rows)


def _scaled_by_torch(pixels_HWC: PixelArray) -> Tensor:
    """float32 [3, 299, 299], -1 to 1, as pytorch-fid has it."""
    x_CHW = torch.from_numpy(np.ascontiguousarray(pixels_HWC)).permute(2, 0, 1).float() / 255
    x_NCHW = F.interpolate(x_CHW[None], size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return 2 * x_NCHW[0] - 1


def _scaled_cleanly(pixels_HWC: PixelArray) -> Tensor:
    """float32 [3, 299, 299], as clean-fid has it: channels scaled as floats, (x - 128) / 128."""
    channels = []
    for channel in range(3):
        picture = Pillow.fromarray(pixels_HWC[:, :, channel].astype(np.float32))
        scaled = picture.resize((SIDE, SIDE), Pillow.Resampling.BICUBIC)
        channels.append(np.asarray(scaled).clip(0, 255))
    return (torch.from_numpy(np.stack(channels)) - 128) / 128


def _is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a program beside its tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = [Path(name).parts for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return False
    return any("code" in one[:-1] or one[-1:] == ("constants.pkl",) for one in parts)


def _tensors(path: Path, step: str) -> dict[str, Tensor]:
    if _is_torchscript(path):
        raise CheckpointError(
            str(path),
            "is a TorchScript archive, such as NVIDIA's inception-2015-12-05.pt: what its tensors "
            "mean is said by the program in it, and programs in files are never run",
            f"{step}: it is the same network, and resize: clean scales as clean-fid does",
        )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            str(path), f"can't be read as tensors alone ({reason[:200]})", step
        ) from error
    if not isinstance(found, dict) or not all(isinstance(one, Tensor) for one in found.values()):
        raise CheckpointError(str(path), "is not a table of tensors", step)
    return found


def _fill(network: Inception2015, tensors: dict[str, Tensor], path: Path, step: str) -> None:
    """Load the weights; whether the file counts its batches doesn't matter."""
    own = network.state_dict()
    missing = sorted(
        name
        for name, value in own.items()
        if not name.endswith("num_batches_tracked")
        and (name not in tensors or tensors[name].shape != value.shape)
    )
    unknown = sorted(set(tensors) - set(own))
    if missing or unknown:
        cause = (
            f"has no tensor {missing[0]!r} of the right shape"
            if missing
            else f"has the unknown tensor {unknown[0]!r}"
        )
        raise CheckpointError(str(path), f"{cause}; it is not the Inception of 2015", step)
    network.load_state_dict(tensors, strict=False)
