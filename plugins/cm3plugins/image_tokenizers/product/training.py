"""What the tokenizer `product` learns from pictures: the codes of parts, then the tints.

Legend: N pictures, P squares, Q parts of d pixels, K codes of a part, C colour codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3plugins.image_tokenizers.by_arrays import (
    NUM_SQUARES,
    Arrays,
    FloatArray,
    Rounds,
    centres_of,
)
from cm3plugins.image_tokenizers.product.tokenizer import (
    ProductTokenizer,
    brightness,
    distinct_rows,
    fits_of,
    squares_of_values,
    tints_of,
)

if TYPE_CHECKING:
    from cm3plugins.image_tokenizers.product import ProductTokenizerConfig

#: Share of a part's codes that are its most frequent values, exactly.
_EXACT = 0.25
#: Times that a frequent part counts at most where the other codes are learnt.
_MOST_TIMES = 200
#: Training pictures at most, spread over those given.
_NUM_PICTURES = 16_000


def learnt(
    config: ProductTokenizerConfig, images_NHWC: PixelArray, rounds: Rounds
) -> dict[str, npt.NDArray[Any]]:
    """The weights, see `ProductTokenizerConfig.learn`."""
    images_NHWC = images_NHWC[:: max(1, len(images_NHWC) // _NUM_PICTURES)]
    is_grey_N = (np.ptp(images_NHWC, axis=3) == 0).all((1, 2))
    rng = np.random.default_rng(config.seed)
    inked_NHWC = images_NHWC[is_grey_N] if is_grey_N.any() else images_NHWC
    parts_Kd = _learn_parts(config, inked_NHWC, rounds, rng)
    tints_C4 = np.zeros((config.colours, 4), np.int16)
    coloured_NHWC = images_NHWC[~is_grey_N]
    if len(coloured_NHWC) and config.colours > 1:
        weights: Arrays = {"parts": parts_Kd, "tints": tints_C4}
        ink = ProductTokenizer(config, weights)
        bright_NHW = ink.decode_parts(ink.encode_parts(coloured_NHWC))
        fits_P7 = fits_of(coloured_NHWC, bright_NHW, config.patch_size)
        found_C4 = _learn_tints(fits_P7, config.colours - 1, rounds, rng)
        tints_C4[1 : 1 + len(found_C4)] = found_C4
    return {"parts": parts_Kd, "tints": tints_C4}


def _learn_parts(
    config: ProductTokenizerConfig,
    images_NHWC: PixelArray,
    rounds: Rounds,
    rng: np.random.Generator,
) -> npt.NDArray[np.uint8]:
    """The most frequent parts, and centres of the others."""
    side, number = config.patch_size // config.parts, config.part_codes
    rows = squares_of_values(brightness(images_NHWC), side)
    parts_Qd, _, times_Q = distinct_rows(rows)
    if len(parts_Qd) < number:
        raise DataError(
            "training pictures",
            f"hold {len(parts_Qd):,} different parts, fewer than "
            f"image_tokenizer.part_codes {number:,}",
            "give more pictures, or lower image_tokenizer.part_codes",
        )
    order_Q = np.argsort(-times_Q, kind="stable")
    exact = max(1, round(_EXACT * number))
    others_Q = rng.permutation(order_Q[exact:])[: max(NUM_SQUARES, number)]
    chosen_Q = np.concatenate([order_Q[:exact], others_Q])
    rows_Qd = parts_Qd[chosen_Q].astype(np.float64)
    weights_Q = np.minimum(times_Q[chosen_Q], _MOST_TIMES).astype(np.float64)
    fixed_Fd = rows_Qd[:exact]
    found_Kd = centres_of(rows_Qd, number, rounds(0.8), rng, weights_Q, fixed_Fd)
    parts_Kd: npt.NDArray[np.uint8] = found_Kd.astype(np.uint8)
    return parts_Kd


def _learn_tints(
    fits_P7: FloatArray, number: int, rounds: Rounds, rng: np.random.Generator
) -> FloatArray:
    """Tints that fit the coloured squares best (Lloyd's iteration: each square its best tint, each tint the best of its
    squares)."""
    fits_P7 = fits_P7[(fits_P7[:, :4] != 0).any(1)]
    fits_P7 = fits_P7[rng.permutation(len(fits_P7))[:NUM_SQUARES]]
    tints_C4 = best_tints(fits_P7[:number])
    for _ in rounds(0.2):
        codes_P = tints_of(fits_P7, tints_C4)
        sums_C7 = np.zeros((len(tints_C4), 7))
        np.add.at(sums_C7, codes_P, fits_P7)
        tints_C4 = best_tints(sums_C7)
    return tints_C4


def best_tints(sums_C7: FloatArray) -> FloatArray:
    """The tint with the smallest error of each row of `fits_of`, in whole numbers; where all pixels are equally bright,
    the smaller one of those that fit."""
    found = np.zeros((len(sums_C7), 4))
    dark, both, light = (
        sums_C7[:, place] + extra for place, extra in ((4, 1.0), (5, 0.0), (6, 1.0))
    )
    det = dark * light - both**2
    for first in (0, 2):
        in_dark, in_light = 255 * sums_C7[:, first], 255 * sums_C7[:, first + 1]
        found[:, first] = (light * in_dark - both * in_light) / det
        found[:, first + 1] = (dark * in_light - both * in_dark) / det
    return np.clip(np.rint(found), -255, 255)
