"""R@k of drawn icons: the rank of the real picture among 100 real ones of the same set and style, by
its distance from the drawn picture.

There are two judges, and neither is used in the training of the generator:

    pixels     squared difference of blurred pictures of 32 x 32 pixels
    features   cosine distance of EfficientNet-Lite1 features, less their mean over the 100 (the
               perceptual loss of image tokenizers uses Lite0)

A copy has rank 0; an unrelated picture is among the first k of N with probability k / N. Legend: N real
pictures, D numbers per picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from cm3apps.evaluation.icons.drawing import order
from cm3core.document import PixelArray
from cm3core.images import fit

if TYPE_CHECKING:
    from cm3plugins.datasets.icons.corpus import IconCorpus
from cm3plugins.datasets.icons.corpus import IconEntry, IconPictures
from cm3plugins.extractors.simple import PixelsExtractor
from cm3plugins.metrics.ranking import chance_among_first, distances

NUM_CANDIDATES = 100
JUDGED_SIDE = 32

Floats = NDArray[np.float32]
#: uint8 pictures [N, H, W, 3] -> float32 [N, D].
Describe = Callable[[PixelArray], Floats]


class RealPictures:
    """Real pictures of the corpus, rendered on demand and cached.

    Args:
        corpus: all icons.
        size: side at which they are rendered, in pixels.
        image_size: (height, width) of the returned pictures.
        cache_dir: the data set's cache folder; a rendering of the whole corpus there is used.
    """

    def __init__(
        self, corpus: IconCorpus, size: int, image_size: tuple[int, int], cache_dir: str | None
    ) -> None:
        self.corpus, self._size, self._image_size = corpus, size, image_size
        self._rendered: IconPictures | None = None
        if corpus.is_rendered(size, cache_dir):
            self._rendered = corpus.pictures(size, cache_dir)
        self._drawn: dict[int, PixelArray] = {}
        self._of_style: dict[tuple[str, str], list[int]] = {}
        for index, entry in enumerate(corpus.entries):
            self._of_style.setdefault((entry.set_name, entry.style), []).append(index)
        self._fixed: dict[tuple[str, str], list[int]] = {}

    def __getitem__(self, index: int) -> PixelArray:
        """The picture of an entry, uint8 [H, W, 3]."""
        if index not in self._drawn:
            pixels = (
                self.corpus.render(index, self._size)
                if self._rendered is None
                else self._rendered[index]
            )
            self._drawn[index] = fit(pixels, self._image_size)
        return self._drawn[index]

    def candidates(self, entry: IconEntry) -> list[int]:
        """Positions of the entry and then of 99 other objects of its set and style, in an order that is
        the same for all entries of that style; of its set alone if the style has too few."""
        key = (entry.set_name, entry.style)
        if key not in self._fixed:
            entries = self.corpus.entries
            own = sorted(self._of_style[key], key=lambda index: order(entries[index].id))
            others = [
                index
                for index, other in enumerate(entries)
                if other.set_name == entry.set_name and other.style != entry.style
            ]
            self._fixed[key] = own + sorted(others, key=lambda index: order(entries[index].id))
        found = [self.corpus.index(entry.id)]
        for index in self._fixed[key]:
            if len(found) == NUM_CANDIDATES:
                break
            if self.corpus.entries[index].words != entry.words:
                found.append(index)
        return found


class Judge:
    """Ranks the real picture.

    Args:
        describe: computes the numbers by which pictures are compared.
        centred: compare directions from the candidates' mean instead of distances.
        real: the real pictures.
    """

    def __init__(self, describe: Describe, centred: bool, real: RealPictures) -> None:
        self._describe, self._centred, self._real = describe, centred, real
        self._described: dict[int, Floats] = {}

    def chances(
        self,
        pictures: Sequence[PixelArray] | PixelArray,
        entries: Sequence[IconEntry],
        ks: Sequence[int],
    ) -> dict[int, float]:
        """R@k for each k: mean over pictures of the chance that the real one is among the first k."""
        drawn = self._describe(np.asarray(pictures))
        total = dict.fromkeys(ks, 0.0)
        for one_D, entry in zip(drawn, entries, strict=True):
            real_ND = self._of(self._real.candidates(entry))
            distances_N = distances(one_D, real_ND, centred=self._centred)
            for k in ks:
                total[k] += chance_among_first(distances_N, k)
        return {k: value / len(entries) for k, value in total.items()}

    def _of(self, indices: Sequence[int]) -> Floats:
        missing = [index for index in indices if index not in self._described]
        if missing:
            described = self._describe(np.stack([self._real[index] for index in missing]))
            self._described.update(zip(missing, described, strict=True))
        return np.stack([self._described[index] for index in indices])


def blurred(pictures_NHWC: PixelArray) -> Floats:
    """Blurred pictures of 32 x 32 pixels, float32 [N, D], 0 to 1."""
    return PixelsExtractor(JUDGED_SIDE, blur=True).extract(list(pictures_NHWC))


def shrunk(pixels: PixelArray) -> PixelArray:
    """The picture at 32 x 32 pixels; each is the mean of the pixels it covers."""
    if pixels.shape[:2] == (JUDGED_SIDE, JUDGED_SIDE):
        return pixels
    return np.asarray(
        Pillow.fromarray(pixels).resize((JUDGED_SIDE,) * 2, Pillow.Resampling.BOX)
    ).copy()


def judges(names: Sequence[str], real: RealPictures) -> dict[str, Judge]:
    """The judges with these names.

    Raises:
        MissingPackageError: the feature network is not installed.
    """
    found = {}
    for name in names:
        if name == "pixels":
            found[name] = Judge(blurred, False, real)
        else:
            from cm3apps.judge.judge import efficientnet_features

            found[name] = Judge(efficientnet_features(), True, real)
    return found
