"""The positions that torchtitan's processes store are together those of our loader. Without torchtitan."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cm3core.errors import CheckpointError
from cm3run.processes import Processes
from cm3run.training.packing import BatchLoader, RowSettings
from messages import tells
from numbered_documents import make_data

pytest.importorskip("cm3titan", reason="needs pip install ./plugins/cm3-titan")

from cm3titan.share import STREAM, Share, loader_state, setting_of


def loader(folder: Path, processes: Processes, *, streams: int = 4, seed: int = 5) -> BatchLoader:
    rows = RowSettings(4, 90, seed=seed, window=6, num_streams=streams)
    return BatchLoader(make_data(folder), rows, processes)


def stored(one: BatchLoader) -> dict[str, object]:
    """What `RecipeLoader.state_dict` stores; it needs torchtitan."""
    import json

    position = one.position()
    streams = {STREAM.format(i): json.dumps(state) for i, state in position.streams.items()}
    return {"rows": position.num_rows, "setting": json.dumps(setting_of(one)), **streams}


@pytest.mark.parametrize(("streams", "number"), [(1, 1), (4, 1), (4, 2), (4, 4)])
def test_together_they_are_the_position_of_one_process(
    tmp_path: Path, streams: int, number: int
) -> None:
    alone = loader(tmp_path, Processes(), streams=streams)
    shares = [loader(tmp_path, Share(rank, number), streams=streams) for rank in range(number)]
    for _ in range(3):
        for one in (alone, *shares):
            one.next_step()
    together: dict[str, object] = {}
    for share in shares:
        together |= stored(share)
    assert loader_state(together) == alone.state_dict()


def test_another_number_of_shares_goes_on_with_the_same_rows(tmp_path: Path) -> None:
    alone = loader(tmp_path, Processes())
    alone.next_step()
    two = [loader(tmp_path, Share(rank, 2)) for rank in range(2)]
    for one in two:
        one.next_step()
    together = stored(two[0]) | stored(two[1])
    expected = torch.cat([batch.tokens_BT for batch in alone.next_step()])
    for number in (1, 4):
        rows = []
        for rank in range(number):
            share = loader(tmp_path, Share(rank, number))
            own = {STREAM.format(place) for place in share.streams}
            needed = {k: v for k, v in together.items() if k in own or not k.startswith("stream")}
            share.load_state_dict(loader_state(needed))
            rows.append(torch.cat([batch.tokens_BT for batch in share.next_step()]))
        # row i belongs to share i modulo their number
        assert torch.equal(torch.stack(rows, 1).flatten(0, 1), expected)


def test_a_position_in_other_data_is_refused(tmp_path: Path) -> None:
    state = loader_state(stored(loader(tmp_path, Processes(), seed=6)))
    with pytest.raises(CheckpointError) as info:
        loader(tmp_path, Processes()).load_state_dict(state)
    assert tells(info.value, "loader state: seed was 6 and is now 5")
