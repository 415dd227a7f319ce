"""Data set `tuxpaint`: the captioned stamps of Tux Paint, as packaged by Debian.

Mostly photos, with captions in 100 languages. The stamps are licensed under the GPL and not included: `apt
install tuxpaint-stamps-default` (81 MB). Each stamp is NAME.png with NAME.txt, whose first line is the
English caption; every other line is `xx.utf8=` followed by the caption in that language.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cm3core.errors import DataError
from cm3core.files import user_path
from cm3core.interfaces.dataset import CAPTIONED, SkippedRecord
from cm3core.interfaces.reach import READS, TEXT, Outside
from cm3plugins.datasets.file_source import (
    MAX_TEXT_BYTES,
    FileSourceConfig,
    FoundRecord,
    captions_of,
    found_or_skipped,
    read_utf8,
)
from cm3plugins.datasets.pictures import PictureIndex

STAMPS = "/usr/share/tuxpaint/stamps"
INSTALL = "apt install tuxpaint-stamps-default"
SYMBOLS = "symbols"
#: Second drawings of stamps, shown when mirrored or flipped; they have no caption.
VARIANTS = ("_mirror", "_flip", "_mirror_flip")


@dataclass(kw_only=True)
class TuxPaintSourceConfig(FileSourceConfig):
    """Tux Paint's stamps; ids are paths inside the folder, such as "animals/birds/owl".

    Args:
        path: the folder of stamps.
        language: language code of the captions: "en", or another one in the files, such as "de" or
            "pt_BR". Stamps without a caption in this language are skipped.
        symbols: include letters, digits, coins and other symbols (about a quarter).
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(READS, "its stamps"),
        "language": TEXT,
    }

    path: str = STAMPS
    language: str = "en"
    symbols: bool = False

    def record_fields(self) -> tuple[str, ...]:
        """A picture and its caption."""
        return CAPTIONED

    def scan(self, index: PictureIndex) -> Iterator[FoundRecord | SkippedRecord]:
        """Yield stamps in the order of their paths."""
        folder = user_path(self.path)
        if not folder.is_dir():
            raise DataError(
                f"dataset.path {folder}",
                "there is no such folder; Tux Paint's stamps are not installed",
                INSTALL,
            )
        pictures = sorted(
            path for path in folder.rglob("*.png") if not path.stem.endswith(VARIANTS)
        )
        if not pictures:
            raise DataError(f"dataset.path {folder}", "has no stamps (*.png)", INSTALL)
        names = {path: path.relative_to(folder).with_suffix("").as_posix() for path in pictures}

        def find(path: Path) -> FoundRecord:
            captions = self._captions(path.with_suffix(".txt"))
            return FoundRecord(names[path], str(path), (captions, index.picture(path, str(path))))

        return found_or_skipped(
            (path for path, name in names.items() if self.symbols or name.split("/")[0] != SYMBOLS),
            find,
        )

    def _captions(self, path: Path) -> tuple[str, ...]:
        if not path.is_file():
            cause = f"has no caption: there is no {path.name} next to it"
            raise DataError(str(path.with_suffix(".png")), cause, "remove the stamp")
        lines = read_utf8(path, str(path), MAX_TEXT_BYTES).split("\n")
        if self.language == "en":
            return captions_of(lines[0], str(path))
        start = f"{self.language}.utf8="
        for line in lines[1:]:
            if line.startswith(start):
                return captions_of(line.removeprefix(start), str(path))
        raise DataError(
            str(path), f"has no caption in {self.language!r}", "choose another dataset.language"
        )
