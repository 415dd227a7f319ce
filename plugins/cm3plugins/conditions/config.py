"""Configs of the bundled conditions. Light."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cm3core.errors import MissingPackageError
from cm3core.interfaces.condition import ConditionConfig

if TYPE_CHECKING:
    from cm3plugins.conditions.as_is import PictureAsItIs
    from cm3plugins.conditions.boxes import BoxPicture
    from cm3plugins.conditions.edges import PlainEdges
    from cm3plugins.conditions.lines import CannyEdges, SketchLines
    from cm3plugins.conditions.regions import Regions


@dataclass(kw_only=True)
class CannyConfig(ConditionConfig):
    """Canny's edges, white on black (extra `conditions`).

    Args:
        feature: what the structure is called in a document.
        low, high: thresholds of the gradient: edges begin above `high` and go on above `low`.
        vary: training draws both thresholds from (1 - vary) to (1 + vary) times these.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "low": (0, 1e5),
        "high": (0, 1e5),
        "vary": (0, 0.99),
    }
    feature: str = "canny edge features"
    low: float = 100.0
    high: float = 200.0
    vary: float = 0.5

    def build(self) -> CannyEdges:
        need_opencv("canny")
        from cm3plugins.conditions.lines import CannyEdges

        return CannyEdges(self.low, self.high, self.vary)


@dataclass(kw_only=True)
class XDoGConfig(ConditionConfig):
    """Lines as a pen draws them, white on black: extended difference of Gaussians (extra `conditions`;
    Winnemoeller, Kyprianidis and Olsen 2012).

    Args:
        feature: what the structure is called in a document.
        sigma: width of the lines: the smaller blur, in pixels of a picture of 256 pixels a side; the
            other is 1.6 times as wide.
        threshold: difference of brightness, 0 to 1, from which on there is a line.
        sharpness: how fast a line sets in; more is more like ink.
        vary: training draws sigma and threshold from (1 - vary) to (1 + vary) times these.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "sigma": (0.1, 20),
        "threshold": (0, 1),
        "sharpness": (1, 1e4),
        "vary": (0, 0.99),
    }
    feature: str = "scribble"
    sigma: float = 1.0
    threshold: float = 0.01
    sharpness: float = 100.0
    vary: float = 0.4

    def build(self) -> SketchLines:
        need_opencv("xdog")
        from cm3plugins.conditions.lines import SketchLines

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

    def build(self) -> PlainEdges:
        from cm3plugins.conditions.edges import PlainEdges

        return PlainEdges(self.size, self.threshold)


@dataclass(kw_only=True)
class RegionsConfig(ConditionConfig):
    """Regions of like colours, each in a colour of its own: a segmentation map without labels (extra
    `conditions`; mean shift, Comaniciu and Meer 2002).

    Args:
        feature: what the structure is called in a document.
        radius: how far colours are averaged, in pixels of a picture of 256 pixels a side.
        colours: difference of colours, of 255, that one region may have.
        smallest: regions of less than this share of the picture are black.
        vary: training draws radius and colours from (1 - vary) to (1 + vary) times these.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "radius": (1, 50),
        "colours": (1, 255),
        "smallest": (0, 1),
        "vary": (0, 0.99),
    }
    feature: str = "regions"
    radius: float = 8.0
    colours: float = 24.0
    smallest: float = 0.002
    vary: float = 0.4

    def build(self) -> Regions:
        need_opencv("regions")
        from cm3plugins.conditions.regions import Regions

        return Regions(self.radius, self.colours, self.smallest, self.vary)


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

    def build(self) -> BoxPicture:
        from cm3plugins.conditions.boxes import BoxPicture

        return BoxPicture(self.size)


@dataclass(kw_only=True)
class AsItIsConfig(ConditionConfig):
    """A picture that is a structure already, as it is: a sketch, a segmentation map, a pose.

    Args:
        feature: what the structure is called in a document: the words of the model's training.
    """

    def build(self) -> PictureAsItIs:
        from cm3plugins.conditions.as_is import PictureAsItIs

        return PictureAsItIs()


def need_opencv(name: str) -> None:
    """Raise `MissingPackageError` unless opencv is installed."""
    from importlib.util import find_spec

    if find_spec("cv2") is None:
        raise MissingPackageError.extra(
            f"condition {name!r}", "opencv-python-headless", "conditions"
        )


#: Name in recipes -> config.
CONDITIONS: dict[str, type[ConditionConfig]] = {
    "as_is": AsItIsConfig,
    "boxes": BoxesConfig,
    "canny": CannyConfig,
    "edges": EdgesConfig,
    "regions": RegionsConfig,
    "xdog": XDoGConfig,
}
