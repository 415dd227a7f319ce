"""Indexes are kept whole, or an error says why not: on a disk that is really full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cm3plugins.indexes.kept import check_whole, write_faiss
from small_disk import leave_room, small_disk

VECTORS = np.random.default_rng(0).standard_normal((60, 16)).astype(np.float32)


def by_faiss(path: Path) -> None:
    import faiss

    native = faiss.IndexFlatIP(16)
    native.add(VECTORS)
    write_faiss(native, path)


def by_usearch(path: Path) -> None:
    index = pytest.importorskip(
        "usearch.index", reason="needs usearch: pip install 'cm3leon[usearch]'"
    )
    native = index.Index(ndim=16)
    native.add(np.arange(len(VECTORS)), VECTORS, threads=1)
    native.save(str(path))
    check_whole(path, native.serialized_length)


@pytest.mark.parametrize("write", [by_faiss, by_usearch])
def test_the_last_bytes_do_not_fit(write: Callable[[Path], None], tmp_path: Path) -> None:
    """Both libraries' own writers leave a file that is cut off, and no error, with some of these."""
    write(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    with small_disk(tmp_path / "disk") as disk:
        path = disk / "index"
        for pages in range(-(-len(whole) // 4096)):
            path.unlink(missing_ok=True)
            leave_room(disk, 4 * pages)
            with pytest.raises((OSError, RuntimeError)):
                write(path)
        path.unlink()
        leave_room(disk, 4 * -(-len(whole) // 4096))
        write(path)
        assert path.read_bytes() == whole


def test_what_is_said(tmp_path: Path) -> None:
    path = tmp_path / "index"
    path.write_bytes(bytes(9))
    check_whole(path, 9)
    with pytest.raises(OSError, match="No space left on device"):
        check_whole(path, 10)
