"""Whatever is stored in the cache is built once, however many ask for it at the same moment; and without a cache, too.

Threads stand for processes here, as a lock belongs to an open file (`tests/run/test_built_once.py` has processes)."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3core.document import Text
from cm3icons.data import user_build
from cm3kits.samples import HashEmbedder, ListSource
from cm3plugins.datasets.vector.render import Renderings
from cm3plugins.decoders import packed
from cm3plugins.extractors.simple import PixelsExtractor
from cm3plugins.indexes.kept import kept_index
from cm3plugins.retrievers import text_vectors
from cm3plugins.retrievers.memory_vectors import memory_vectors
from cm3plugins.retrievers.text_vectors import TextVectors
from cm3run.evaluation.features import features_in_chunks
from cm3run.training.code_cache import CodeCache
from numbered_documents import Numbers, Quadrants
from own_temporary import private_folder as private_folder
from small_disk import small_disk

#: Called by what is built, once for each time that it is.
Built = Callable[[], None]


def drawn(cache: Path, built: Built) -> Any:
    def render(index: int) -> Any:
        if index == 0:
            built()
        return np.full((2, 2, 3), index, np.uint8)

    return Renderings("drawn", "0" * 64, (3, 2, 2, 3), cache).load(range(3), render)


class Embedder(HashEmbedder):
    def __init__(self, built: Built) -> None:
        super().__init__()
        self._built = built

    def _embed_texts(self, texts: Any) -> Any:
        self._built()
        return super()._embed_texts(texts)


def embedded_memory(cache: Path, built: Built) -> Any:
    return memory_vectors(ListSource([(Text("a"),), (Text("b"),)]), Embedder(built))


def embedded_texts(cache: Path, built: Built) -> Any:
    return TextVectors(Embedder(built)).of_memory(["a", "b", "c"])


class Extractor(PixelsExtractor):
    def __init__(self, built: Built) -> None:
        super().__init__(2)
        self._built = built

    def _extract(self, pictures: Any) -> Any:
        self._built()
        return super()._extract(pictures)


def features(cache: Path, built: Built) -> Any:
    pictures = [partial(np.full, (4, 4, 3), place, np.uint8) for place in range(3)]
    [(_, found)] = features_in_chunks(pictures, Extractor(built))
    return found


class Tokenizer(Quadrants):
    def __init__(self, built: Built) -> None:
        super().__init__()
        self._built = built

    def _encode(self, images: Any) -> Any:
        self._built()
        return super()._encode(images)


def codes(cache: Path, built: Built) -> Any:
    found = CodeCache(Numbers(9), Tokenizer(built), progress=False)
    return [found.codes(f"picture {index}") for index in range(9)]


def index(cache: Path, built: Built) -> Any:
    def build(path: Path) -> dict[str, Any]:
        built()
        path.write_text("index")
        return {"number": 3}

    def load(path: Path, measured: Any) -> Any:
        return path.read_text(), measured["number"]

    return kept_index(cache / "indexes" / "one", "fingerprint", {"a": 1}, build, load)


def small_drawings(cache: Path, built: Built) -> Any:
    with pytest.MonkeyPatch.context() as patch:

        def drawings(svgs: Any, title: str) -> Any:
            built()
            return np.ones((len(svgs), user_build.SIDE**2), np.float32)

        patch.setattr(user_build, "small_pictures", drawings)
        return user_build._kept_small(["<svg/>"], cache / "icons-held-out", "some")


CACHES = [drawn, embedded_memory, embedded_texts, features, codes, index, small_drawings]


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three are as many as others have thousands."""
    monkeypatch.setattr(text_vectors, "_TOLD", 2)


@pytest.mark.parametrize("cached", CACHES)
def test_it_is_built_once(
    cached: Callable[[Path, Built], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CM3_CACHE", str(tmp_path))
    calls, results = list[int](), list[Any]()
    together = threading.Barrier(4)

    def built() -> None:
        calls.append(1)
        time.sleep(0.2)

    def run() -> None:
        together.wait()
        results.append(cached(tmp_path, built))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert len(calls) == 1
    assert len(results) == 4
    for result in results[1:]:
        assert np.array_equal(result, results[0])
    assert not list(tmp_path.rglob("*lock"))
    assert not list(tmp_path.rglob("*.cm3-writing"))


@pytest.mark.parametrize("cached", CACHES)
def test_a_read_only_cache_is_replaced(
    cached: Callable[[Path, Built], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    private_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = _in(tmp_path / "cache", cached, lambda: None, monkeypatch)
    calls = list[int]()
    with small_disk(tmp_path / "disk") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for _ in range(2):
            found = _in(disk / "cache", cached, lambda: calls.append(1), monkeypatch)
            assert np.array_equal(found, expected)
    assert len(calls) == 1
    assert "for this process alone. To keep the result, " in capsys.readouterr().err


def _in(
    cache: Path, cached: Callable[[Path, Built], Any], built: Built, patch: pytest.MonkeyPatch
) -> Any:
    patch.setenv("CM3_CACHE", str(cache))
    return cached(cache, built)


def test_products_are_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as processes ask: each has the library when one compiled it."""
    monkeypatch.setenv("CM3_CACHE", str(tmp_path))
    calls = list[int]()

    def compiled(folder: Path) -> None:
        if not (folder / "library").exists():
            calls.append(1)
            time.sleep(0.2)
            folder.mkdir(exist_ok=True)
            (folder / "library").touch()

    monkeypatch.setattr(packed, "library", compiled)
    monkeypatch.setattr(packed, "is_compiled", lambda folder: (folder / "library").exists())
    monkeypatch.setattr(packed, "_compile", packed._compile.__wrapped__)
    threads = [threading.Thread(target=packed.can_compile) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert calls == [1]
