"""Pictures are examined without decoding: truncation, an end mark inside, a hostile size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import DataError
from cm3plugins.datasets.pictures import examine
from picture_files import picture, png_chunk, png_header


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@given(data=st.data())
def test_truncation_is_seen_without_decoding(kind: str, data: st.DataObject) -> None:
    whole = picture(0, kind, (40, 30))
    assert examine(whole, "here") == (40, 30)
    length = data.draw(st.integers(0, len(whole) - (1 if kind != "GIF" else 2)))
    if kind == "GIF" and whole[:length].endswith(b";"):
        return  # one byte in 256 looks like the end
    with pytest.raises(DataError):
        examine(whole[:length], "here")


def test_a_thumbnail_is_not_the_end_of_a_jpeg() -> None:
    """EXIF holds a whole small JPEG with its own end mark; cut after it, the file is still
    truncated."""
    thumbnail = picture(1, "JPEG", (8, 8))
    segment = b"Exif\0\0" + thumbnail
    whole = picture(0, "JPEG", (64, 64))
    with_thumbnail = (
        whole[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + whole[2:]
    )
    assert examine(with_thumbnail, "here") == (64, 64)
    with pytest.raises(DataError, match="is truncated: the end marker of the JPEG is missing"):
        examine(with_thumbnail[:-100], "here")


def test_hostile_size() -> None:
    with pytest.raises(DataError, match="more than 64,000,000"):
        examine(png_header(60_000, 60_000) + png_chunk(b"IEND", b""), "here")
