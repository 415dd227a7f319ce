"""`Judge`: ranks the concept that a picture should show among several texts.

Frozen EfficientNet-Lite1 features pass a small head, and the resulting unit vector is compared with a table of
text vectors. The table was made with a frozen MiniLM and a second head (`assets/README.md`); neither is needed
here. The network is Lite1 because the image tokenizer's perceptual loss uses Lite0: the judge must differ from
what was optimised. Legend: N pictures, A texts to choose from, C concepts of the table, F = 1280 features,
E dimension of the shared space.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from cm3core.document import PixelArray
from cm3core.errors import CheckpointError, DataError, close_match
from cm3core.interfaces.embedder import normalise
from cm3core.interfaces.extractor import FeatureArray
from cm3plugins.extractors.lite1 import FeatureFunction, efficientnet_features

BUNDLED_WEIGHTS = Path(__file__).parent / "assets" / "judge.safetensors"
_FORMAT = "cm3leon judge 1"


@dataclass(frozen=True)
class JudgeWeights:
    """The parameters of a judge without its feature network.

    Args:
        mean_F, inverse_std_F: standardise the features.
        hidden_HF, hidden_bias_H, out_EH, out_bias_E: the head: linear, ReLU, linear.
        text_vectors_CE: unit vectors of the concepts' labels.
        concepts: C names, such as "red-apple".
        labels: C labels, such as "red apple".
    """

    mean_F: npt.NDArray[np.float32]
    inverse_std_F: npt.NDArray[np.float32]
    hidden_HF: npt.NDArray[np.float32]
    hidden_bias_H: npt.NDArray[np.float32]
    out_EH: npt.NDArray[np.float32]
    out_bias_E: npt.NDArray[np.float32]
    text_vectors_CE: npt.NDArray[np.float32]
    concepts: tuple[str, ...]
    labels: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> JudgeWeights:
        """Read a file: fp16 safetensors.

        Raises:
            CheckpointError: the file is missing, damaged or of another format.
        """
        next_step = "reinstall cm3leon"
        if not path.is_file():
            raise CheckpointError(str(path), "there is no such file", next_step)
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata() or {}
                names = file.keys()
                arrays = {name: np.asarray(file.get_tensor(name), np.float32) for name in names}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                str(path), f"is not a complete safetensors file ({error})", next_step
            ) from error
        wanted = set(cls.__dataclass_fields__) - {"concepts", "labels"}
        if metadata.get("format") != _FORMAT or set(arrays) != wanted:
            raise CheckpointError(str(path), f"is not of the format {_FORMAT!r}", next_step)
        return cls(
            **arrays,
            concepts=tuple(json.loads(metadata["concepts"])),
            labels=tuple(json.loads(metadata["labels"])),
        )


class Judge:
    """Scores pictures by the rank of the text that they should show.

    Args:
        weights: head and text table.
        features: the feature function; tests pass their own.

    Example:
        >>> judge = Judge.load()
        >>> pictures = np.full((1, 64, 64, 3), 255, np.uint8)
        >>> judge.ranks(pictures, ["red-apple"], among=["red-apple", "dog"]).shape
        (1,)
    """

    def __init__(self, weights: JudgeWeights, features: FeatureFunction) -> None:
        self._weights, self._features = weights, features
        # Labels are accepted like names; if both clash, the name takes precedence.
        self._rows = {
            name: row
            for names in (weights.labels, weights.concepts)
            for row, name in enumerate(names)
        }

    @classmethod
    def load(cls, path: Path | None = None) -> Judge:
        """The bundled judge, or one from another file of weights.

        Raises:
            CheckpointError: the file can't be used.
            MissingPackageError: EfficientNet-Lite1's package is not installed.
        """
        return cls(
            JudgeWeights.read(BUNDLED_WEIGHTS if path is None else path), efficientnet_features()
        )

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of all concepts that the judge knows."""
        return self._weights.concepts

    def similarities(self, images: PixelArray, among: Sequence[str]) -> npt.NDArray[np.float32]:
        """Cosine similarities float32 [N, A] of pictures and concepts.

        Pictures are uint8 [N, H, W, 3], with sides of 64 px or more.
        """
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise DataError(
                "pictures to judge",
                f"are {images.dtype} {list(images.shape)}",
                "give uint8 [N, height, width, 3]",
            )
        return (
            head(self._weights, self._features(images))
            @ normalise(self._weights.text_vectors_CE[self._rows_of(among)]).T
        )

    def ranks(
        self, images: PixelArray, concepts: Sequence[str], among: Sequence[str]
    ) -> npt.NDArray[np.int64]:
        """Rank of each picture's concept among the texts, 1 = best, with ties counted against it.

        Args:
            images: uint8 [N, H, W, 3].
            concepts: N names (or labels), the expected concept of each picture.
            among: names of the texts to choose from, each once; must include all of `concepts`.

        Returns:
            int64 [N], 1..len(among).

        Raises:
            DataError: a concept is unknown or not in `among`, a text is given twice, or there are not N
                names.
        """
        if len(concepts) != len(images):
            raise DataError(
                "concepts to judge",
                f"are {len(concepts)} for {len(images)} pictures",
                "give one for each picture",
            )
        return ranks_of(self.similarities(images, among), self._positions(concepts, among))

    def recall_at_k(
        self, images: PixelArray, concepts: Sequence[str], among: Sequence[str], k: int = 5
    ) -> float:
        """Share of pictures, 0..1, whose concept is among the first k texts.

        The arguments are those of `ranks`.
        """
        return float((self.ranks(images, concepts, among) <= k).mean())

    def _positions(self, concepts: Sequence[str], among: Sequence[str]) -> npt.NDArray[np.int64]:
        rows = self._rows_of(among)
        where = {row: position for position, row in enumerate(rows)}
        if len(where) != len(rows):
            raise DataError("texts to judge among", "have a concept twice", "give each once")
        wanted = self._rows_of(concepts)
        for row, name in zip(wanted, concepts, strict=True):
            if row not in where:
                raise DataError(
                    f"concept {name!r}",
                    "is not among the texts to choose from",
                    "add it to `among`",
                )
        return np.array([where[row] for row in wanted], np.int64)

    def _rows_of(self, names: Sequence[str]) -> list[int]:
        for name in names:
            if name not in self._rows:
                cause = f"is unknown to the judge; {close_match(name, self._weights.concepts)}"
                raise DataError(f"concept {name!r}", cause, "use a concept of the bundled corpus")
        return [self._rows[name] for name in names]


def head(weights: JudgeWeights, features_NF: FeatureArray) -> npt.NDArray[np.float32]:
    """Unit vectors float32 [N, E] of features."""
    hidden = (
        features_NF - weights.mean_F
    ) * weights.inverse_std_F @ weights.hidden_HF.T + weights.hidden_bias_H
    return normalise(np.maximum(hidden, 0) @ weights.out_EH.T + weights.out_bias_E)


def ranks_of(
    similarities_NA: npt.NDArray[np.float32], positions_N: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Rank of each row's own column, 1 = best, with ties counted against it.

    >>> ranks_of(np.array([[0.1, 0.9, 0.5], [0.3, 0.3, 0.0]], np.float32), np.array([2, 0])).tolist()
    [2, 2]
    """
    own_N1 = np.take_along_axis(similarities_NA, positions_N[:, None], axis=1)
    return np.asarray((similarities_NA >= own_N1).sum(axis=1), np.int64)
