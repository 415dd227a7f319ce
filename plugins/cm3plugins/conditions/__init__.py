"""Conditions: pictures of structures, drawn from pictures or from boxes. Here are the configs.

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

#: Where the files of weights are published.
WEIGHTS = "https://huggingface.co/lllyasviel/Annotators"


@dataclass(kw_only=True)
class DrawnConfig(ConditionConfig):
    """Base of the conditions that opencv draws (extra `conditions`), with settings that training varies.

    Args:
        vary: training draws each setting that says so from (1 - vary) to (1 + vary) times its own.
    """

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
        feature: what the structure is called in a document.
        low, high: thresholds of the gradient: edges begin above `high` and go on above `low`; varied.
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
    """Lines as a pen draws them, white on black: extended difference of Gaussians (extra `conditions`;
    Winnemoeller, Kyprianidis and Olsen 2012).

    Args:
        feature: what the structure is called in a document.
        sigma: width of the lines: the smaller blur, in pixels of a picture of 256 pixels a side; the
            other is 1.6 times as wide; varied.
        threshold: difference of brightness, 0 to 1, from which on there is a line; varied.
        sharpness: how fast a line sets in; more is more like ink.
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
    """Where neighbouring pixels differ, broad black lines on white: what an image tokenizer of few codes
    keeps. Needs no extra.

    Args:
        feature: what the structure is called in a document.
        size: pixels of the shorter side to which the picture is shrunk first; a smaller one is taken as it is.
        threshold: difference of grey values, of 255, that is an edge.
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
        feature: what the structure is called in a document.
        shortest: length of the shortest line, in pixels of a picture of 256 pixels a side; varied.
        scale: the picture is scaled by this before lines are looked for: less finds fewer, smoother
            ones; varied.
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
    """Regions of like colours, each in a colour of its own: a segmentation map without labels (extra
    `conditions`; mean shift, Comaniciu and Meer 2002).

    Args:
        feature: what the structure is called in a document.
        radius: how far colours are averaged, in pixels of a picture of 256 pixels a side; varied.
        colours: difference of colours, of 255, that one region may have; varied.
        smallest: regions of less than this share of the picture are black.
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
    """Base of the conditions that a network of `controlnet_aux` draws (extra `controlnet`), from a file of
    weights that you have. Nothing is downloaded, and no code in the file is run.

    Args:
        path: the file of weights; it must be given.
        resolution: pixels of the picture's shorter side as the network sees it; its sides are rounded to
            multiples of 64.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(READS, "the network's weights"),
    }

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"resolution": (64, 2048)}
    #: The file, as it is published.
    file: ClassVar[str] = ""
    path: str = ""
    resolution: int = 512

    def build(self) -> Condition:
        """Load the weights.

        Raises:
            RecipeError: no file is named.
            CheckpointError: there is no such file, or it holds other tensors.
            MissingPackageError: controlnet_aux is not installed.
        """
        self.check()
        name = next(name for name, known in CONDITIONS.items() if isinstance(self, known))
        step = f"give the file {self.file}, published at {WEIGHTS}"
        if not self.path:
            raise RecipeError("condition.path", f"is not given; {name!r} needs weights", step)
        path = user_path(self.path)
        if not path.is_file():
            raise CheckpointError(str(path), "there is no such file of weights", step)
        if find_spec("controlnet_aux") is None:
            raise MissingPackageError.extra(f"condition {name!r}", "controlnet_aux", "controlnet")
        from cm3plugins.conditions.networks import NETWORKS, NetworkStructure

        return NetworkStructure(name, NETWORKS[name], path, self.resolution, step)


@dataclass(kw_only=True)
class HEDConfig(NetworkConfig):
    """Soft edges, white on black: holistically nested edge detection (extra `controlnet`; Xie and Tu
    2015).

    Args:
        feature: what the structure is called in a document.
    """

    file: ClassVar[str] = "ControlNetHED.pth"
    feature: str = "hed features"


@dataclass(kw_only=True)
class PoseConfig(NetworkConfig):
    """Bodies as sticks on black (extra `controlnet`; OpenPose, Cao et al. 2017, whose licence allows no
    commercial use).

    Args:
        feature: what the structure is called in a document.
    """

    file: ClassVar[str] = "body_pose_model.pth"
    feature: str = "openpose features"


@dataclass(kw_only=True)
class DepthConfig(NetworkConfig):
    """Near surfaces are bright (extra `controlnet`; MiDaS 3 as dpt_hybrid, Ranftl et al. 2021).

    Args:
        feature: what the structure is called in a document.
    """

    file: ClassVar[str] = "dpt_hybrid-midas-501f0c75.pt"
    feature: str = "midas depth features"


@dataclass(kw_only=True)
class NormalsConfig(NetworkConfig):
    """The directions of surfaces as colours (extra `controlnet`; Bae, Budvytis and Cipolla 2021).

    Args:
        feature: what the structure is called in a document.
    """

    file: ClassVar[str] = "scannet.pt"
    feature: str = "normal map"


@dataclass(kw_only=True)
class BoxesConfig(ConditionConfig):
    """Objects at boxes, drawn from a text: "bell at (10, 12) -> (40, 44)", coordinates 0 to 255. A label
    has always the same colour.

    Args:
        feature: what the structure is called in a document.
        size: pixels a side of what is drawn.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"size": (8, 4096)}
    feature: str = "boxes"
    size: int = 256

    def build(self) -> Condition:
        from cm3plugins.conditions.plain import BoxPicture

        return BoxPicture(self.size)


@dataclass(kw_only=True)
class AsItIsConfig(ConditionConfig):
    """A picture that is a structure already, as it is: a sketch, a segmentation map, a pose.

    Args:
        feature: what the structure is called in a document: the words of the model's training.
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
