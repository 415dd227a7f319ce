"""What the judge knows of real drawings: how each grey drawing of the corpus reads, and its look.

Reading 95,000 drawings takes some minutes of one core, once: the result is kept in the cache folder. Legend: M drawings, Q
drawings asked about, D and E numbers of a vector, P pixels of a look.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cm3core.document import PixelArray
from cm3core.files import cache_folder
from cm3icons.data.corpus import IconCorpus, set_of
from cm3icons.judge.hands import HandReader
from cm3icons.judge.things import ThingReader
from cm3plugins.svg import renderer_version
from cm3run.built_once import computed_once
from cm3run.nearness import nearness, placed_ink
from cm3run.progress import make_bar

#: A set and style words.
Hand = tuple[str, str]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

SIZE = 64
_VERSION = 1
_BATCH = 512
#: Side of a look, and of the squares of ink that are its pixels.
_LOOK, _SQUARE = 12, 3
#: Drawings of the most similar looks, which are then compared exactly.
_COMPARED = 16


class RealDrawings:
    """The grey drawings of a corpus.

    Args:
        corpus: with closed splits.
        things: reads what drawings show.
        hands: reads how they are drawn.
        indices: positions in the corpus; None: all grey drawings.
        folder: where the readings are kept; None: the user's cache folder.
    """

    def __init__(
        self,
        corpus: IconCorpus,
        things: ThingReader,
        hands: HandReader,
        indices: Sequence[int] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.corpus, self.things, self.hands = corpus, things, hands
        entries = corpus.entries
        chosen = range(len(entries)) if indices is None else indices
        self.indices = [index for index in chosen if "colour" not in entries.styles[index].split()]
        self.words = [entries.words[index] for index in self.indices]
        self.hand_of: list[Hand] = [
            (set_of(entries.ids[index]), entries.styles[index]) for index in self.indices
        ]
        self._whole = indices is None
        self._folder = cache_folder("icon-judge") if folder is None else folder
        sets = [name for name, _ in self.hand_of]
        source = corpus.manifest.source
        self._designer_of = {name: source(name)[2] or name for name in dict.fromkeys(sets)}
        self._number = {name: number for number, name in enumerate(self._designer_of.values())}
        self._sets = np.array(sets, str)
        designers = [self._number[self._designer_of[name]] for name in sets]
        self._designers = np.array(designers, int)
        self._splits = np.array([entries.splits[index] for index in self.indices], str)
        self._copies = np.array([corpus.copies.get(index, index) for index in self.indices], int)
        self._of_splits: dict[tuple[str, ...], Mask] = {}
        self._row = {index: row for row, index in enumerate(self.indices)}

    def picture(self, row: int) -> PixelArray:
        """The picture of a drawing, uint8 [64, 64, 3]."""
        if self._pictures is not None:
            return self._pictures(self.indices[row])
        return self.corpus.render(self.indices[row], SIZE)

    def row(self, entry_id: str) -> int | None:
        """The row of a drawing of the corpus; None if it is not among these."""
        return self._row.get(self.corpus.index(entry_id)) if entry_id else None

    def of_split(self, *splits: str) -> Mask:
        """Which drawings are of some splits, bool [M]."""
        if splits not in self._of_splits:
            self._of_splits[splits] = np.isin(self._splits, splits)
        return self._of_splits[splits]

    def of_set(self, set_name: str) -> Mask:
        """Which drawings are of a set, bool [M]."""
        found: Mask = self._sets == set_name
        return found

    def foreign_to(self, set_name: str, row: int | None) -> Mask:
        """Which drawings are of other designers than a set's, and no copies of a drawing, bool [M]."""
        found: Mask = self._designers != self._number.get(self._designer_of.get(set_name, ""), -1)
        if row is not None:
            found = found & (self._copies != self._copies[row])
        return found

    @property
    def things_MD(self) -> Floats:
        """What the drawings show, unit vectors."""
        return self._readings["things"]

    @property
    def hands_ME(self) -> Floats:
        """How they are drawn, unit vectors."""
        return self._readings["hands"]

    def read_alike(self, thing_D: Floats, among: Mask, number: int) -> list[tuple[int, float]]:
        """The drawings that read most alike: (row, cosine), the most alike first."""
        return _greatest(self.things_MD @ thing_D, among, number)

    def likest(self, picture: PixelArray, among: Mask, number: int) -> list[tuple[int, float]]:
        """The nearest drawings by their pixels, without place and size: (row, nearness), the nearest first.

        Args:
            picture: uint8 [H, W, 3].
            among: bool [M].
            number: how many, at most 16.
        """
        alike_M = self._readings["looks"] @ _units(_look(picture)[None])[0]
        best = _greatest(alike_M, among, _COMPARED)
        near = [(row, nearness(picture, self.picture(row))) for row, _ in best]
        return sorted(near, key=lambda one: (-one[1], one[0]))[:number]

    @cached_property
    def _pictures(self) -> Callable[[int], PixelArray] | None:
        """Pictures of the corpus that are drawn into the cache; None: each is drawn when it is needed."""
        if self._whole or self.corpus.is_rendered(SIZE):
            return self.corpus.pictures(SIZE).__getitem__
        return None

    @cached_property
    def _readings(self) -> dict[str, Floats]:
        found = self._of_all()
        if found is None:
            found = computed_once(
                self._path,
                "reading real drawings",
                lambda path: _kept(path, len(self.indices)),
                self._read,
                lambda path, read: save_file(read, path),
            )
        readings: dict[str, Floats] = {name: own.float().numpy() for name, own in found.items()}
        return {**readings, "looks": _units(readings["looks"])}

    @property
    def _path(self) -> Path:
        """Where the readings of these drawings are kept."""
        if self._whole:
            return self._folder / f"{self.key}.safetensors"
        part = hashlib.sha256(np.array(self.indices, np.int64).tobytes()).hexdigest()[:16]
        return self._folder / f"{self.key}-{part}.safetensors"

    def _of_all(self) -> dict[str, torch.Tensor] | None:
        """The kept readings of all drawings, in the rows of these; None: there are none."""
        if self._whole:
            return None
        styles = self.corpus.entries.styles
        grey = [index for index, style in enumerate(styles) if "colour" not in style.split()]
        found = _kept(self._folder / f"{self.key}.safetensors", len(grey))
        rows = np.searchsorted(grey, self.indices)
        return None if found is None else {name: own[rows] for name, own in found.items()}

    @cached_property
    def key(self) -> str:
        """Hash of what readings depend on."""
        facts = (
            _VERSION,
            self.corpus.data_sha256,
            renderer_version(),
            self.things.fingerprint,
            self.hands.fingerprint,
        )
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]

    def _read(self) -> dict[str, torch.Tensor]:
        parts: dict[str, list[torch.Tensor]] = {"things": [], "hands": [], "looks": []}
        with make_bar(desc="reading real drawings", total=len(self.indices), unit="drawing") as bar:
            for start in range(0, len(self.indices), _BATCH):
                rows = range(start, min(start + _BATCH, len(self.indices)))
                pictures = [self.picture(row) for row in rows]
                parts["things"].append(torch.from_numpy(self.things.read(pictures)).half())
                parts["hands"].append(torch.from_numpy(self.hands.read(pictures)).half())
                parts["looks"].append(torch.from_numpy(np.stack([*map(_look, pictures)])))
                bar.update(len(rows))
        return {name: torch.cat(own) for name, own in parts.items()}


