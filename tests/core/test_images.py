"""Pictures from files nobody vouches for; sizes; metadata."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from cm3core import images
from cm3core.document import PixelArray
from cm3core.errors import DataError, FileError
from cm3core.images import fit, open_image, read_png_metadata, save_png
from messages import tells


def file_of(image: Pillow.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(height: int, width: int) -> PixelArray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_rgb_comes_back(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", noise(5, 7))
    assert np.array_equal(open_image(tmp_path / "a.png"), noise(5, 7))
    assert np.array_equal(
        open_image(str(tmp_path / "a.png")), open_image((tmp_path / "a.png").read_bytes())
    )


def test_transparency_is_on_white() -> None:
    image = Pillow.new("RGBA", (3, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    image.putpixel((2, 0), (0, 0, 0, 128))
    assert open_image(file_of(image))[0].tolist() == [[255, 255, 255], [255, 0, 0], [127, 127, 127]]


def test_a_palette_with_a_transparent_colour() -> None:
    image = Pillow.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert open_image(file_of(image))[0].tolist() == [[10, 20, 30], [40, 50, 60]]
    assert open_image(file_of(image, transparency=0))[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_sixteen_bits_become_eight() -> None:
    image = Pillow.fromarray(np.asarray([[0, 257, 65535, 128 * 257]], np.uint16))
    assert open_image(file_of(image))[0, :, 0].tolist() == [0, 1, 255, 128]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_a_dark_picture_of_sixteen_bits_is_dark(kind) -> None:
    """Its scale is that of its format, not of its brightest pixel."""
    image = Pillow.fromarray(np.asarray([[0, 200, 255]], np.uint16))
    assert open_image(file_of(image, kind))[0, :, 0].tolist() == [0, 0, 0]


def test_numbers_of_32_bits_have_no_agreed_range() -> None:
    image = Pillow.fromarray(np.asarray([[0, 1_000_000]], np.int32))
    with pytest.raises(DataError, match="has pixels that are not 8-bit or 16-bit numbers"):
        open_image(file_of(image, "TIFF"), "x.tif")


def test_grey_with_alpha_and_cmyk() -> None:
    assert open_image(file_of(Pillow.new("LA", (1, 1), (0, 0)))).tolist() == [[[255, 255, 255]]]
    assert open_image(file_of(Pillow.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"))[0, 0].tolist() == [
        255,
        255,
        255,
    ]


def test_exif_turns_the_picture() -> None:
    image = Pillow.new("RGB", (4, 2))
    exif = Pillow.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    assert open_image(file_of(image, "JPEG", exif=exif)).shape == (4, 2, 3)


def hostile_png(width: int, height: int) -> bytes:
    """A header that announces many pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"",
            "x.png: is not a picture ... PNG ... JPEG",
        ),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n",
            "x.png: is not a picture ... PNG ... JPEG",
        ),
        (
            hostile_png(10_000, 10_000),
            "x.png: 10000 x 10000 ... than 64,000,000",
        ),
        (
            hostile_png(60_000, 60_000),
            "x.png: has more than 64,000,000",
        ),
        (
            file_of(Pillow.new("F", (1, 1)), "TIFF"),
            "x.png: has pixels that ... not 8-bit or 16-bit ... an 8 ... PNG",
        ),
    ],
)
def test_hostile_files_are_explained(content: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        open_image(content, "x.png")
    assert tells(caught.value, message)


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_image(tmp_path / "no.png")
    assert (
        str(caught.value)
        == f"{tmp_path / 'no.png'}: there is no such file\n  next: correct the path"
    )


def test_a_folder_is_not_called_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_image(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: is a folder, not a picture\n  next: name a picture in it"
    )


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_files_are_explained(file_format: str, share: float) -> None:
    whole = file_of(Pillow.fromarray(noise(64, 64)), file_format)
    with pytest.raises(DataError, match=r"damaged or truncated|is not a picture"):
        open_image(whole[: int(len(whole) * share)])


@given(
    position=st.integers(0, 400),
    value=st.integers(0, 255),
    file_format=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]),
)
@pytest.mark.filterwarnings("ignore")
def test_a_broken_byte_is_an_error_or_a_picture(
    position: int, value: int, file_format: str
) -> None:
    content = bytearray(file_of(Pillow.fromarray(noise(16, 16)), file_format))
    content[position % len(content)] = value
    try:
        pixels = open_image(bytes(content))
    except DataError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((64, 64), (64, 64)),
        ((100, 300), (64, 64)),
        ((300, 100), (64, 64)),
        ((5, 7), (64, 32)),
        ((1, 60_000), (64, 64)),
        ((1, 1), (16, 16)),
    ],
)
def test_fit_gives_the_size(shape: tuple[int, int], size: tuple[int, int]) -> None:
    assert fit(noise(*shape), size).shape == (*size, 3)


