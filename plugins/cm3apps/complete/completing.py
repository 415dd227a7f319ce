"""One call of `cm3 complete`: what is kept, found and drawn; its files, table and sheet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as Picture

from cm3apps.cli._picture_files import file_names
from cm3apps.complete.drawing import DRAWN, Completer, Documents, Drawn, Shown
from cm3apps.complete.folder import CANDIDATES, SHEET, Entry, Results, credits_json
from cm3apps.complete.judging import SetJudge, ordered
from cm3apps.complete.judging import told as verdict_told
from cm3core.document import Image
from cm3core.errors import CM3Error, DataError
from cm3plugins.datasets.svg_folder.reading import parsed
from cm3plugins.svg import render_svg
from cm3run.attribution import Credit, original_files, png, svg, together
from cm3run.model.facts import facts_of_documents, facts_of_drawing
from cm3run.model.jobs import results
from cm3run.sheets import grid
from cm3run.words import words_of

if TYPE_CHECKING:
    from cm3apps.complete.sets import OwnSet
    from cm3apps.evaluation.icons.usable import Verdict
    from cm3core.document import PixelArray
    from cm3run.generation.engine import Progress
    from cm3run.model.model import Model

#: Pixels per side of a picture on the sheet, and documents of each kind that it shows.
SIDE, SHOWN = 128, 2
_MOST_WORDS = 12


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the results depend on, besides the model and the set.

    Args:
        number: of candidates for each thing.
        seed: as in `cm3 generate`.
        draw: also what the set has.
        clean: files without metadata.
        judge: sort and report candidates by the judge's verdicts.
        sampler, sampling: name of a sampler, and its changed keys.
    """

    number: int = 4
    seed: int = 0
    draw: bool = False
    clean: bool = False
    judge: bool = False
    sampler: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)


def name_of(text: str) -> str:
    """A thing as captions name it.

    Raises:
        CM3Error: it has no words, too many, or a comma.

    >>> name_of("Bell-off ")
    'bell off'
    """
    words = words_of(text)
    if not words or len(words) > _MOST_WORDS:
        cause = f"has {len(words)} words" if words else "has no words"
        raise CM3Error(
            f"NAME {text[:60]!r}", cause, "name a thing in a few words, such as 'bell off'"
        )
    if "," in text:
        cause = "has a comma, behind which captions name the style"
        raise CM3Error(
            f"NAME {text[:60]!r}", cause, "name the thing alone; --style names the style"
        )
    return " ".join(words)


