"""Conditions `hed`, `pose`, `depth` and `normals`: networks of `controlnet_aux`, with weights from a file."""

from __future__ import annotations

import contextlib
import io
import types
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from cm3core.errors import CheckpointError
from cm3core.files import sha256_file
from cm3core.interfaces.condition import Condition
from cm3plugins.trained.tensor_files import open_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cm3core.document import PixelArray

#: The networks halve a picture up to six times.
_STEP = 64
#: A picture's longer side is scaled to at most this many times the shorter one; otherwise a strip of
#: one pixel would fill the memory.
_LONGEST = 4
_DIGITS = 16


@dataclass(frozen=True)
class Network:
    """A network of `controlnet_aux`.

    Args:
        make: returns the network with random weights.
        detector: network -> a function that draws from pixels.
        key: name of a network's tensor -> its name in the file.
    """

    make: Callable[[], Any]
    detector: Callable[[Any], Callable[..., PixelArray]]
    key: Callable[[str], str] = str


class NetworkStructure(Condition):
    """A network's drawing of a picture, scaled to the picture's size. Nothing is varied.

    Args:
        name: name of the condition.
        network: the network.
        path: file of weights.
        resolution: see `NetworkConfig`.
        step: next step in errors, if the weights belong to another network.

    Raises:
        CheckpointError: the file is damaged, or holds other tensors.
    """

    def __init__(self, name: str, network: Network, path: Path, resolution: int, step: str) -> None:
        with _quiet():
            module = network.make()
        _fill(module, path, network.key, step)
        module.eval().requires_grad_(False)
        self.resolution = resolution
        self._detector = network.detector(module)
        self._fingerprint = f"{name} 1 {resolution} {sha256_file(path)[:_DIGITS]}"

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def _draw(self, source: PixelArray, rng: np.random.Generator | None) -> PixelArray:
        height, width = source.shape[:2]
        shorter = min(height, width)
        high, wide = (
            _STEP * round(self.resolution * min(side / shorter, _LONGEST) / _STEP)
            for side in (height, width)
        )
        way = cv2.INTER_LANCZOS4 if min(high, wide) > shorter else cv2.INTER_AREA
        seen = cv2.resize(np.ascontiguousarray(source), (wide, high), interpolation=way)
        side = min(high, wide)  # the detector doesn't rescale
        # constant depth would divide zero by zero
        with np.errstate(invalid="ignore"):
            drawn = self._detector(
                seen, detect_resolution=side, image_resolution=side, output_type="np"
            )
        # when enlarging, opencv's area interpolation is bilinear
        scaled = cv2.resize(drawn, (width, height), interpolation=cv2.INTER_AREA)
        return np.asarray(scaled, np.uint8)


def _fill(module: nn.Module, path: Path, key: Callable[[str], str], step: str) -> None:
    """Load the weights of a file. Names are the network's own or a wrapper's."""
    own = module.state_dict()
    with open_tensors(path) as file:
        held = {name.removeprefix("module."): name for name in file.entries}
        tensors: dict[str, Tensor] = {}
        for name, value in own.items():
            stored = held.get(key(name))
            if stored is None and name.endswith("num_batches_tracked"):
                continue
            if stored is None or file.entries[stored].shape != tuple(value.shape):
                shape = list(value.shape)
                raise CheckpointError(str(path), f"has no tensor {key(name)!r} {shape}", step)
            tensors[name] = file.tensor(stored)
    module.load_state_dict(tensors, strict=False)


@contextlib.contextmanager
def _quiet() -> Any:
    """Silences the package, which prints and warns while it creates a network."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _hed() -> Any:
    from controlnet_aux.hed import ControlNetHED_Apache2

    return ControlNetHED_Apache2()


def _hed_detector(network: Any) -> Any:
    from controlnet_aux.hed import HEDdetector

    return HEDdetector(network)


def _pose() -> Any:
    from controlnet_aux.open_pose.model import bodypose_model

    return bodypose_model()


def _pose_detector(network: Any) -> Any:
    from controlnet_aux.open_pose import OpenposeDetector
    from controlnet_aux.open_pose.body import Body

    body = Body.__new__(Body)  # its constructor unpickles a file
    body.model = network
    return OpenposeDetector(body)


def _depth() -> Any:
    from controlnet_aux.midas.midas.dpt_depth import DPTDepthModel

    return DPTDepthModel(path=None, backbone="vitb_rn50_384", non_negative=True)


def _depth_detector(network: Any) -> Any:
    from controlnet_aux.midas import MidasDetector

    return MidasDetector(network)


def _normals() -> Any:
    from controlnet_aux.normalbae.nets.NNET import NNET

    # as in the package's own `from_pretrained`
    settings = {"mode": "client", "architecture": "BN", "pretrained": "scannet"}
    ratios = {"sampling_ratio": 0.4, "importance_ratio": 0.7}
    return NNET(types.SimpleNamespace(**settings, **ratios))


def _normals_detector(network: Any) -> Any:
    from controlnet_aux.normalbae import NormalBaeDetector

    return NormalBaeDetector(network)


#: Condition -> its network.
NETWORKS: Mapping[str, Network] = {
    "depth": Network(_depth, _depth_detector),
    "hed": Network(_hed, _hed_detector),
    "normals": Network(_normals, _normals_detector),
    # the file's names omit the network's two branches and their stages
    "pose": Network(_pose, _pose_detector, lambda name: name.partition(".")[2]),
}
