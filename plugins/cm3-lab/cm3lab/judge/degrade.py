"""Slightly degraded pictures, so that the judge ignores blur, lost detail and wrong colours.

Deliberately generic: no image tokenizer's own reconstructions, or the judge would favour that
tokenizer.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from cm3core.document import PixelArray


def degrade(picture: PixelArray, rng: np.random.Generator) -> PixelArray:
    """A randomly moved, blurred, shrunken, compressed and tinted version of a picture on white.

    Args:
        picture: uint8 [H, W, 3].

    Returns:
        uint8 [H, W, 3]. The same generator state gives the same picture.
    """
    image = Image.fromarray(picture)
    width, height = image.size
    zoom, (right, down) = rng.uniform(0.92, 1.08), rng.uniform(-0.04, 0.04, 2)
    matrix = (
        zoom,
        0.0,
        width * (right + (1 - zoom) / 2),
        0.0,
        zoom,
        height * (down + (1 - zoom) / 2),
    )
    image = image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        Image.Resampling.BICUBIC,
        fillcolor=(255, 255, 255),
    )
    if rng.random() < 0.4:
        share = rng.uniform(0.45, 0.8)
        small = image.resize(
            (max(1, round(width * share)), max(1, round(height * share))), Image.Resampling.BILINEAR
        )
        image = small.resize((width, height), Image.Resampling.BICUBIC)
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.1) * width / 64))
    if rng.random() < 0.5:
        image = _recompress(image, int(rng.integers(15, 60)))
    image = ImageEnhance.Color(image).enhance(rng.uniform(0.8, 1.2))
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.92, 1.05))
    return np.asarray(image, dtype=np.uint8)


def _recompress(image: Image.Image, quality: int) -> Image.Image:
    """JPEG's block artefacts: the nearest generic thing to a coarse codebook's."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")
