"""The bundled trackers: their configs. What they `build` is imported when it is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cm3core.errors import MissingPackageError
from cm3core.interfaces.tracker import Tracker, TrackerConfig


@dataclass(kw_only=True)
class TensorBoardConfig(TrackerConfig):
    """TensorBoard: metrics and sample pictures, in the folder `tensorboard` of the run."""

    is_default = True

    def build(self) -> Tracker:
        """Nothing is written before the run begins.

        Raises:
            MissingPackageError: `tensorboard` is not installed.
        """
        try:
            from cm3plugins.trackers.tensorboard import TensorBoard
        except ImportError as error:
            place = "tracker 'tensorboard'"
            raise MissingPackageError.extra(place, "tensorboard", "tensorboard") from error

        return TensorBoard()


TRACKERS: Mapping[str, type[TrackerConfig]] = {"tensorboard": TensorBoardConfig}