def _greatest(values_M: Floats, among: Mask, number: int) -> list[tuple[int, float]]:
    """(row, value) of the greatest values, of equal ones the first.

    >>> _greatest(np.array([1, 3, 2, 3], np.float32), np.array([True, True, False, True]), 2)
    [(1, 3.0), (3, 3.0)]
    """
    rows = np.flatnonzero(among)
    best = rows[np.argsort(-values_M[rows], kind="stable")[:number]]
    return [(int(row), float(values_M[row])) for row in best]


def _look(picture: PixelArray) -> NDArray[np.uint8]:
    """A picture's ink in few pixels, uint8 [P]."""
    side = _LOOK * _SQUARE
    squares = placed_ink(picture, side).reshape(_LOOK, _SQUARE, _LOOK, _SQUARE)
    look: NDArray[np.uint8] = squares.mean((1, 3)).astype(np.uint8).reshape(-1)
    return look


def _units(looks_MP: NDArray[np.uint8] | Floats) -> Floats:
    """Vectors whose products are the looks' correlations."""
    centred: Floats = looks_MP.astype(np.float32)
    centred -= centred.mean(1, keepdims=True)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
    return centred


def _kept(path: Path, number: int) -> dict[str, torch.Tensor] | None:
    """The readings of an earlier call; None if they are missing or damaged."""
    try:
        found = load_file(path)
    except (SafetensorError, OSError):
        return None
    whole = found.keys() == {"things", "hands", "looks"}
    return found if whole and all(len(own) == number for own in found.values()) else None
