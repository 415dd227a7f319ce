"""The bundled tracker `tensorboard`, with torch's own writer, which `build` imports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cm3core.errors import MissingPackageError
from cm3core.interfaces.tracker import (
    Measured,
    PictureDrawn,
    RunStarted,
    Tracker,
    TrackerConfig,
    Validated,
)

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(kw_only=True)
class TensorBoardConfig(TrackerConfig):
    """TensorBoard: metrics and sample pictures in the run's folder `tensorboard`."""

    is_default = True

    def build(self) -> Tracker:
        """Return the tracker. Nothing is written before the run starts.

        Raises:
            MissingPackageError: `tensorboard` is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            place = "tracker 'tensorboard'"
            raise MissingPackageError.extra(place, "tensorboard", "tensorboard") from error

        return TensorBoard(SummaryWriter)


class TensorBoard(Tracker):
    """Writes event files into the run's folder `tensorboard`.

    Args:
        writer: torch's class `SummaryWriter`.
    """

    def __init__(self, writer: type[SummaryWriter]) -> None:
        self._class = writer
        self._writer: SummaryWriter | None = None

    def on_start(self, event: RunStarted) -> None:
        """Start the run. An earlier session's entries are dropped for repeated steps."""
        folder = str(event.folder / "tensorboard")
        self._writer = self._class(folder, purge_step=event.step + 1)

    def on_metrics(self, event: Measured) -> None:
        """Add each value to the curve of its name."""
        self._add(event.step, event.values)

    def on_validation(self, event: Validated) -> None:
        """Add the validation metrics."""
        self._add(event.step, event.values)

    def on_picture(self, event: PictureDrawn) -> None:
        """Add a picture under its name."""
        if self._writer is not None:
            self._writer.add_image(event.name, event.pixels_HWC, event.step, dataformats="HWC")

    def flush(self) -> None:
        """Write to the disk."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Stop the writer's thread."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)


TRACKERS: Mapping[str, type[TrackerConfig]] = {"tensorboard": TensorBoardConfig}