class Completing:
    """Completes a set into a folder.

    Args:
        model: writes drawings, or pictures that are traced.
        own: the set.
        folder: held by the caller.
        settings: of the call.
        memory: the model whose memory has the things; None: the same.
    """

    def __init__(
        self,
        model: Model,
        own: OwnSet,
        folder: Path,
        settings: Settings,
        memory: Model | None = None,
    ) -> None:
        self.own, self.settings = own, settings
        sampling = dict(settings.sampling)
        self.completer = Completer(model, own, settings.sampler, sampling, memory)
        self.model = self.completer.model
        self.results = Results(folder, self._facts())
        self.documents = cache(self._documents)
        self._judge = SetJudge(own) if settings.judge else None

    def _facts(self) -> dict[str, Any]:
        """All that the results depend on, as the report has it."""
        model, own = self.model, self.own
        given = asdict(self.settings)
        del given["draw"]  # only decides which things are drawn
        return given | {
            "model": model.name,
            "step": model.step,
            "recipe_hash": model.recipe_hash,
            "set": own.place,
            "set_fingerprint": own.source.fingerprint,
            "num_drawings": len(own.source),
            "skipped": [{"file": one.place, "cause": one.cause} for one in own.skipped],
            "style": own.style,
            "title": own.title,
            "hand": asdict(own.hand) | {"kinds": sorted(own.hand.kinds)},
        }

    def _documents(self, name: str) -> Documents:
        return self.completer.documents(name, self.settings.number)

    def run(self, names: Sequence[str], progress: Progress | None = None) -> Iterator[Entry]:
        """Complete the set by these things; yield each thing's entry of the report when its files are written. Things
        of an earlier call come first, then those that the set has."""
        stems = self._stems(names)
        drawn = []
        for name in names:
            known = self.results.entries.get(name)
            found = self.own.has(name) and not self.settings.draw
            if known is not None and (known["kind"] == "found") == found:
                yield known
            elif found:
                yield self._found(name, stems[name])
            else:
                drawn.append(name)
        number, seed = self.settings.number, self.settings.seed
        jobs = (self.completer.job(self.documents(name), number, seed) for name in drawn)
        most = self.model.components.serializer.num_codes
        total = len(drawn) * DRAWN * number * most
        pictures = results(self.model.engine, jobs, progress=progress, total=total)
        for name, candidates in zip(drawn, pictures, strict=True):
            yield self._drawn(self.documents(name), candidates, stems[name])

    def _stems(self, names: Sequence[str]) -> dict[str, str]:
        """A file name for each thing, which no file of anybody else has."""
        every = list(dict.fromkeys([*self.results.entries, *names]))
        stems = dict(zip(every, file_names(every), strict=True))
        for name in names:
            self.results.file_name(stems[name])
        return stems

    def _found(self, name: str, stem: str) -> Entry:
        """The entry of a thing that the set has. Of a set of the memory, its original is written with its licence."""
        index = self.own.index(name)
        entry: Entry = {
            "name": name,
            "kind": "found",
            "thing": name,
            "candidates": [],
            "credits": [],
        }
        files: dict[str, str] = {}
        if index is not None:
            source = self.own.source
            entry["document"] = source.id(index)
            original = source.original(index)
            if self.own.folder is None and original is not None:
                credit = Credit(source.id(index), source.provenance(index))
                [(suffix, content)] = original_files(original, credit)
                files[f"{stem}{suffix}"] = content.decode()
                entry |= {"file": f"{stem}{suffix}", "credits": credits_json([credit])}
        self.results.add(entry, files)
        return entry

    def _drawn(self, documents: Documents, candidates: Sequence[Drawn], stem: str) -> Entry:
        """Write the candidates, the best of them once more as the thing's file; return the entry."""
        files: dict[str, str] = {}
        judged: list[tuple[Drawn, Verdict | None]] = [(one, None) for one in candidates]
        if self._judge is not None:
            judged = [*ordered(candidates, self._judge.verdicts(documents, candidates))]
        told: list[dict[str, Any]] = []
        for place, (one, verdict) in enumerate(judged, 1):
            name = f"{CANDIDATES}/{stem}-{place}.svg"
            files[name] = self._file(documents.name, one)
            told.append(
                {
                    "file": name,
                    "seed": one.seed,
                    "documents": [{"id": own.id, "text": own.text} for own in one.documents],
                    "paint": round(one.paint, 3),
                    "nearness": round(one.nearness, 3),
                    "copy": one.is_copy,
                    "nats": round(one.nats, 4),
                    "likeness": None if one.likeness is None else round(one.likeness, 4),
                    **({} if verdict is None else {"verdict": verdict_told(verdict)}),
                }
            )
        files[f"{stem}.svg"] = files[told[0]["file"]]
        entry: Entry = {
            "name": documents.name,
            "kind": documents.kind,
            "thing": documents.things[0].thing if documents.things else "",
            "file": f"{stem}.svg",
            "candidates": told,
            "credits": credits_json(list(together(one.credits for one in candidates))),
        }
        self.results.add(entry, files)
        return entry

    def _file(self, name: str, one: Drawn) -> str:
        """A candidate as a file of the set, with its metadata unless it is to be clean."""
        if self.settings.clean:
            return one.svg
        facts = facts_of_drawing(
            self.model,
            self.own.caption(name),
            one.seed,
            one.credits,
            sampler=self.settings.sampler,
            sampling=self.settings.sampling,
        )
        return svg(one.svg, facts)

    # ---- for the reader

    def table(self, names: Sequence[str]) -> list[str]:
        """Lines of a table: of each thing its answer, the documents and the judgement of its best candidate."""
        rows = [("thing", "answer", "documents", "nearest", "verdict", "file")]
        for entry in (self.results.entries[name] for name in names):
            best = next(iter(entry["candidates"]), None)
            shown = (
                " + ".join(one["id"] for one in best["documents"])
                if best
                else entry.get("document", "")
            )
            file = entry.get("file")
            rows.append(
                (
                    entry["name"],
                    entry["kind"],
                    shown,
                    f"{best['nearness']:.2f}{' copy' if best['copy'] else ''}" if best else "",
                    _verdict(best) if best else "",
                    "" if file is None else str(self.results.folder / file),
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]

    def sheet(self) -> Path:
        """Write the sheet of all things in the report: the documents, the set's own drawing where it has one, and the
        candidates, the best first."""
        entries = list(self.results.entries.values())
        own = [self._own(entry["name"]) for entry in entries]
        with_own = any(one is not None for one in own)
        rows: list[list[PixelArray | None]] = []
        captions: list[list[str]] = []
        credits: list[Credit] = []
        for entry, drawing in zip(entries, own, strict=True):
            found = self.documents(entry["name"])
            pixels: list[PixelArray | None] = []
            texts: list[str] = []
            for shown in (found.things[:SHOWN], found.hands[:SHOWN]):
                pixels += [self._document(one) for one in shown] + [None] * (SHOWN - len(shown))
                texts += [one.id for one in shown] + [""] * (SHOWN - len(shown))
                credits += [one.credit for one in shown if one.credit is not None]
            if with_own:
                pixels.append(drawing)
                texts.append("")
            for one in entry["candidates"]:
                pixels.append(self._picture((self.results.folder / one["file"]).read_bytes()))
                texts.append(_judged(one))
            rows.append(pixels)
            captions.append(texts)
        headings = ["the thing"] * SHOWN + ["the hand"] * SHOWN + ["the set's own"] * with_own
        widest = max(map(len, rows))
        headings += [f"candidate {place}" for place in range(1, widest - len(headings) + 1)]
        picture = grid(
            [row + [None] * (widest - len(row)) for row in rows],
            captions=[row + [""] * (widest - len(row)) for row in captions],
            row_labels=[f"{entry['name']}\n{entry['kind']}" for entry in entries],
            column_labels=headings,
            scale=1,
            label_width=140,
        )
        facts = facts_of_documents((), model=self.model.name)
        return self.results.picture(SHEET, png(picture, facts.after(credits)))

    def _document(self, shown: Shown) -> PixelArray:
        drawing = self.model.components.image_tokenizer.svg(
            next(one.codes for one in shown.document if hasattr(one, "codes"))
        )
        return _enlarged(shown.pixels) if drawing is None else render_svg(drawing, SIDE)

    def _own(self, name: str) -> PixelArray | None:
        """The set's own drawing; None: it has none, or its file can't be used."""
        index = self.own.index(name)
        original = None if index is None else self.own.source.original(index)
        if index is None or original is None:
            return None
        try:
            return self._picture(original.content)
        except DataError:  # a bundled drawing with more than plain shapes, such as <use>
            document = self.own.source.document(index)
            return _enlarged(next(one.load() for one in document if isinstance(one, Image)))

    def _picture(self, content: bytes) -> PixelArray:
        return render_svg(parsed(content, one_paint=False).svg, SIDE)


def _enlarged(pixels: PixelArray) -> PixelArray:
    """A picture as large as those of the sheet."""
    picture = Picture.fromarray(pixels).resize((SIDE, SIDE), Picture.Resampling.BICUBIC)
    return np.asarray(picture)


def _judged(candidate: Mapping[str, Any]) -> str:
    """A candidate's caption on the sheet."""
    copy = ", copy" if candidate["copy"] else ""
    return "\n".join(
        filter(None, (f"nearest {candidate['nearness']:.2f}{copy}", _verdict(candidate)))
    )


def _verdict(candidate: Mapping[str, Any]) -> str:
    """What the judge says of a candidate in a few words; "" if it was not asked."""
    verdict = candidate.get("verdict")
    if verdict is None:
        return ""
    if verdict["usable"]:
        return "usable"
    faults = [
        *([] if verdict["thing"] else [f"reads as {verdict['read_as']}"]),
        *([] if verdict["hand"] else ["another hand"]),
        *(["copy"] if verdict["copy"] else []),
    ]
    return ", ".join(faults)
