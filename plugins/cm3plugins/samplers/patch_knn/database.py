"""The places of a memory, searchable by their surroundings; a file next to the bank, or in the cache.

A place is a code of a picture with the codes around it. Equal places are merged and counted.

The file is a faiss index (IndexIVFPQ; Jegou et al. 2011) whose product quantiser is the tokenizer's
codebook itself, so that a place takes the bits of its four codes, and distances are exact. Up to
`EXACT` distinct places form one list, which is searched completely; more are split into k-means lists,
of which a search reads the nearest `PROBED`. The id of a place holds its code and its count.

Legend: P pictures, c codes per picture, M places, K codes around a place (= len(AROUND)), V codes of the codebook, d numbers
per code vector, L lists, n searches, N neighbours.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from cm3core import images
from cm3core.document import Codes, Image
from cm3core.errors import DataError, FileError, RecipeError
from cm3core.files import cache_folder, check_writable
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.image_tokenizer import ImageTokenizer
from cm3plugins.indexes.kept import kept_index, write_faiss
from cm3plugins.indexes.threads import faiss_calls
from cm3run.bank import MemoryBank
from cm3run.progress import make_bar

if TYPE_CHECKING:
    from cm3core.interfaces.sampler import ModelParts

#: Offsets (rows, columns) of the surroundings: three above, one on the left.
AROUND = ((-1, -1), (-1, 0), (-1, 1), (0, -1))
#: Pictures encoded together, and the number of places after which equal ones are merged.
_PICTURES, _MERGED = 32, 1 << 20

PlaceArray = npt.NDArray[np.int32]
CountArray = npt.NDArray[np.int64]


def places_of(
    memory: DocumentSource, tokenizer: ImageTokenizer, max_places: int
) -> tuple[PlaceArray, CountArray]:
    """Return the distinct places of a memory's pictures, int32 [M, K + 1], sorted, with the code last, and
    the number of times each occurs, int64 [M].

    Args:
        memory: documents with pictures, or codes of `tokenizer`; unreadable ones are skipped.
        tokenizer: encodes pictures.
        max_places: maximum number to read; from a larger memory, only every n-th document is read.

    Raises:
        DataError: no code has all four neighbours.
    """
    rows, columns = tokenizer.grid
    inside = max(0, rows - 1) * max(0, columns - 2)
    num_documents = min(len(memory), max(1, max_places // max(1, inside)))
    chosen = np.linspace(0, len(memory), num_documents, endpoint=False).astype(np.int64)
    merged: list[tuple[PlaceArray, CountArray]] = []
    waiting: list[PlaceArray] = []
    num_read = num_waiting = 0
    for codes_Pc in _pictures(memory, chosen, tokenizer):
        places_mK = _inside(codes_Pc.reshape(-1, rows, columns))[: max_places - num_read]
        waiting.append(places_mK)
        num_read += len(places_mK)
        num_waiting += len(places_mK)
        if num_waiting >= _MERGED:
            merged, waiting, num_waiting = [_merge(merged, waiting)], [], 0
        if num_read >= max_places:
            break
    if not num_read:
        raise DataError(
            _name(memory),
            f"has no picture to search in ({len(memory)} documents, {rows} x {columns} codes per "
            "picture; a place needs a row above and columns on both sides)",
            "use a bank with pictures: cm3 memory build",
        )
    return _merge(merged, waiting)


def _pictures(
    memory: DocumentSource, chosen: npt.NDArray[np.int64], tokenizer: ImageTokenizer
) -> Iterator[npt.NDArray[np.int32]]:
    """Yield codes [P, c] of the chosen documents' pictures, a few at a time."""
    codes: list[Any] = []
    pixels: list[Any] = []
    for index in make_bar(chosen.tolist(), desc="patch_knn: reading", unit="document"):
        try:
            for segment in memory.document(index):
                if isinstance(segment, Codes):
                    if segment.missing is None and segment.grid == tokenizer.grid:
                        codes.append(segment.codes)
                elif isinstance(segment, Image):
                    pixels.append(images.fit(segment.load(), tokenizer.image_size))
        except DataError:
            continue  # unreadable; `cm3 data validate` reports it
        if len(codes) >= 8 * _PICTURES:
            yield np.stack(codes).astype(np.int32)
            codes = []
        while len(pixels) >= _PICTURES:
            yield tokenizer.encode(np.stack(pixels[:_PICTURES]))
            pixels = pixels[_PICTURES:]
    if codes:
        yield np.stack(codes).astype(np.int32)
    if pixels:
        yield tokenizer.encode(np.stack(pixels))


