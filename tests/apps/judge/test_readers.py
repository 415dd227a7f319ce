"""The judge's readers of icons: files, inputs, and their training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cm3apps.judge.hands import HandReader, page
from cm3apps.judge.reader import Reader, ReaderSizes, load_reader, read, save_reader
from cm3apps.judge.things import Names, ThingReader
from cm3core.errors import CheckpointError
from cm3lab.judge import hands, things
from cm3lab.judge.things import Drawings, ReaderTraining, bent
from cm3plugins.datasets.icons.corpus import IconEntry

SIZES = ReaderSizes(side=16, widths=(8, 16), blocks=(1, 0), dimension=8)


def inks(number: int, side: int = 16) -> Any:
    return np.random.default_rng(0).integers(0, 256, (number, side, side), np.uint8)


def test_a_file_keeps_a_network_but_for_rounding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Reader(SIZES).eval()
    save_reader(network, SIZES, tmp_path / "a.safetensors")
    found, sizes = load_reader(tmp_path / "a.safetensors")
    assert sizes == SIZES
    before, after = read(network, list(inks(3))), read(found, list(inks(3)))
    assert np.allclose(np.linalg.norm(after, axis=1), 1, atol=1e-5)
    assert (before * after).sum(1).min() > 0.95
    save_reader(found, sizes, tmp_path / "b.safetensors")
    again = read(load_reader(tmp_path / "b.safetensors")[0], list(inks(3)))
    assert np.allclose(again, after, atol=0.02)
    assert read(found, []).shape == (0, 8)


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


def entries() -> list[IconEntry]:
    rows = [("a/bell", "bell"), ("b/bell", "bell"), ("a/off", "bell off"), ("a/car", "car")]
    return [IconEntry(own, words, "outline", ("vehicle",), "train") for own, words in rows]


class OneHot:
    def __call__(self, names: Any) -> Any:
        return np.eye(8, dtype=np.float32)[: len(names)]


def test_draws_of_a_step_by_hand() -> None:
    drawings = Drawings(entries(), inks(4), OneHot(), 0)  # type: ignore[arg-type]  # for names
    rows = drawings.rows(40)
    partner = {0: 1, 1: 0, 2: 2, 3: 3}  # the other set's, itself if there is none
    assert [partner[row] for row in rows[:20]] == rows[20:]
    assert drawings.own([0, 1, 2, 3]) == [0, 0, 1, 2]  # bell, bell off, car
    assert set(drawings.sharing([0] * 20)) == {0, 1}
    assert drawings.sharing([3]) == [2]  # no other name has its word
    assert set(drawings.labels([3] * 40)) == {2, 3}  # its tag is the fourth text


def test_a_few_steps_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    how = ReaderTraining(3, batch_size=8, num_names=4)
    made = [
        things.train(Drawings(entries(), inks(4), OneHot(), 0), SIZES, how)  # type: ignore[arg-type]  # for names
        for _ in range(2)
    ]
    assert np.array_equal(read(made[0], list(inks(4))), read(made[1], list(inks(4))))
    monkeypatch.setattr(hands, "SIZES", SIZES)
    network = hands.train(inks(4), [0, 1, 0, 1], 2, 0)
    assert np.isfinite(read(network, list(inks(4)))).all()


def test_bent_drawings_stay_drawings() -> None:
    ink = torch.zeros(4, 1, 16, 16)
    ink[:, :, 4:12, 4:12] = 1
    found = bent(ink, torch.Generator().manual_seed(0))
    assert found.shape == ink.shape
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert 30 < float(found.sum() / 4) < 140
    turned = hands.varied(ink, torch.Generator().manual_seed(0))
    assert abs(float(turned.sum() - ink.sum())) < 60