def test_fit_leaves_the_right_size_alone_and_keeps_the_middle() -> None:
    pixels = noise(8, 8)
    assert fit(pixels, (8, 8)) is pixels
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (fit(wide, (10, 10)) == 200).all()


def test_fit_is_resize_and_centre_crop() -> None:
    ramp = np.linspace(0, 255, 90).astype(np.uint8)
    pixels = np.repeat(np.repeat(ramp[None, :, None], 60, axis=0), 3, axis=2)
    small = (
        Pillow.fromarray(pixels).resize((48, 32), Pillow.Resampling.LANCZOS).crop((8, 0, 40, 32))
    )
    assert np.abs(fit(pixels, (32, 32)).astype(int) - np.asarray(small).astype(int)).max() <= 2


def test_metadata_comes_back(tmp_path: Path) -> None:
    metadata = {"prompt": "ein roter Äpfel 🍎\nzwei Zeilen", "seed": "1"}
    save_png(tmp_path / "deep" / "a.png", noise(2, 2), metadata)
    assert read_png_metadata(tmp_path / "deep" / "a.png") == metadata
    Pillow.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="is a JPEG file"):
        read_png_metadata(tmp_path / "a.jpg")


def test_special_and_huge_files_are_refused_before_they_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "device.png"):
        with pytest.raises(DataError, match="not a regular file"):
            open_image(tmp_path / name)
    with (tmp_path / "huge.webp").open("wb") as file:
        file.write(b"RIFF\0\0\0\0WEBPVP8 ")
        file.truncate(6 << 30)
    with pytest.raises(DataError, match="a picture may have at most 268,435,456"):
        open_image(tmp_path / "huge.webp")


def test_alpha_is_read() -> None:
    image = Pillow.new("RGBA", (2, 1), (9, 9, 9, 0))
    image.putpixel((1, 0), (1, 2, 3, 200))
    alpha = images.open_alpha(file_of(image))
    assert alpha is not None
    assert alpha.tolist() == [[0, 200]]
    assert images.open_alpha(file_of(Pillow.new("RGB", (2, 1)))) is None
    palette = Pillow.new("P", (2, 1))
    assert images.open_alpha(file_of(palette, "PNG", transparency=0)) is not None


def test_pictures_of_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    data = file_of(Pillow.new("RGB", (11, 10)))
    cut = data[:60]  # its head alone
    images.check_pixels(cut, "a.png", 110)
    for check in (
        lambda: images.check_pixels(cut, "a.png", 109),
        lambda: images.open_alpha(cut, "a.png", max_pixels=109),
    ):
        with pytest.raises(DataError, match=r"a\.png: 11 x 10 pixels, more than 109"):
            check()
    with pytest.raises(DataError, match="is not a picture"):
        images.check_pixels(b"x", "a.png", 9)


