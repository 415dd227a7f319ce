"""Sprites in a user's folder: one drawing a file, named by its file, in the style that its subfolder names.

    my/sprites/red_car.png            "red car", style "own"
    my/sprites/pixel_art/red-car.webp "red car", style "pixel art"

Legend: H, W pixels of a file; S pixels a side.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from cm3core.document import PixelArray
from cm3core.errors import DataError, RecipeError, close_match
from cm3core.files import check_regular, open_regular
from cm3core.images import check_file_bytes, open_alpha, open_image
from cm3core.interfaces.dataset import Provenance, SkippedRecord
from cm3plugins.datasets.file_source import is_unicode, leads_out, skipped
from cm3plugins.datasets.hub_data import local, source_of
from cm3plugins.datasets.pictures import NEXT_STEP, SUFFIXES, UNREAD_SUFFIXES, examine
from cm3plugins.datasets.svg_folder.reading import parsed
from cm3plugins.scenes.sprites import Sprite, Sprites
from cm3plugins.svg import render_svg
from cm3run.progress import make_bar

#: Style of files that are in no subfolder.
OWN_STYLE = "own"
#: Drawings are compared in pairs, which takes a gigabyte for this many.
MOST_FILES = 10_000
#: Increased whenever a file gives another drawing.
_VERSION = 1
_SVG = ".svg"
_READ = (*SUFFIXES, _SVG)
#: Larger pictures are reduced by a whole number, to a longest side below twice this, before their background is found.
_LONGEST = 512
#: Greatest difference of channels, of 255, within a background; JPEG changes a plain area by less.
_NEAR = 16
#: Least opacity, of 255, that the eye sees; margin around the visible part, as a share of its longest side.
_VISIBLE, _MARGIN = 8, 1 / 32
#: Pixels per side at which SVG files are tried.
_TRIED = 64
_BETWEEN_WORDS = re.compile(r"[\s_\x00-\x1f\x7f-]+")
_AS_PNG = "save it as a PNG with a transparent background"


@dataclass(frozen=True)
class SpriteFile:
    """A file, not read yet.

    Args:
        path: where it is.
        name: its path in the folder, with `/`.
        style: words of its subfolder's name.
        size, mtime_ns: bytes and time of the last change, 0 if unknown.
    """

    path: Path
    name: str
    style: str
    size: int
    mtime_ns: int

    @property
    def label(self) -> str:
        """The words of its name."""
        return in_words(self.path.stem)

    @property
    def place(self) -> str:
        """Its name in messages."""
        return _shown(self.path)


@dataclass(frozen=True)
class Listing:
    """The files of a folder, in the order of their names.

    Args:
        folder: the folder.
        files: those that may be drawings.
        skipped: what is not read.
        source: the repository of the Hub that it comes from; "": none.
    """

    folder: Path
    files: tuple[SpriteFile, ...]
    skipped: tuple[SkippedRecord, ...]
    source: str


class FolderSprites(Sprites):
    """The drawings in a folder. Files that can't be used are `skipped`; every file is decoded once to find them.

    Args:
        listing: its files.
        styles: styles to include; (): all.
        cache_dir: see `Sprites`.

    Raises:
        RecipeError: no file has one of the styles.
        DataError: no file can be used.
    """

    def __init__(
        self, listing: Listing, styles: tuple[str, ...] = (), cache_dir: Path | str | None = None
    ) -> None:
        self._source = listing.source
        self.skipped = list(listing.skipped)
        known = tuple(dict.fromkeys(file.style for file in listing.files))
        for style in styles:
            if in_words(style) not in known:
                cause = f"no drawing in {listing.folder} has the style {style!r}; {close_match(in_words(style), known)}"
                raise RecipeError(
                    "dataset.styles", cause, "name subfolders, or leave it empty for all styles"
                )
        chosen = [in_words(style) for style in styles] or known
        self._files: list[tuple[SpriteFile, str]] = []  # with the hash of the content
        sprites: dict[Sprite, SpriteFile] = {}
        wanted = [file for file in listing.files if file.style in chosen]
        for file in make_bar(wanted, desc="reading sprites", unit="file", delay=2, leave=False):
            try:
                sprite = _sprite(file)
                if sprite in sprites:
                    cause = f"has the name of {sprites[sprite].name}, {sprite.label!r}"
                    raise DataError(file.place, cause, "rename or remove one of them")
                content = _content(file)
                _drawing(content, file, _TRIED)
            except DataError as error:
                self.skipped.append(skipped(error))
                continue
            sprites[sprite] = file
            self._files.append((file, hashlib.sha256(content).hexdigest()))
        if not sprites:
            first = self.skipped[0]
            raise DataError(
                f"dataset.sprites {listing.folder}",
                f"no file can be used; the first: {first.place} {first.cause}",
                first.next_step,
            )
        super().__init__(list(sprites), cache_dir)

    @property
    def name(self) -> str:
        return "sprites"

    @cached_property
    def sha256(self) -> str:
        rows = [f"{file.name}\0{content}" for file, content in self._files]
        return hashlib.sha256("\n".join((str(_VERSION), *rows)).encode()).hexdigest()

    def render(self, index: int, side: int) -> PixelArray:
        file, known = self._files[index]
        content = _content(file)
        if hashlib.sha256(content).hexdigest() != known:
            raise DataError(file.place, "has changed since the folder was read", "start again")
        return _drawing(content, file, side)

    def provenance(self, index: int) -> Provenance:
        sprite = self.all[index]
        return Provenance(source=self._source, collection=sprite.style, title=sprite.label)


def folder_sprites(path: str, styles: tuple[str, ...], cache_dir: str | None) -> Sprites:
    """The sprites in a folder and its subfolders, one level deep; read once a process unless its files change.

    Args:
        path: the folder, or an address of the Hub.
        styles, cache_dir: see `FolderSprites`.

    Raises:
        RecipeError: no file has one of the styles.
        DataError: there is no such folder, or it has no usable file, or too many.
    """
    return _sprites_of(listed(path), styles, cache_dir)


_sprites_of = lru_cache(8)(FolderSprites)


def listed(path: str) -> Listing:
    """List a folder.

    Raises:
        DataError: there is no such folder, or it has no file that may be a drawing, or too many.
    """
    folder = local(path, _READ)
    place = f"dataset.sprites {_shown(folder)}"
    if not folder.is_dir():
        cause = "is a file, not a folder" if folder.is_file() else "there is no such folder"
        raise DataError(place, cause, "correct dataset.sprites")
    files: list[SpriteFile] = []
    passed: list[SkippedRecord] = []
    for found in _entries(folder):
        if isinstance(found, DataError):
            passed.append(skipped(found))
        else:
            files.append(found)
        if len(files) > MOST_FILES:
            raise DataError(
                place, f"holds more than {MOST_FILES:,} drawings", "name a folder of fewer"
            )
    if not files:
        cause = f"neither it nor its subfolders hold a drawing ({', '.join(_READ)})"
        next_step = "correct dataset.sprites"
        if passed:
            cause, next_step = f"{cause}; {passed[0].place} {passed[0].cause}", passed[0].next_step
        raise DataError(place, cause, next_step)
    return Listing(
        folder,
        tuple(sorted(files, key=lambda one: one.name)),
        tuple(sorted(passed, key=lambda one: one.place)),
        source_of(path),
    )


def _entries(folder: Path) -> Iterator[SpriteFile | DataError]:
    """Yield the files in a folder and its subfolders, and why others are not read; what is hidden is left out, as are
    links to folders inside, which are read themselves."""
    real = Path(os.path.realpath(folder))
    parents = [(folder, OWN_STYLE)]
    while parents:
        parent, style = parents.pop()
        try:
            paths = sorted(parent.iterdir())
        except OSError as error:
            yield DataError(
                _shown(parent), f"can't be read: {error.strerror}", "correct its permissions"
            )
            continue
        for path in paths:
            is_folder, suffix = path.is_dir(), path.suffix.lower()
            if path.name.startswith(".") or not (is_folder or suffix in _READ + UNREAD_SUFFIXES):
                continue
            if leads_out(path, real):
                yield DataError(
                    _shown(path),
                    "is a link out of the folder, which is not read",
                    "replace it by a copy",
                )
            elif is_folder:
                if parent == folder and not path.is_symlink():
                    parents.append((path, in_words(path.name)))
            elif suffix not in _READ:
                yield DataError(
                    _shown(path), f"pictures of type {path.suffix} are not supported", _AS_PNG
                )
            else:
                yield _file(path, path.relative_to(folder).as_posix(), style)


def _file(path: Path, name: str, style: str) -> SpriteFile:
    try:
        status = path.stat()
    except OSError:  # reading it says why
        return SpriteFile(path, name, style, 0, 0)
    return SpriteFile(path, name, style, status.st_size, status.st_mtime_ns)


def in_words(name: str) -> str:
    """The words of a name.

    >>> in_words("Red_Car"), in_words("  pixel-art__2 "), in_words("-")
    ('red car', 'pixel art 2', '')
    """
    words = unicodedata.normalize("NFC", name).lower()  # some systems store accents apart
    return _BETWEEN_WORDS.sub(" ", words).strip()


def _sprite(file: SpriteFile) -> Sprite:
    """What a file shows, by its names."""
    if not is_unicode(file.name):
        raise DataError(file.place, "its name is not valid UTF-8", "rename it")
    for words, what in ((file.label, "its name"), (file.style, "its folder's name")):
        if not any(map(str.isalnum, words)):
            raise DataError(file.place, f"{what} has no letter or digit", "name what it shows")
    return Sprite(file.label.replace(" ", "-"), file.label, file.style)


def _content(file: SpriteFile) -> bytes:
    """The bytes of a file that may come from anybody."""
    check_regular(file.path, file.place)
    try:
        with open_regular(file.path) as opened:
            check_file_bytes(os.fstat(opened.fileno()).st_size, file.place)
            return opened.read()
    except OSError as error:
        raise DataError(
            file.place, f"can't be read: {error.strerror}", "correct its permissions, or remove it"
        ) from error


def _drawing(content: bytes, file: SpriteFile, side: int) -> PixelArray:
    """Draw a file's content, uint8 [side, side, 4], RGB and alpha, not multiplied.

    Raises:
        DataError: it is broken, too large, shows nothing, or has what can't be taken over.
    """
    if file.path.suffix.lower() == _SVG:
        return _drawn_svg(content, file.place, side)
    examine(content, file.place)
    return resized(cut_out(content, file.place), side)


def _drawn_svg(content: bytes, place: str, side: int) -> PixelArray:
    if not content:
        raise DataError(place, "is empty (0 bytes)", NEXT_STEP)
    try:
        svg = parsed(content, one_paint=False).svg
        if (
            "url(" in svg.lower()
        ):  # what it names is not taken over, so that the drawing would lack parts
            raise DataError(place, "is painted with a gradient or a pattern", _AS_PNG)
        pixels = render_svg(svg, side, background=None)
    except DataError as error:
        raise DataError(place, error.cause, f"{_AS_PNG}, or leave it out") from error
    except ValueError as error:
        raise DataError(
            place, f"can't be drawn ({error})", "correct it, or leave it out"
        ) from error
    if (pixels[..., 3] < _VISIBLE).all():
        raise DataError(place, "shows nothing", NEXT_STEP)
    return pixels


def cut_out(content: bytes, place: str) -> npt.NDArray[np.uint8]:
    """The visible part of a picture in the middle of a transparent square, uint8 [S, S, 4], RGB and alpha, not multiplied.

    A picture without transparency whose corners have one colour loses what of this colour is joined to its border.

    Args:
        content: the file's bytes.
        place: its name in messages.

    Raises:
        DataError: it can't be read, or nothing is visible.
    """
    white_HW3, alpha_HW = open_image(content, place), open_alpha(content, place)
    factor = max(1, max(white_HW3.shape) // _LONGEST)
    white_HW3 = np.asarray(Pillow.fromarray(white_HW3).reduce(factor))
    if alpha_HW is None or alpha_HW.min() == 255:
        colour_HW3 = white_HW3
        alpha_HW = np.where(background(white_HW3), 0, 255).astype(np.uint8)
        cause = "has one colour alone, which is taken as its background"
    else:
        alpha_HW = np.asarray(Pillow.fromarray(alpha_HW).reduce(factor))
        colour_HW3 = without_white(white_HW3, alpha_HW)
        cause = "is transparent everywhere"
    is_visible = alpha_HW >= _VISIBLE
    if not is_visible.any():
        raise DataError(place, cause, NEXT_STEP)
    rows, columns = (np.flatnonzero(is_visible.any(axis)) for axis in (1, 0))
    part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    height, width = alpha_HW[part].shape
    side = max(height, width)
    side += 2 * int(np.ceil(side * _MARGIN))
    top, left = (side - height) // 2, (side - width) // 2
    whole = np.zeros((side, side, 4), np.uint8)
    whole[top : top + height, left : left + width, :3] = colour_HW3[part]
    whole[top : top + height, left : left + width, 3] = alpha_HW[part]
    return whole


def without_white(
    white_HW3: npt.NDArray[np.uint8], alpha_HW: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """The colours that, with this opacity, look like this on white: uint8 [H, W, 3]; black where nothing is visible.

    >>> without_white(np.array([[[204, 204, 204], [255, 255, 255]]], np.uint8), np.array([[51, 0]], np.uint8)).tolist()
    [[[0, 0, 0], [0, 0, 0]]]
    """
    alpha = alpha_HW[..., None].astype(np.int32)
    ink = (255 - white_HW3.astype(np.int32)) * 255
    colour = 255 - (ink + alpha // 2) // np.maximum(alpha, 1)
    return np.where(alpha > 0, colour.clip(0, 255), 0).astype(np.uint8)


def background(pixels_HW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """The pixels of the corners' colour that are joined to the border by such pixels, bool [H, W]; none if the corners
    differ.

    >>> ring = np.full((5, 5, 3), 255, np.uint8)
    >>> ring[1:4, 1:4], ring[2, 2] = 0, 255
    >>> int(background(ring).sum()), bool(background(ring)[2, 2])
    (16, False)
    """
    corners = pixels_HW3[[0, 0, -1, -1], [0, -1, 0, -1]].astype(np.int16)
    if (corners.max(0) - corners.min(0) > _NEAR).any():
        return np.zeros(pixels_HW3.shape[:2], np.bool_)
    apart = np.abs(pixels_HW3 - corners.mean(0).astype(np.int16)).max(-1)
    like: npt.NDArray[np.bool_] = apart <= _NEAR
    reached = like.copy()
    reached[1:-1, 1:-1] = False
    across, down = _runs(like), _runs(like.T).T
    number = -1
    while number != (number := int(reached.sum())):
        for runs in (across, down):  # all of a run is reached if one of its pixels is
            has = np.zeros(int(runs.max()) + 1, np.bool_)
            has[runs[reached]] = True
            reached = has[runs] & like
    return reached


def _runs(like_HW: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """A number for each run of true pixels in a row, int64 [H, W]; that of the run before for the others."""
    starts = like_HW.copy()
    starts[:, 1:] &= ~like_HW[:, :-1]
    numbers: npt.NDArray[np.int64] = np.cumsum(starts, dtype=np.int64).reshape(like_HW.shape)
    return numbers


def resized(pixels_SS4: npt.NDArray[np.uint8], side: int) -> PixelArray:
    """Resize a square picture with alpha, uint8 [side, side, 4]. Colours count as much as they are opaque, so that edges
    get no halo of the colour that is stored where nothing is visible."""
    picture = Pillow.fromarray(pixels_SS4)
    # Pillow multiplies by the opacity before, and divides after
    return np.asarray(picture.resize((side, side), Pillow.Resampling.LANCZOS)).copy()


def _shown(path: Path) -> str:
    """A path for messages, with invalid UTF-8 replaced."""
    return str(path).encode(errors="replace").decode()
