"""The work of the tools, on one model that is opened at the first call. Knows nothing of the protocol."""

from __future__ import annotations

import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli.opening import open_model, settings_of
from cm3apps.cli.provenance import told_of
from cm3core import images
from cm3core.document import Text, text_of
from cm3core.errors import CM3Error, DataError, GenerationError
from cm3plugins.datasets.svg_folder.reading import MOST_BYTES as MOST_SVG_BYTES
from cm3plugins.datasets.svg_folder.reading import parsed
from cm3plugins.svg import render_svg
from cm3run import DEFAULT_MODEL
from cm3run.attribution import Credit, facts_in, original_files, png, svg
from cm3run.model.facts import facts_of, original_of
from cm3run.model.prepending import search
from cm3run.model.tracing import check_tracer
from cm3serve.mcp.given import MOST_NAMES, MOST_PIXELS, AllowedFolders, Pictures, is_svg
from cm3serve.mcp.results import (
    Completed,
    CompletedThing,
    Document,
    Drawn,
    DrawnPicture,
    Found,
    FoundPicture,
    Made,
    Reply,
)

if TYPE_CHECKING:
    from cm3core.document import PixelArray
    from cm3core.interfaces.retriever import Retrieved
    from cm3run.generation.engine import Progress
    from cm3run.model.model import Model
    from cm3run.model.results import GeneratedImage
    from cm3run.prompting import Answer


