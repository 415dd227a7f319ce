"""Tables whose cells are separated otherwise than their file's name says, as spreadsheets in many countries save
them: said once, at the header, instead of once for every row."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cm3core.errors import DataError

_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_SUFFIXES = {",": ".csv", "\t": ".tsv"}


def check_separator(
    place: str, header: Sequence[str], wanted: Collection[str], separator: str
) -> None:
    """Refuse a header that is one cell as it was read, and has the wanted columns with another separator.

    Args:
        place: of the header, for the error.
        header: its cells.
        wanted: columns that must be there.
        separator: what was taken for one.

    Raises:
        DataError: it is separated otherwise.
    """
    if len(header) != 1 or set(wanted) <= set(header):
        return
    for other, name in _NAMES.items():
        cells = {cell.strip() for cell in header[0].split(other)}
        if other != separator and set(wanted) <= cells:
            rename = f"name it {_SUFFIXES[other]}, or " if other in _SUFFIXES else ""
            raise DataError(
                place,
                f"its columns are separated by {name}, not by {_NAMES[separator]}",
                f"{rename}save it with {_NAMES[separator]}",
            )
