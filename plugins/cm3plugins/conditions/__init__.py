"""Configs of conditions: structure pictures, drawn from pictures or from boxes.

`plain.py` needs no further package, `opencv.py` the extra `conditions`, `networks.py` the networks of `controlnet_aux`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

from cm3core.errors import CheckpointError, MissingPackageError, RecipeError
from cm3core.files import user_path
from cm3core.interfaces.condition import ConditionConfig
from cm3core.interfaces.reach import READS, Outside

if TYPE_CHECKING:
    from cm3core.interfaces.condition import Condition

#: Where the weights are published.
WEIGHTS = "https://huggingface.co/lllyasviel/Annotators"


@dataclass(kw_only=True)
class DrawnConfig(ConditionConfig):
    """Base of the conditions drawn with opencv (extra `conditions`). Training can vary their settings.

    Args:
        vary: in training, each setting marked "varied" is multiplied by a random factor from (1 - vary) to (1 + vary).
    """

    packages: ClassVar[Mapping[str, str]] = {"cv2": "pip install 'cm3leon[conditions]'"}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"vary": (0, 0.99)}
    vary: float = 0.4

    def build(self) -> Condition:
        """Return the condition.

        Raises:
            MissingPackageError: opencv is not installed.
        """
        self.check()
        if find_spec("cv2") is None:
            name = next(name for name, known in CONDITIONS.items() if isinstance(self, known))
            raise MissingPackageError.extra(
                f"condition {name!r}", "opencv-python-headless", "conditions"
            )
        return self._build()

    def _build(self) -> Condition:
        raise NotImplementedError


@dataclass(kw_only=True)
class CannyConfig(DrawnConfig):
    """Canny's edges, white on black (extra `conditions`).

    Args:
        feature: name of the structure in a document.
        low, high: thresholds of the gradient: edges start above `high` and continue above `low`; varied.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **DrawnConfig.ranges,
        "low": (0, 1e5),
        "high": (0, 1e5),
    }
    feature: str = "canny edge features"
    low: float = 100.0
    high: float = 200.0
    vary: float = 0.5

    def _build(self) -> Condition:
        from cm3plugins.conditions.opencv import CannyEdges

        return CannyEdges(self.low, self.high, self.vary)


@dataclass(kw_only=True)
class XDoGConfig(DrawnConfig):
    """Pen-like lines, white on black: extended difference of Gaussians (extra `conditions`;
    Winnemoeller, Kyprianidis and Olsen 2012).

    Args:
        feature: name of the structure in a document.
        sigma: width of the lines: standard deviation of the smaller blur, for a picture of 256 pixels a side;
            the other blur is 1.6 times as wide; varied.
        threshold: smallest difference in brightness, 0 to 1, that makes a line; varied.
        sharpness: how abruptly a line starts; higher values look more like ink.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **DrawnConfig.ranges,
        "sigma": (0.1, 20),
        "threshold": (0, 1),
        "sharpness": (1, 1e4),
    }
    feature: str = "scribble"
    sigma: float = 1.0
    threshold: float = 0.01
    sharpness: float = 100.0

    def _build(self) -> Condition:
        from cm3plugins.conditions.opencv import SketchLines

        return SketchLines(self.sigma, self.threshold, self.sharpness, self.vary)


@dataclass(kw_only=True)
class EdgesConfig(ConditionConfig):
    """Broad black lines on white where neighbouring pixels differ. They survive image tokenizers with few
    codes. Needs no extra.

    Args:
        feature: name of the structure in a document.
        size: the picture is first shrunk to this many pixels on its shorter side; smaller pictures stay as they are.
        threshold: difference in grey value (0 to 255) above which pixels form an edge.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "size": (8, 4096),
        "threshold": (0, 255),
    }
    feature: str = "edges"
    size: int = 64
    threshold: float = 64.0

    def build(self) -> Condition:
        from cm3plugins.conditions.plain import PlainEdges

        return PlainEdges(self.size, self.threshold)


@dataclass(kw_only=True)
class LineSegmentsConfig(DrawnConfig):
    """Straight lines, white on black: the line segment detector (extra `conditions`; Grompone von Gioi,
    Jakubowicz, Morel and Randall 2010).

    Args:
        feature: name of the structure in a document.
        shortest: length of the shortest line kept, in pixels for a picture of 256 pixels a side; varied.
        scale: factor by which the picture is scaled before lines are detected; lower values find fewer,
            smoother lines; varied.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **DrawnConfig.ranges,
        "shortest": (0, 256),
        "scale": (0.1, 2),
    }
    feature: str = "line segments"
    shortest: float = 12.0
    scale: float = 0.8

    def _build(self) -> Condition:
        from cm3plugins.conditions.opencv import LineSegments

        return LineSegments(self.shortest, self.scale, self.vary)


@dataclass(kw_only=True)
class RegionsConfig(DrawnConfig):
    """Regions of similar colour, each in a colour of its own: a segmentation map without labels (extra
    `conditions`; mean shift, Comaniciu and Meer 2002).

    Args:
        feature: name of the structure in a document.
        radius: radius over which colours are averaged, in pixels for a picture of 256 pixels a side; varied.
        colours: largest difference in colour (0 to 255) within a region; varied.
        smallest: regions smaller than this fraction of the picture are black.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **DrawnConfig.ranges,
        "radius": (1, 50),
        "colours": (1, 255),
        "smallest": (0, 1),
    }
    feature: str = "regions"
    radius: float = 8.0
    colours: float = 24.0
    smallest: float = 0.002

    def _build(self) -> Condition:
        from cm3plugins.conditions.opencv import Regions

        return Regions(self.radius, self.colours, self.smallest, self.vary)


