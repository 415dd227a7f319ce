"""A share of the data: a group of processes that read the same rows, and where its loader is. Light: no torchtitan here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cm3run.processes import Processes
from cm3run.training.packing import BatchLoader, Position

#: Key of the positions of one virtual loader.
STREAM = "stream-{}"


class Share(Processes):
    """One of the groups of processes that hold different data, as the loader sees it.

    Args:
        rank: its number.
        world_size: number of groups.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size


def setting_of(loader: BatchLoader) -> dict[str, Any]:
    """What must be the same when the loader's position is read again, see `BatchLoader.state_dict`."""
    nowhere = Position(0, {place: {} for place in range(loader.rows.num_streams)}, ())
    setting: dict[str, Any] = loader.state_dict(nowhere)["setting"]
    return setting


def loader_state(state: Mapping[str, Any], num_parts: int = 0) -> dict[str, Any]:
    """`BatchLoader.state_dict()` of stored positions; None for virtual loaders that are not stored.

    Args:
        state: the positions of some or all virtual loaders.
        num_parts: of the data set; the documents of each are counted from 0 again.
    """
    setting = json.loads(state["setting"])
    number = BatchLoader.streams_of({"setting": setting})
    streams = [json.loads(state.get(STREAM.format(i), "null")) for i in range(number)]
    position = streams[0] if number == 1 else {"rows": state["rows"], "streams": streams}
    counts = {"counts": [0] * num_parts} if num_parts else {}
    return {**position, "setting": setting, **counts}
