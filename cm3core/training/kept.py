"""What an image tokenizer's codes keep of the pictures that a decoder is to be trained on."""

from __future__ import annotations

import numpy as np

from cm3core import images
from cm3core.build import Components
from cm3core.document import Image, PixelArray
from cm3core.errors import DataError
from cm3core.evaluation.image_tokenizer import drawn_psnr_per_picture

#: Pictures that are looked at: the median of so many icons is within 1.3 dB of that of all in nine of ten cases.
NUM_PICTURES = 32
#: PSNR in dB, where something is drawn, below which shapes and colours are lost. By the codes of icons, icons have 19.6
#: (the median of 300), emoji 16.8, Tux Paint's stamps 16.2, Open Clipart's pictures 15.2; by the codes of emoji, emoji
#: 23.4, photographs 22.4, stamps 21.2, clipart 19.8.
LEAST_PSNR = 18.0


def note_on_codes(components: Components) -> str | None:
    """What a user should know of the image tokenizer before a long training; None: nothing.

    Of a few pictures, evenly spaced over the data set. Pictures that are codes already, or far away, are not looked at.
    """
    pictures = _some_pictures(components)
    if not pictures:
        return None
    tokenizer = components.image_tokenizer
    # one by one: memory, and the same result as when a model draws them
    through = [tokenizer.decode(tokenizer.encode(one[None]))[0] for one in pictures]
    psnr_N = drawn_psnr_per_picture(np.stack(pictures), np.stack(through))
    drawn = psnr_N[~np.isnan(psnr_N)]
    # the median: few pictures that are kept to the last bit would outweigh all others
    if not len(drawn) or (psnr := float(np.median(drawn))) >= LEAST_PSNR:
        return None
    return (
        f"the image tokenizer's codes keep little of the pictures: PSNR {psnr:.1f} dB where something is drawn, the median "
        f"of {len(drawn)}. "
        "A model draws no better than its codes; docs/data.md, 'What the codes keep of your pictures', shows how to "
        "see that, and to train a tokenizer on them"
    )


def _some_pictures(components: Components) -> list[PixelArray]:
    source, size = components.source, components.image_tokenizer.image_size
    if source.is_far:
        return []
    chosen = np.linspace(0, len(source), NUM_PICTURES, endpoint=False).astype(int)
    found = []
    for index in dict.fromkeys(chosen.tolist()):
        try:
            found += [
                images.fit(segment.load(), size)
                for segment in source.document(index)
                if isinstance(segment, Image)
            ][:1]
        except DataError:
            continue  # which is reported where all documents are read
    return found
