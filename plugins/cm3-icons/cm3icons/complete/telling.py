"""The results of `cm3 complete` for the reader: a table for the terminal, and a sheet of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as Picture

from cm3core.errors import DataError
from cm3icons.complete.documents import Documents, Shown, picture_of
from cm3icons.complete.folder import Entry, Results
from cm3plugins.datasets.svg_folder.reading import parsed
from cm3plugins.svg import render_svg
from cm3run.attribution import Credit, credit_in, png
from cm3run.model.facts import facts_of_documents
from cm3run.sheets import grid

if TYPE_CHECKING:
    from cm3core.document import PixelArray
    from cm3icons.complete.sets import OwnSet
    from cm3run.model.model import Model

#: Pixels per side of a picture on the sheet, and documents of each kind that it shows.
SIDE, SHOWN = 128, 2

#: A picture and what stands below it.
Cell = tuple["PixelArray | None", str]


def table_of(results: Results, names: Sequence[str]) -> list[str]:
    """Lines of a table: of each thing its answer, the documents and the judgement of its best candidate, and its files."""
    rows = [("thing", "answer", "documents", "nearest", "verdict", "file", "adapted")]
    for entry in (results.entries[name] for name in names):
        best = next(iter(entry["candidates"]), None)
        shown = entry.get("document", "")
        if best:
            shown = " + ".join(one["id"] for one in best["documents"])
        files = [entry.get("file"), (entry.get("adapted") or {}).get("file")]
        rows.append(
            (
                entry["name"],
                entry["kind"],
                shown,
                f"{best['nearness']:.2f}{' copy' if best['copy'] else ''}" if best else "",
                _verdict(best) if best else "",
                *("" if one is None else str(results.folder / one) for one in files),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


class Sheet:
    """The sheet of all things in a report: the documents, the set's own drawing where it has one, an adaptation where there
    is one, and the candidates, the best first.

    Args:
        results: with their files.
        model: that drew them.
        own: the set.
    """

    def __init__(self, results: Results, model: Model, own: OwnSet) -> None:
        self._results, self._model, self._own = results, model, own
        self._credits: list[Credit] = []

    def png(self, documents: Sequence[Documents]) -> bytes:
        """The sheet as a PNG file, with its credits.

        Args:
            documents: of each thing in the report.
        """
        entries = list(self._results.entries.values())
        columns: list[tuple[str, list[Cell]]] = []
        for heading, kind in (("the thing", "things"), ("the hand", "hands")):
            for place in range(SHOWN):
                shown = [self._shown(getattr(one, kind), place) for one in documents]
                columns.append((heading, shown))
        for heading, cells in (
            ("the set's own", [self._own_drawing(one["name"]) for one in entries]),
            ("adapted", [self._adapted(one.get("adapted")) for one in entries]),
        ):
            if any(picture is not None for picture, _ in cells):
                columns.append((heading, cells))
        for place in range(max(len(one["candidates"]) for one in entries)):
            drawn = [self._candidate(one["candidates"], place) for one in entries]
            columns.append((f"candidate {place + 1}", drawn))
        rows = list(zip(*(cells for _, cells in columns), strict=True))
        picture = grid(
            [[one for one, _ in row] for row in rows],
            captions=[[text for _, text in row] for row in rows],
            row_labels=[f"{entry['name']}\n{entry['kind']}" for entry in entries],
            column_labels=[heading for heading, _ in columns],
            scale=1,
            label_width=140,
        )
        facts = facts_of_documents((), model=self._model.name)
        return png(picture, facts.after(self._credits))

    def _shown(self, documents: Sequence[Shown], place: int) -> Cell:
        if place >= len(documents):
            return None, ""
        one = documents[place]
        self._credits += [] if one.credit is None else [one.credit]
        codes = next(own.codes for own in one.document if hasattr(own, "codes"))
        drawing = self._model.components.image_tokenizer.svg(codes)
        return _enlarged(one.pixels) if drawing is None else render_svg(drawing, SIDE), one.id

    def _own_drawing(self, name: str) -> Cell:
        """The set's own drawing, unless it has none or its file can't be used."""
        index = self._own.index(name)
        original = None if index is None else self._own.source.original(index)
        if index is None or original is None:
            return None, ""
        try:
            return _rendered(original.content), ""
        except DataError:  # a bundled drawing with more than plain shapes, such as <use>
            return _enlarged(picture_of(self._own.source.document(index))), ""

    def _adapted(self, told: Mapping[str, Any] | None) -> Cell:
        if told is None:
            return None, ""
        self._credits += [credit_in(one) for one in told["credits"]]
        lines = [f"from {told['document']}, nearness {told['nearness']:.2f}"]
        if "verdict" in told:  # that it is near its document is no fault
            own = told["verdict"]
            lines.append(_verdict_of(own | {"copy": False, "usable": own["thing"] and own["hand"]}))
        return self._file(told["file"]), "\n".join(lines)

    def _candidate(self, candidates: Sequence[Entry], place: int) -> Cell:
        if place >= len(candidates):
            return None, ""
        one = candidates[place]
        near = f"nearest {one['nearness']:.2f}{', copy' if one['copy'] else ''}"
        return self._file(one["file"]), "\n".join(filter(None, (near, _verdict(one))))

    def _file(self, name: str) -> PixelArray:
        return _rendered((self._results.folder / name).read_bytes())


def _rendered(content: bytes) -> PixelArray:
    return render_svg(parsed(content, one_paint=False).svg, SIDE)


def _enlarged(pixels: PixelArray) -> PixelArray:
    """A picture as large as those of the sheet."""
    picture = Picture.fromarray(pixels).resize((SIDE, SIDE), Picture.Resampling.BICUBIC)
    return np.asarray(picture)


def _verdict(candidate: Mapping[str, Any]) -> str:
    """What the judge says of a candidate in a few words; "" if it was not asked."""
    verdict = candidate.get("verdict")
    return "" if verdict is None else _verdict_of(verdict)


def _verdict_of(verdict: Mapping[str, Any]) -> str:
    if verdict["usable"]:
        return "usable"
    faults = [
        *([] if verdict["thing"] else [f"reads as {verdict['read_as']}"]),
        *([] if verdict["hand"] else ["another hand"]),
        *(["copy"] if verdict["copy"] else []),
    ]
    return ", ".join(faults)
