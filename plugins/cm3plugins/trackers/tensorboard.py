"""The tracker `tensorboard`: torch's own writer."""

from __future__ import annotations

from collections.abc import Mapping

from torch.utils.tensorboard import SummaryWriter

from cm3core.interfaces.tracker import Measured, PictureDrawn, RunStarted, Tracker, Validated


class TensorBoard(Tracker):
    """Writes event files into the run's folder `tensorboard`."""

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None

    def on_start(self, event: RunStarted) -> None:
        """Of steps that are done again, what an earlier session wrote is left out."""
        folder = str(event.folder / "tensorboard")
        self._writer = SummaryWriter(folder, purge_step=event.step + 1)

    def on_metrics(self, event: Measured) -> None:
        """Each value is a curve of its name."""
        self._add(event.step, event.values)

    def on_validation(self, event: Validated) -> None:
        """As those of training."""
        self._add(event.step, event.values)

    def on_picture(self, event: PictureDrawn) -> None:
        """A picture of that name."""
        if self._writer is not None:
            self._writer.add_image(event.name, event.pixels_HWC, event.step, dataformats="HWC")

    def flush(self) -> None:
        """To the disk."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Its thread ends."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