def _inside(codes_Pyx: npt.NDArray[np.int32]) -> PlaceArray:
    """Return the places whose surroundings lie within the picture, int32 [M, K + 1]."""
    rows, columns = codes_Pyx.shape[1:]
    if rows < 2 or columns < 3:
        return np.zeros((0, len(AROUND) + 1), np.int32)
    shifted = [
        codes_Pyx[:, 1 + down : rows + down, 1 + right : columns - 1 + right]
        for down, right in (*AROUND, (0, 0))
    ]
    return np.stack(shifted, axis=-1).reshape(-1, len(AROUND) + 1)


def _merge(
    merged: list[tuple[PlaceArray, CountArray]], waiting: list[PlaceArray]
) -> tuple[PlaceArray, CountArray]:
    """Merge equal places and add up their counts."""
    places = np.concatenate([*(one for one, _ in merged), *waiting])
    counts = np.concatenate(
        [*(count for _, count in merged), *(np.ones(len(one), np.int64) for one in waiting)]
    )
    order = np.lexsort(places.T[::-1])
    places, counts = places[order], counts[order]
    starts = np.flatnonzero(np.append(True, (places[1:] != places[:-1]).any(axis=1)))
    return places[starts], np.add.reduceat(counts, starts)


def _name(memory: DocumentSource) -> str:
    return str(getattr(memory, "folder", "the memory of sampler patch_knn"))


#: Up to this many distinct places, all are searched; above, the number of lists, and of lists searched.
EXACT, LISTS_PER_ROOT, PROBED = 1 << 18, 4, 64
#: Training places per k-means list, bytes of a sample or a block of vectors, and the seed.
_PER_LIST, _BLOCK_BYTES, _SEED = 64, 128 << 20, 20_250_608
#: Bits of an id that hold the code; the others hold its count.
_CODE_BITS = 22
#: Increased when the meaning of the file changes.
_FORMAT = 1

FloatArray = npt.NDArray[np.float32]

_opened: WeakKeyDictionary[ModelParts, dict[tuple[Any, ...], PlaceDatabase]] = WeakKeyDictionary()
_lock = Lock()


class PlaceDatabase:
    """Places, searchable by their surroundings. The mean distance of two random places is 1.

    Args:
        native: the index, see the top of this file.
        codebook_Vd: the tokenizer's code vectors.
        mean_distance: the average squared distance of two places' surroundings.
    """

    def __init__(self, native: Any, codebook_Vd: FloatArray, mean_distance: float) -> None:
        self.native, self.codebook_Vd, self.mean_distance = native, codebook_Vd, mean_distance

    def __len__(self) -> int:
        return int(self.native.ntotal)

    def search(
        self, around_nK: npt.NDArray[np.int64], number: int
    ) -> tuple[FloatArray, npt.NDArray[np.int64], CountArray]:
        """Return distances (ascending), codes and counts of the nearest places, each [n, N]; inf, 0 and 0
        if there are fewer. Searches are independent of each other."""
        vectors_nE = self.codebook_Vd[around_nK].reshape(len(around_nK), -1)
        with faiss_calls(vectors_nE.shape[1], one_by_one=True):
            distance_nN, id_nN = self.native.search(vectors_nE, min(number, len(self)))
        none_nN = id_nN < 0
        distance_nN = np.where(none_nN, np.inf, distance_nN / self.mean_distance)
        id_nN[none_nN] = 0
        return distance_nN.astype(np.float32), id_nN & ((1 << _CODE_BITS) - 1), id_nN >> _CODE_BITS