@dataclass
class Desk:
    """The tools' work. Its methods are called one at a time.

    Args:
        args: the command's options: of the model, and the limit `max_n`.
        folders: in which tools may read and write.
    """

    args: Namespace
    folders: AllowedFolders
    pictures: Pictures = field(default_factory=Pictures)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def model(self) -> Model:
        """The model, opened when it is first needed."""
        model = open_model(self.args)
        print(f"cm3 mcp: opened {model.name}", file=sys.stderr, flush=True)
        model.told = self._note
        return model

    @cached_property
    def completing(self) -> Model:
        """The model that completes sets: the one for it in place of the default model."""
        from cm3icons import COMPLETING_MODEL

        if self.args.model != DEFAULT_MODEL:
            return self.model
        print(f"cm3 mcp: opening {COMPLETING_MODEL}", file=sys.stderr, flush=True)
        return open_model(Namespace(**vars(self.args) | {"model": COMPLETING_MODEL}))

    def _note(self, line: str) -> None:
        print(f"note: {line}", file=sys.stderr, flush=True)
        self.notes.append(line)

    def _options(self, seed: int | None) -> dict[str, Any]:
        """Keyword arguments of the model's methods."""
        sampling = settings_of(self.args.settings, "sampler")
        named = {} if self.args.sampler is None else {"sampler": self.args.sampler}
        return {"seed": self.args.seed if seed is None else seed, **named, **sampling}

    def _check_number(self, num: int) -> None:
        if num > self.args.max_n:
            raise GenerationError(
                "num",
                f"is {num}, at most {self.args.max_n} are possible at once",
                "ask for fewer, or ask the user to start the server with a higher --max-n",
            )

    # ---- search

    def search(self, prompt: str, num: int, with_svg: bool) -> Reply:
        """What the memory has for a prompt.

        Raises:
            GenerationError: the model has no memory, or `num` is above the limit.
        """
        self._check_number(num)
        if not prompt.strip():
            raise GenerationError("prompt", "is empty", "say what the picture shows")
        retriever = self.model.recipe.retriever
        if retriever is None or not retriever.retrieves:
            raise GenerationError(
                f"--model {self.model.name}", "has no memory to search", "use draw instead"
            )
        [found] = search(self.model, [(Text(prompt),)], num, [()])
        pictures = [self._found(one, with_svg) for one in found.results[:num]]
        kind = None if found.answer is None else found.answer.kind
        told = _told(found.answer, bool(pictures))
        return Reply(Found(prompt=prompt, answer=kind, told=told, pictures=pictures))

    def _found(self, found: Retrieved, with_svg: bool) -> FoundPicture:
        retriever = self.model.components.retriever
        assert retriever is not None
        memory = retriever.memory
        credit = Credit(found.id, memory.provenance(found.index))
        original = memory.original(found.index) if with_svg else None
        text = None
        if original is not None and original.suffix == ".svg":
            text = original_files(original, credit)[0][1].decode()
        return FoundPicture(
            document=Document(**credit.as_json()),
            caption=text_of(memory.document(found.index)),
            similarity=round(found.score, 3),
            svg=text,
        )

    # ---- pictures

    def draw(
        self, prompt: str, num: int, seed: int | None, draw: bool, progress: Progress | None = None
    ) -> Reply:
        """Pictures for a prompt, as `cm3 generate` answers it."""
        self._check_number(num)
        self.notes.clear()
        if draw and not self.model.answers:
            self._note("this model draws every picture; draw=true changes nothing")
        self._note_unknown(prompt)
        made = self.model.generate(prompt, num, draw=draw, progress=progress, **self._options(seed))
        return self._drawn(prompt, made)

    def edit(
        self,
        picture: str,
        instruction: str,
        num: int,
        seed: int | None,
        progress: Progress | None = None,
    ) -> Reply:
        """Edits of a picture, as `cm3 edit` makes them."""
        self._check_number(num)
        self.notes.clear()
        content = self.pictures.read(picture)
        self._note_unknown(instruction)
        options = self._options(seed)
        if is_svg(content) and self.model.components.image_tokenizer.reads_drawings:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "picture.svg"
                path.write_bytes(content)
                made = self.model.edit(path, instruction, num, progress=progress, **options)
        else:
            pixels = self._pixels(content)
            made = self.model.edit(pixels, instruction, num, progress=progress, **options)
        if made and made[0].note:
            self._note(made[0].note)
        try:
            given = facts_in(content, "picture").credits
        except DataError:  # not made here
            given = ()
        return self._drawn(instruction, made, given)

    def _pixels(self, content: bytes) -> PixelArray:
        """RGB uint8 [height, width, 3] of a picture; an SVG is taken apart before anything draws it."""
        if not is_svg(content):
            images.check_pixels(content, "picture", MOST_PIXELS)
            return images.open_image(content, "picture")
        if len(content) > MOST_SVG_BYTES:
            cause = f"has {len(content):,} bytes, an SVG may have {MOST_SVG_BYTES:,}"
            raise DataError("picture", cause, "pass it as a PNG")
        try:
            return render_svg(parsed(content, one_paint=False).svg, max(self.model.image_size))
        except CM3Error as error:
            raise DataError("picture", f"the SVG {error.cause}", "pass it as a PNG") from error
        except ValueError as error:
            raise DataError("picture", "is no SVG that can be drawn", "pass it as a PNG") from error

    def _note_unknown(self, text: str) -> None:
        unknown = {} if self.model.knows_meanings else self.model.unknown_words(text)
        if unknown:
            words = ", ".join(map(repr, unknown))
            self._note(
                f"not in the training captions, so the model has not learnt what they mean: {words}"
            )

    def _drawn(
        self, prompt: str, made: Sequence[GeneratedImage], given: Sequence[Credit] = ()
    ) -> Reply:
        sampling = settings_of(self.args.settings, "sampler")
        shown, files = [], []
        for one in made:
            facts = facts_of(self.model, one, sampler=self.args.sampler, sampling=sampling)
            facts = facts.after(given)
            tokenizer = self.model.components.image_tokenizer
            drawing = None if one.drawn is None else tokenizer.svg(one.drawn.codes)
            text = None if drawing is None else svg(drawing, facts)
            if one.original is not None and one.original.suffix == ".svg":
                text = original_of(one)[0][1].decode()
            content = png(one.pixels, facts) if text is None else text.encode()
            if text is None:
                files.append(content)
            near = one.nearest
            shown.append(
                DrawnPicture(
                    id=self.pictures.keep(content),
                    answer=None if one.answer is None else one.answer.kind,
                    told=one.told,
                    seed=one.seed,
                    media_type="image/png" if text is None else "image/svg+xml",
                    svg=text,
                    nearest=None if near is None else near.document.id,
                    nearness=None if near is None else round(near.nearness, 3),
                    is_copy=near is not None and near.is_copy,
                    documents=[Document(**credit.as_json()) for credit in facts.credits],
                )
            )
        return Reply(Drawn(prompt=prompt, pictures=shown, notes=list(self.notes)), files)

    # ---- sets and files

    def complete(
        self,
        names: Sequence[str],
        folder: str,
        out: str | None,
        num: int,
        progress: Progress | None = None,
    ) -> Reply:
        """Draw what a set lacks, as `cm3 complete` does, inside the allowed folders."""
        from cm3icons.complete.completing import Completing, Settings, name_of
        from cm3icons.complete.folder import results_folder
        from cm3icons.complete.sets import open_set

        self._check_number(num)
        self.notes.clear()
        if len(names) > MOST_NAMES:
            cause = f"has {len(names)} names, at most {MOST_NAMES} are possible at once"
            raise GenerationError("names", cause, "call the tool again for the others")
        named = list(dict.fromkeys(map(name_of, names)))
        own, target = self._places(folder, out)
        settings = Settings(
            number=num,
            seed=self.args.seed,
            sampler=self.args.sampler,
            sampling=settings_of(self.args.settings, "sampler"),
        )
        inside = None if own == folder else Path(own)
        with results_folder(target, inside, named):
            model = self.completing  # opened only now that the files can be written
            if not model.components.image_tokenizer.reads_drawings:
                check_tracer("complete_set")
            dataset = model.recipe.dataset
            memory = None if dataset is None else dataset.memory_config()
            chosen = open_set(own, memory, None, None)
            for skipped in chosen.skipped[:5]:
                self._note(f"{skipped.place} is skipped: {skipped.cause}")
            work = Completing(model, chosen, target, settings)
            list(work.run(named, progress))
            sheet = work.sheet().read_bytes()
            things = [_thing(work.results.entries[name], target) for name in named]
        done = Completed(folder=str(target), things=things, notes=list(self.notes))
        return Reply(done, [sheet])

    def _places(self, folder: str, out: str | None) -> tuple[str, Path]:
        """The set to complete, and the folder for the results; both are allowed."""
        from cm3icons.complete.folder import ADAPTED, CANDIDATES
        from cm3icons.data.sets import all_sets

        if folder in all_sets() and not Path(folder).exists():
            own, beside = folder, Path(f"{folder}-new")
        else:
            place = self.folders.path(folder, "folder")
            own, beside = str(place), place.with_name(f"{place.name}-new")
        target = self.folders.path(str(beside) if out is None else out, "out")
        for inside in (CANDIDATES, ADAPTED):
            self.folders.path(str(target / inside), "out")
        return own, target

    def provenance(self, picture: str) -> Reply:
        """How a picture was made, and the licences of what it was drawn from. Needs no model."""
        content = self.pictures.read(picture)
        if not is_svg(content):
            images.check_pixels(content, "picture", MOST_PIXELS)
        facts = facts_in(content, "picture")
        told = told_of(facts)
        answer = told.pop("answer", None)
        nearest, nearness = told.pop("nearest", None), told.pop("nearness", None)
        told.pop("documents", None)
        if isinstance(answer, dict):
            told["answer"] = answer.get("text", "")
        return Reply(
            Made(
                made={key: str(value) for key, value in told.items()},
                nearest=nearest,
                nearness=nearness,
                is_copy=any(one.is_copy for one in facts.credits),
                documents=[Document(**one.as_json()) for one in facts.credits],
            )
        )


