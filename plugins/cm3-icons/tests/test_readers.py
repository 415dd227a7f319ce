"""The judge's readers of icons: files and inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from cm3core.errors import CheckpointError
from cm3icons.judge.hands import HandReader, page
from cm3icons.judge.reader import load_reader
from cm3icons.judge.things import Names, ThingReader


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for make in (lambda: None, lambda: path.write_bytes(b"x"), lambda: save_file({}, path)):
        make()
        with pytest.raises(CheckpointError, match="is not the network of a reader of icons"):
            load_reader(path)


def test_place_size_and_strength_of_ink_change_no_thing() -> None:
    reader = ThingReader()
    white = np.full((64, 64, 3), 255, np.uint8)
    first, moved, faint = white.copy(), white.copy(), white.copy()
    first[8:24, 8:16], moved[30:62, 40:56], faint[8:24, 8:16] = 0, 0, 120
    vectors = reader.read([first, moved, faint, 255 - first])
    assert (vectors @ vectors[0]).min() > 0.98
    assert reader.read([]).shape == (0, reader.sizes.dimension)


def test_a_hand_is_read_from_the_whole_page() -> None:
    white = np.full((64, 64, 3), 255, np.uint8)
    drawn = white.copy()
    drawn[8:24, 8:24] = 0
    assert page(drawn, 64)[10, 10] == 255
    assert page(np.repeat(np.repeat(drawn, 2, 0), 2, 1), 64).tolist() == page(drawn, 64).tolist()
    reader = HandReader()
    one, other = reader.read([drawn, np.roll(drawn, 30, 1)])
    assert one @ other < 0.999


def test_names_are_in_the_space_of_the_shipped_vectors() -> None:
    names = Names()
    bell, other, car = names(["bell", "Bell ", "car"])
    assert np.array_equal(bell, other)
    assert bell @ car < 0.6
    assert bell @ names(["bell ringing loudly"])[0] > bell @ car