def database_for(parts: ModelParts, bank: str | None, max_places: int) -> PlaceDatabase:
    """Open the places of a bank, or of the model's memory, once per model.

    Raises:
        RecipeError: the image tokenizer has no code vectors.
        DataError: there is no bank, or it has another image tokenizer or no pictures.
    """
    with _lock:
        own = _opened.setdefault(parts, {})
        if (bank, max_places) not in own:
            own[bank, max_places] = _open(parts, bank, max_places)
        return own[bank, max_places]


def _open(parts: ModelParts, bank: str | None, max_places: int) -> PlaceDatabase:
    tokenizer = parts.image_tokenizer
    codebook = tokenizer.codebook()
    if codebook is None:
        raise RecipeError(
            "sampler",
            "patch_knn compares code vectors, but this model's image tokenizer has none",
            "use another sampler",
        )
    codebook_Vd = np.ascontiguousarray(codebook.float().cpu().numpy())
    memory = parts.memory if bank is None else MemoryBank.open(bank)
    if isinstance(memory, MemoryBank):
        memory.check_tokenizer(tokenizer)
    built = {
        "sampler": "patch_knn",
        "format": _FORMAT,
        "image_tokenizer": tokenizer.fingerprint,
        "max_places": max_places,
        "exact": EXACT,
    }
    fingerprint = memory.content_fingerprint
    folder = _folder(memory, built, fingerprint)

    def build(path: Path) -> Mapping[str, Any]:
        places_ML, count_M = places_of(memory, tokenizer, max_places)
        native = _index(places_ML, count_M, codebook_Vd)
        write_faiss(native, path)
        return {
            "places": int(count_M.sum()),
            "distinct": len(places_ML),
            "mean_distance": _mean_distance(places_ML, count_M, codebook_Vd),
        }

    def load(path: Path, measured: Mapping[str, Any]) -> PlaceDatabase:
        native = _faiss().read_index(str(path))
        form = (type(native).__name__, native.ntotal, native.d)
        if form != ("IndexIVFPQ", measured["distinct"], len(AROUND) * codebook_Vd.shape[1]):
            raise ValueError(f"holds a {form[0]} of {form[1]} rows")
        return PlaceDatabase(native, codebook_Vd, float(measured["mean_distance"]))

    return kept_index(folder, fingerprint, built, build, load)


def _folder(memory: DocumentSource, built: Mapping[str, Any], fingerprint: str) -> Path:
    """Return the folder next to the bank if that is writable, otherwise one in the cache."""
    if isinstance(memory, MemoryBank):
        folder = memory.folder / "patch_knn" / _hash(built)
        try:
            check_writable(folder, folder=True)
        except FileError:
            if not folder.is_dir():
                return cache_folder("patch_knn", _hash((built, fingerprint)))
        return folder
    return cache_folder("patch_knn", _hash((built, fingerprint)))


