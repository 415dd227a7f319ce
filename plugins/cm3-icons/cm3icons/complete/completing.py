"""One call of `cm3 complete`: what is kept, found and drawn; its files, table and sheet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3core.errors import CM3Error
from cm3icons.complete.documents import Documents
from cm3icons.complete.drawing import DRAWN, Completer, Drawn
from cm3icons.complete.folder import ADAPTED, CANDIDATES, SHEET, Entry, Results, credits_json
from cm3icons.complete.judging import SetJudge, ordered
from cm3icons.complete.judging import told as verdict_told
from cm3icons.complete.telling import Sheet, table_of
from cm3run.attribution import Credit, original_files, svg, together
from cm3run.model.facts import facts_of_adaptation, facts_of_drawing
from cm3run.model.jobs import results
from cm3run.picture_files import file_names
from cm3run.words import words_of

if TYPE_CHECKING:
    from cm3icons.complete.sets import OwnSet
    from cm3icons.evaluation.usable import Verdict
    from cm3run.generation.engine import Progress
    from cm3run.model.model import Model

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
        kept = {name for name in names if self._is_kept(name)}
        self.results.refuse_foreign([stems[name] for name in names if name not in kept])
        drawn = []
        for name in names:
            if name in kept:
                yield self.results.entries[name]
            elif self._is_found(name):
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

    def _is_found(self, name: str) -> bool:
        """Whether the set's own drawing is the answer."""
        return self.own.has(name) and not self.settings.draw

    def _is_kept(self, name: str) -> bool:
        """Whether an earlier call has given this answer already."""
        known = self.results.entries.get(name)
        return known is not None and (known["kind"] == "found") == self._is_found(name)

    def _stems(self, names: Sequence[str]) -> dict[str, str]:
        """A file name for each thing."""
        every = list(dict.fromkeys([*self.results.entries, *names]))
        return dict(zip(every, file_names(every), strict=True))

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
            judged = [
                *ordered(
                    candidates, self._judge.verdicts(documents, [one.pixels for one in candidates])
                )
            ]
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
        adapted = self._adapted(documents, stem, files)
        entry: Entry = {
            "name": documents.name,
            "kind": documents.kind,
            "thing": documents.things[0].thing if documents.things else "",
            "file": f"{stem}.svg",
            "candidates": told,
            "adapted": adapted,
            "credits": credits_json(list(together(one.credits for one in candidates))),
        }
        if documents.remark:
            entry["remark"] = documents.remark
        if documents.without:
            entry["examples"] = list(dict.fromkeys(one.thing for one in documents.hands))
        self.results.add(entry, files)
        return entry

    def _adapted(
        self, documents: Documents, stem: str, files: dict[str, str]
    ) -> dict[str, Any] | None:
        """What the report says of a version of the thing in the set's form; adds its file. None: there is none."""
        made = self.completer.adaptation(documents)
        if made is None:
            return None
        credits = [
            replace(one, nearness=made.nearness)
            for one in (made.document.credit,)
            if one is not None
        ]
        name = f"{ADAPTED}/{stem}.svg"
        files[name] = made.svg
        if credits and not self.settings.clean:
            files[name] = svg(made.svg, facts_of_adaptation(documents.name, credits[0]))
        told: dict[str, Any] = {"file": name, "document": made.document.id}
        told["nearness"] = round(made.nearness, 3)
        if self._judge is not None:
            [verdict] = self._judge.verdicts(documents, [made.pixels])
            told["verdict"] = verdict_told(verdict)
        return told | {"credits": credits_json(credits)}

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
        """Lines of a table of these things."""
        return table_of(self.results, names)

    def sheet(self) -> Path:
        """Write the sheet of all things in the report; return its path."""
        documents = [self.documents(name) for name in self.results.entries]
        sheet = Sheet(self.results, self.model, self.own)
        return self.results.picture(SHEET, sheet.png(documents))