def _told(answer: Answer | None, has_pictures: bool) -> str:
    """What the index has, in words."""
    if answer is None:
        return "the nearest pictures of the index" if has_pictures else "the index has nothing"
    remarks = f"; {answer.remarks}" if answer.remarks else ""
    if answer.kind == "found":
        return f"found: the index has {answer.thing!r} as asked for; the tool draw returns it, too{remarks}"
    if answer.kind == "restyled":
        return f"restyled: the index has {answer.thing!r} in other styles or sets only; the tool draw draws it{remarks}"
    draws = (
        "the tool draw refuses such a prompt"
        if answer.is_arbitrary
        else "what the tool draw makes is a guess"
    )
    return f"composed: {draws}{remarks}; the index: {answer.nearest_in_words}"


def _thing(entry: dict[str, Any], folder: Path) -> CompletedThing:
    """An entry of the report, with the file's text."""
    file, best = entry.get("file"), next(iter(entry["candidates"]), None)
    adapted = entry.get("adapted") or {}
    return CompletedThing(
        name=entry["name"],
        kind=entry["kind"],
        file=None if file is None else str(folder / file),
        svg=None if file is None else (folder / file).read_text(encoding="utf-8"),
        nearness=None if best is None else best["nearness"],
        is_copy=best is not None and best["copy"],
        documents=[Document(**one) for one in entry["credits"]],
        adapted=str(folder / adapted["file"]) if adapted else None,
        adapted_from=next((Document(**one) for one in adapted.get("credits", ())), None),
    )