def _hash(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def in_memory(places_ML: PlaceArray, count_M: CountArray, codebook_Vd: FloatArray) -> PlaceDatabase:
    """Build a database that is not stored."""
    mean = _mean_distance(places_ML, count_M, codebook_Vd)
    return PlaceDatabase(_index(places_ML, count_M, codebook_Vd), codebook_Vd, mean)


def _index(places_ML: PlaceArray, count_M: CountArray, codebook_Vd: FloatArray) -> Any:
    """Build the faiss index of places."""
    faiss = _faiss()
    (num_places, _), (num_codes, dimension) = places_ML.shape, codebook_Vd.shape
    K, num_bits = len(AROUND), max(1, (num_codes - 1).bit_length())
    centres_LE = _centres(places_ML, codebook_Vd)
    coarse = faiss.IndexFlatL2(K * dimension)
    coarse.add(centres_LE)
    native = faiss.IndexIVFPQ(coarse, K * dimension, len(centres_LE), K, num_bits)
    native.own_fields = True
    coarse.this.disown()
    native.by_residual, native.is_trained = False, True
    native.nprobe = min(PROBED, len(centres_LE))
    padded_KVd = np.zeros((K, 1 << num_bits, dimension), np.float32)
    padded_KVd[:, :num_codes] = codebook_Vd
    faiss.copy_array_to_vector(padded_KVd.ravel(), native.pq.centroids)
    list_M = _nearest_list(coarse, places_ML, codebook_Vd)
    order = np.argsort(list_M, kind="stable")
    packed = faiss.pack_bitstrings(np.ascontiguousarray(places_ML[order, :K]), num_bits)
    largest = (1 << (62 - _CODE_BITS)) - 1
    ids = places_ML[order, K].astype(np.int64) | np.minimum(count_M[order], largest) << _CODE_BITS
    ends = np.cumsum(np.bincount(list_M, minlength=len(centres_LE)))
    for number, (start, stop) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        if stop > start:
            rows = np.ascontiguousarray(packed[start:stop])
            own = np.ascontiguousarray(ids[start:stop])
            native.invlists.add_entries(
                number, int(stop - start), faiss.swig_ptr(own), faiss.swig_ptr(rows)
            )
    native.ntotal = num_places
    return native


def _centres(places_ML: PlaceArray, codebook_Vd: FloatArray) -> FloatArray:
    """Return the centres of the lists, [L, K * d]; a single list is searched completely, wherever its centre is."""
    K, dimension = len(AROUND), codebook_Vd.shape[1]
    if len(places_ML) <= EXACT:
        return np.zeros((1, K * dimension), np.float32)
    num_lists = LISTS_PER_ROOT * math.isqrt(len(places_ML))
    most = max(num_lists, _BLOCK_BYTES // (4 * K * dimension))
    size = min(len(places_ML), _PER_LIST * num_lists, most)
    sample = np.random.default_rng(_SEED).choice(len(places_ML), size, replace=False)
    vectors = codebook_Vd[places_ML[np.sort(sample), :K]].reshape(size, -1)
    with faiss_calls(K * dimension) as faiss:
        means = faiss.Kmeans(
            K * dimension, num_lists, niter=8, seed=_SEED, min_points_per_centroid=1
        )
        means.train(vectors)
    centres: FloatArray = means.centroids
    return centres


def _nearest_list(
    coarse: Any, places_ML: PlaceArray, codebook_Vd: FloatArray
) -> npt.NDArray[np.int64]:
    """Return the list of each place, int64 [M]."""
    list_M = np.zeros(len(places_ML), np.int64)
    if coarse.ntotal == 1:
        return list_M
    K, dimension = len(AROUND), codebook_Vd.shape[1]
    step = max(1, _BLOCK_BYTES // (4 * K * dimension))
    starts = range(0, len(places_ML), step)
    for start in make_bar(starts, desc="patch_knn: sorting into lists", unit="block"):
        around = places_ML[start : start + step, :K]
        with faiss_calls(K * dimension):
            found = coarse.search(codebook_Vd[around].reshape(len(around), -1), 1)[1]
        list_M[start : start + step] = found[:, 0]
    return list_M


def _mean_distance(places_ML: PlaceArray, count_M: CountArray, codebook_Vd: FloatArray) -> float:
    """Return the mean squared distance of two places' surroundings, weighted by their counts: twice the
    variance. 1 if all are equal."""
    variance = 0.0
    vectors_Vd = codebook_Vd.astype(np.float64)
    for code_M in places_ML[:, : len(AROUND)].T:
        weight_V = np.bincount(code_M, count_M, len(vectors_Vd)) / count_M.sum()
        variance += weight_V @ ((vectors_Vd - weight_V @ vectors_Vd) ** 2).sum(1)
    return float(2 * variance) or 1.0


def _faiss() -> Any:
    import faiss

    return faiss