@dataclass(kw_only=True)
class NetworkConfig(ConditionConfig):
    """Base of the conditions drawn by a network of `controlnet_aux` (extra `controlnet`), from your own copy
    of its weights. Nothing is downloaded, and no code in the file is run.

    Args:
        path: file of weights; required.
        resolution: the picture's shorter side is scaled to this many pixels for the network; sides are
            rounded to multiples of 64.
    """

    packages: ClassVar[Mapping[str, str]] = {"controlnet_aux": "pip install 'cm3leon[controlnet]'"}
    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(READS, "the network's weights"),
    }

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"resolution": (64, 2048)}
    #: Name of the published file.
    file: ClassVar[str] = ""
    path: str = ""
    resolution: int = 512

    def build(self) -> Condition:
        """Load the weights.

        Raises:
            RecipeError: no file is given.
            CheckpointError: there is no such file, or it holds other tensors.
            MissingPackageError: controlnet_aux is not installed.
        """
        self.check()
        self._check_given()
        name, step = self._name, self._step
        path = user_path(self.path)
        if not path.is_file():
            raise CheckpointError(str(path), "no such weights file", step)
        if find_spec("controlnet_aux") is None:
            raise MissingPackageError.extra(f"condition {name!r}", "controlnet_aux", "controlnet")
        from cm3plugins.conditions.networks import NETWORKS, NetworkStructure

        return NetworkStructure(name, NETWORKS[name], path, self.resolution, step)

    def check_ready(self) -> None:
        """Refuse a config without a file."""
        self._check_given()
        super().check_ready()

    @property
    def _name(self) -> str:
        return next(name for name, known in CONDITIONS.items() if isinstance(self, known))

    @property
    def _step(self) -> str:
        return f"give the file {self.file}, published at {WEIGHTS}"

    def _check_given(self) -> None:
        if not self.path:
            raise RecipeError(
                "condition.path", f"is not set; {self._name!r} needs weights", self._step
            )


@dataclass(kw_only=True)
class HEDConfig(NetworkConfig):
    """Soft edges, white on black: holistically nested edge detection (extra `controlnet`; Xie and Tu
    2015).

    Args:
        feature: name of the structure in a document.
    """

    file: ClassVar[str] = "ControlNetHED.pth"
    feature: str = "hed features"


@dataclass(kw_only=True)
class PoseConfig(NetworkConfig):
    """Bodies as stick figures on black (extra `controlnet`; OpenPose, Cao et al. 2017; its licence forbids
    commercial use).

    Args:
        feature: name of the structure in a document.
    """

    file: ClassVar[str] = "body_pose_model.pth"
    feature: str = "openpose features"


@dataclass(kw_only=True)
class DepthConfig(NetworkConfig):
    """A depth map, bright where near (extra `controlnet`; MiDaS 3 as dpt_hybrid, Ranftl et al. 2021).

    Args:
        feature: name of the structure in a document.
    """

    file: ClassVar[str] = "dpt_hybrid-midas-501f0c75.pt"
    feature: str = "midas depth features"


@dataclass(kw_only=True)
class NormalsConfig(NetworkConfig):
    """Surface normals as colours (extra `controlnet`; Bae, Budvytis and Cipolla 2021).

    Args:
        feature: name of the structure in a document.
    """

    file: ClassVar[str] = "scannet.pt"
    feature: str = "normal map"


@dataclass(kw_only=True)
class BoxesConfig(ConditionConfig):
    """Objects in boxes, drawn from a text: "bell at (10, 12) -> (40, 44)", coordinates 0 to 255. A label
    always has the same colour.

    Args:
        feature: name of the structure in a document.
        size: side of the drawn picture in pixels.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"size": (8, 4096)}
    feature: str = "boxes"
    size: int = 256

    def build(self) -> Condition:
        from cm3plugins.conditions.plain import BoxPicture

        return BoxPicture(self.size)


@dataclass(kw_only=True)
class AsItIsConfig(ConditionConfig):
    """The picture unchanged, for pictures that are structures already: sketches, segmentation maps, poses.

    Args:
        feature: name of the structure in a document, worded as in the model's training.
    """

    def build(self) -> Condition:
        from cm3plugins.conditions.plain import PictureAsItIs

        return PictureAsItIs()


#: Name in recipes -> config.
CONDITIONS: dict[str, type[ConditionConfig]] = {
    "as_is": AsItIsConfig,
    "boxes": BoxesConfig,
    "canny": CannyConfig,
    "depth": DepthConfig,
    "edges": EdgesConfig,
    "hed": HEDConfig,
    "lsd": LineSegmentsConfig,
    "normals": NormalsConfig,
    "pose": PoseConfig,
    "regions": RegionsConfig,
    "xdog": XDoGConfig,
}