def test_a_name_of_another_format_is_refused_before_work(tmp_path: Path) -> None:
    """A .jpg that holds a PNG misleads whoever opens it."""
    for name in ("a.png", "A.PNG", "noext", "a.v2"):
        images.claim_png(tmp_path / name)
    for name in ("a.xyz", "a.pgn", "a.avif", "a.b.Pdf"):
        with pytest.raises(FileError, match=r": ends in \.\w+, but pictures are written as PNG\n"):
            images.claim_png(tmp_path / name)
    with pytest.raises(FileError) as caught:
        images.claim_png(tmp_path / "a.JPG")
    assert tells(caught.value, f"{tmp_path}/a.JPG: ends in .JPG ... PNG ... a.png")
    with pytest.raises(FileError, match="is a folder"):
        images.claim_png(tmp_path)


def test_png_bytes_carry_transparency_and_text(tmp_path: Path) -> None:
    layers = np.dstack([noise(2, 3), np.full((2, 3), 7, np.uint8)])
    (tmp_path / "a.png").write_bytes(images.png_bytes(layers, {"prompt": "ä"}))
    alpha = images.open_alpha(tmp_path / "a.png")
    assert alpha is not None
    assert (alpha == 7).all()
    assert read_png_metadata(tmp_path / "a.png") == {"prompt": "ä"}


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "transparent P"]
)
@pytest.mark.parametrize("turned", [1, 6])
def test_strips_of_a_picture_are_what_the_whole_is(monkeypatch, mode: str, turned: int) -> None:
    rng = np.random.default_rng(3)
    if mode == "I;16":
        picture = Pillow.fromarray(rng.integers(0, 65536, (37, 23)).astype(np.uint16))
    else:
        picture = Pillow.fromarray(rng.integers(0, 256, (37, 23, 4), np.uint8), "RGBA")
        picture = picture.convert("RGB").convert("P") if "P" in mode else picture
        picture = picture if "P" in mode else picture.convert(mode)
    exif = Pillow.Exif()
    exif[0x0112] = turned
    more = {"transparency": 5} if mode == "transparent P" else {}
    data = file_of(picture, "TIFF" if mode == "CMYK" else "PNG", exif=exif, **more)
    whole, alpha = open_image(data), images.open_alpha(data)
    monkeypatch.setattr(images, "_STRIP_PIXELS", 100)
    np.testing.assert_array_equal(open_image(data), whole)
    np.testing.assert_array_equal(images.open_alpha(data), alpha)  # type: ignore[arg-type]  # None, too
    assert whole.shape == ((37, 23, 3) if turned == 1 else (23, 37, 3))


def jpeg_of_scans(scans: int) -> bytes:
    """A progressive JPEG whose last scan is there many times."""
    data = file_of(Pillow.fromarray(noise(8, 8)).convert("L"), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def test_a_jpeg_of_thousands_of_scans_is_refused() -> None:
    """A file of 150 KB took a minute: each of its scans is decoded over all of the picture."""
    assert open_image(jpeg_of_scans(90)).shape == (8, 8, 3)
    with pytest.raises(DataError) as caught:
        open_image(jpeg_of_scans(2000), "a.jpg")
    assert tells(caught.value, "a.jpg: has more than 100 ... JPEG")


def test_what_looks_like_scans_beside_the_picture_is_not_counted() -> None:
    """Previews inside a segment, and films behind the end, as phones write them."""
    data = jpeg_of_scans(1)
    comment = b"\xff\xda" * 500
    before = data[:2] + b"\xff\xfe" + struct.pack(">H", 2 + len(comment)) + comment + data[2:]
    assert open_image(before + b"\xff\xda" * 500).shape == (8, 8, 3)


def test_size_and_transparency_are_in_the_head() -> None:
    data = file_of(Pillow.new("RGBA", (30, 20)))
    assert images.size_of(data, "x", 600) == (30, 20)
    assert images.has_alpha(data, "x", 600)
    assert not images.has_alpha(file_of(Pillow.new("RGB", (3, 2))), "x", 600)
    with pytest.raises(DataError, match="30 x 20 pixels, more than 599"):
        images.size_of(data, "x", 599)
