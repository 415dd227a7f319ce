"""Jobs that generate pictures: from a prompt, by editing a picture, or by inpainting part of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from cm3core.arguments import Count, Name, checked
from cm3core.document import (
    BoolArray,
    Codes,
    Document,
    PixelArray,
    Segment,
    Text,
    text_of,
)
from cm3core.errors import GenerationError
from cm3core.plugins.registry import marked
from cm3run.generation.engine import Completion, Event, Request, candidate_seed, turn_of
from cm3run.model.candidates import Decode, GenerationOptions, Make, Plan, alternative_of, upscaler
from cm3run.model.conditions import GivenCondition, with_condition
from cm3run.model.crop import Box, CentreCrop, region
from cm3run.model.jobs import Done, Job
from cm3run.model.loaded import (
    Loaded,
    Picture,
    check_alone,
    check_kept,
    check_prompt,
    check_text,
    codes_of,
    pixels_of,
    read_drawing,
    seen,
    text_hole,
)
from cm3run.model.prepending import Alternatives, Augmented, originals
from cm3run.model.results import (
    Choice,
    GeneratedImage,
    ImageReady,
    InfilledImage,
    InfillReady,
    RetrievedDocument,
    Scored,
)
from cm3run.model.tasks import (
    Instruction,
    edit_task,
    encoded_record,
    named_task,
    pictures_given,
    read_instruction,
    record_as_tuned,
    record_of,
    serves,
    task_for,
)
from cm3run.prompting import Answer

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import Original
    from cm3core.interfaces.task import Method, Record
    from cm3core.interfaces.upscaler import Upscaler
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe


class Drawing(Loaded):
    """A model that generates pictures: the jobs of `Model.generate`, `edit` and `infill`."""

    @checked(GenerationError)
    def image_jobs(
        self,
        prompt: str | Sequence[str],
        num_images: Count | None = None,
        *,
        seed: int = 0,
        truncate: bool = False,
        upscale: bool | Name = False,
        task: Name | None = None,
        force: bool = False,
        condition: GivenCondition | None = None,
        draw: bool = False,
        **options: Any,
    ) -> tuple[Iterator[Job[GeneratedImage]], int]:
        """The jobs of `generate`, one per picture, and the number of tokens they generate."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        number = _num_images(self, num_images)
        for text in prompts:
            check_text(self, "prompt", text, truncate=truncate)
        method: Method = "generate" if condition is None else "structure"
        chosen = task_for(self, method, task, force=force)
        shared: Record = {}
        if condition is not None:
            shared = with_condition(self, chosen, condition, force=force)
            sampler = sampler_for("structures", self.recipe, self.components.registry)
            options = {"num_retrieved": 0, "sampler": sampler, **options}
        given = GenerationOptions.of({**options, "seed": seed})
        plan = Plan.of(self, given, truncate=truncate)
        documents = [chosen.prompt({**shared, **record_of(chosen, text, None)}) for text in prompts]
        if condition is not None:
            for document in documents:
                check_prompt(self, f"task {task or method}", document, truncate=truncate)
        requests = [Request(document, seed=seed, truncate=truncate) for document in documents]
        retriever = self.recipe.retriever
        retrieved = plan.retrieved(
            requests,
            [(Text(text),) for text in prompts],
            num_alternatives=1 if retriever is None else retriever.num_alternatives,
        )
        enlarger = upscaler(self, upscale)
        answered = [
            _Answered(plan, text, seed, own, enlarger)
            for text, own in zip(prompts, retrieved, strict=True)
        ]
        for one in answered:
            if condition is None and not force:
                _check_known(one.answer, one.prompt)
            if condition is None and not draw:
                one.find(number, only=num_images is None)
            elif condition is not None:
                one.answer = None
            one.prepend()
        drawn = sum(max(0, number - len(one.found)) for one in answered if not one.is_whole)
        jobs = (job for one in answered for job in one.jobs(number))
        return jobs, drawn * plan.num_candidates * plan.num_codes

    @checked(GenerationError)
    def edit_jobs(
        self,
        picture: Picture,
        instruction: str,
        num_images: Count | None = None,
        *,
        seed: int = 0,
        truncate: bool = False,
        upscale: bool | Name = False,
        task: Name | None = None,
        force: bool = False,
        task_text: str | None = None,
        sampler: Name | None = None,
        **options: Any,
    ) -> tuple[Iterator[Job[GeneratedImage]], int]:
        """The jobs of `edit`, one per picture, and the number of tokens they generate."""
        if task_text is None:
            chosen = task_for(self, "edit", task, force=force)
        else:
            check_alone("task_text", task)
            check_text(self, "task_text", task_text, truncate=truncate)
            chosen = edit_task(task_text)
        check_text(self, "instruction", instruction, truncate=truncate)
        read = Instruction(instruction)
        if task_text is None:
            read = read_instruction(self, "edit", task, instruction, force=force)
        number = _num_images(self, num_images)
        if sampler is None:
            sampler = sampler_for("edits", self.recipe, self.components.registry)
        given = GenerationOptions.of(
            {"num_retrieved": 0, **options, "seed": seed, "sampler": sampler}
        )
        if (
            given.num_candidates is None
        ):  # an instruction hardly describes the picture, so scores would mislead
            given = replace(given, num_candidates=1)
        plan = Plan.of(self, given, truncate=truncate)
        source = seen(self, picture)
        document = chosen.prompt(record_of(chosen, read.text, codes_of(self, picture, source)))
        check_prompt(self, f"task {task or 'edit'}", document, truncate=truncate)
        [alternatives] = plan.augmented(
            [Request(document, seed=seed, truncate=truncate)], [(Text(read.text),)]
        )
        enlarger = upscaler(self, upscale)
        jobs = (
            plan.job(
                alternatives,
                _image_maker(
                    plan, instruction, alternatives, enlarger, number=place, note=read.note
                ),
                place=place,
                given=[source],
            )
            for place in range(number)
        )
        return jobs, number * plan.num_candidates * plan.num_codes

    @checked(GenerationError)
    def task_jobs(
        self,
        task: Name,
        record: Record,
        prompt: str,
        num_images: Count | None = None,
        *,
        seed: int = 0,
        truncate: bool = False,
        upscale: bool | Name = False,
        force: bool = False,
        **options: Any,
    ) -> tuple[Iterator[Job[GeneratedImage]], int]:
        """The jobs of a task with any fields whose response is one picture, one job per picture, and the
        number of tokens they generate.

        Args:
            task, record, force: see `Model.do`.
            prompt: the results' `GeneratedImage.prompt`, and the query for retrieval.
            num_images, options: see `Model.generate`. Documents are retrieved only if `num_retrieved` is
                given.

        Raises:
            GenerationError: the model was not tuned for the task, its response is not one picture, or a
                text is too long.
            DataError: a field is missing, empty or of the wrong type.
        """
        chosen = named_task(self, task, force=force)
        if [chosen.fields[name] for name in chosen.responses] != ["image"]:
            raise GenerationError(
                f"task {task!r}",
                f"returns {', '.join(chosen.responses)}, not one picture",
                "use Model.do",
            )
        number = _num_images(self, num_images)
        given = {"num_retrieved": 0, **options, "seed": seed}
        if given.get("sampler") is None and (role := _ROLES.get(serves(self, task))) is not None:
            given["sampler"] = sampler_for(role, self.recipe, self.components.registry)
        plan = Plan.of(self, GenerationOptions.of(given), truncate=truncate)
        record, note = record_as_tuned(self, task, chosen, record, force=force)
        document = chosen.prompt(encoded_record(self, chosen, record), place=f"task {task!r}")
        check_prompt(self, f"task {task}", document, truncate=truncate)
        [alternatives] = plan.augmented(
            [Request(document, seed=seed, truncate=truncate)], [(Text(prompt),)]
        )
        enlarger, pictures = upscaler(self, upscale), pictures_given(self, task, chosen, record)
        jobs = (
            plan.job(
                alternatives,
                _image_maker(plan, prompt, alternatives, enlarger, number=place, note=note),
                place=place,
                given=pictures,
            )
            for place in range(number)
        )
        return jobs, number * plan.num_candidates * plan.num_codes

    @checked(GenerationError)
    def infill_job(
        self,
        picture: Picture,
        box: Box | Sequence[Box] | None = None,
        text: str | None = None,
        *,
        mask: BoolArray | str | Path | None = None,
        seed: int = 0,
        truncate: bool = False,
        **options: Any,
    ) -> tuple[Job[InfilledImage], int]:
        """The job of `infill`, and the maximum number of tokens it generates."""
        whole = pixels_of(picture)
        crop = CentreCrop(whole.shape[:2], self.image_size)
        form = self.components.serializer.form
        if form.is_sequence:
            raise GenerationError(
                "box",
                f"marks places of a picture, and pictures of this model are {form.name}, without places",
                "draw one of its paths again, if they have any (Model.redraw; cm3 infill --path)",
            )
        region_HW, missing = region(crop, (form.rows, form.columns), box, mask)
        missing = np.repeat(missing, form.depth)
        codes = replace(self.encode([seen(self, whole)])[0], missing=missing)
        rows, columns = np.flatnonzero(region_HW.any(1)), np.flatnonzero(region_HW.any(0))
        around = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        return _filling_job(
            self,
            (codes, text),
            lambda decoded: (crop.pasted(whole, decoded, region_HW), around),
            GenerationOptions.of({**options, "seed": seed}),
            truncate=truncate,
            given=[whole],
        )

    @checked(GenerationError)
    def redraw_job(
        self,
        drawing: str | Path,
        part: Count,
        text: str | None = None,
        *,
        seed: int = 0,
        truncate: bool = False,
        **options: Any,
    ) -> tuple[Job[InfilledImage], int]:
        """The job of `redraw`, and the maximum number of tokens it generates."""
        return _filling_job(
            self,
            (_without_part(self, drawing, part), text),
            lambda decoded: (decoded, (0, 0, decoded.shape[1], decoded.shape[0])),
            GenerationOptions.of({**options, "seed": seed}),
            truncate=truncate,
        )


def _filling_job(
    loaded: Loaded,
    query: tuple[Codes, str | None],
    shows: Callable[[PixelArray], tuple[PixelArray, Box]],
    options: GenerationOptions,
    *,
    truncate: bool,
    given: Sequence[PixelArray] = (),
) -> tuple[Job[InfilledImage], int]:
    """The job that fills what is missing of a picture, and the maximum number of tokens it generates.

    Args:
        loaded: the model.
        query: the picture, and its text; None: the model writes one first.
        shows: from the decoded picture to the picture as it is returned, and the box that was filled.
        options: of the call.
        truncate: whether to cut a text that is too long.
        given: pictures whose colours the filled one may use.
    """
    codes, text = query
    if text is not None:
        check_text(loaded, "text", text, truncate=truncate)
    hole = text_hole(loaded.recipe, None)
    first: Segment = hole if text is None else Text(text)
    plan = Plan.of(loaded, options, truncate=truncate)
    [alternatives] = plan.augmented(
        [Request((first, codes), seed=options.seed, truncate=truncate)],
        [() if text is None else (Text(text),)],
    )
    [(_, retrieved, _)] = alternatives

    def make(
        completion: Completion, seed: int, choice: Choice | None, decode: Decode
    ) -> InfilledImage:
        filled = _picture_of(completion.document)
        decoded = decode(filled)
        pixels, box = shows(decoded)
        return InfilledImage(
            pixels,
            decoded,
            filled,
            box,
            text_of(completion.document),
            seed,
            retrieved,
            completion.log_probability,
            choice,
        )

    assert codes.missing is not None
    num_text_tokens = 0 if text is not None else hole.max_tokens or 0
    total = plan.num_candidates * (int(codes.missing.sum()) + num_text_tokens)
    return plan.job(alternatives, make, given=given), total


def _without_part(loaded: Loaded, drawing: str | Path, part: int) -> Codes:
    """The codes of an SVG file, those of a part missing.

    Raises:
        DataError: the file can't be read, or its drawing can't be said by codes.
        GenerationError: the model's pictures, or this one, have no such part.
    """
    tokenizer, place = loaded.components.image_tokenizer, str(drawing)
    if not tokenizer.reads_drawings:
        raise GenerationError(
            place,
            "is a drawing, but the model's image tokenizer reads pixels only",
            "give a model of SVG drawings (recipe icons-svg), or inpaint a box of a picture",
        )
    codes_c = read_drawing(tokenizer, Path(drawing))
    parts, form = tokenizer.around_parts(codes_c), tokenizer.form
    if not 1 <= part <= len(parts):
        raise GenerationError(
            f"path {part}",
            f"is not in {place}, which has {len(parts)} paths",
            "count paths and shapes from 1, in the order of the file; each M of a path begins one",
        )
    before, behind = parts[part - 1]
    missing = np.zeros(form.num_codes, np.bool_)
    missing[len(before) : len(missing) - len(behind)] = True
    if not missing.any():
        raise GenerationError(
            f"path {part}",
            f"of {place} leaves no room: a drawing has at most {form.num_codes} codes",
            "remove a path from the file first",
        )
    codes_c = np.concatenate([before, np.zeros(missing.sum(), np.int32), behind])
    return Codes(codes_c.astype(np.int32), tokenizer.grid, missing, any_length=True)


class _Answered:
    """The pictures of a prompt: those that the memory has, then drawn ones.

    Args:
        plan: of the call.
        prompt: the prompt.
        seed: of its request.
        retrieved: its request with documents, and what the memory has for it.
        enlarger: enlarges the pictures.
    """

    def __init__(
        self,
        plan: Plan,
        prompt: str,
        seed: int,
        retrieved: Alternatives,
        enlarger: Upscaler | None,
    ) -> None:
        self.plan, self.prompt, self.seed, self.enlarger = plan, prompt, seed, enlarger
        self.retrieved, self.answer = retrieved, retrieved.answer
        self.found: list[tuple[RetrievedDocument, Original]] = []
        #: Whether nothing is drawn besides what was found.
        self.is_whole = False

    def find(self, number: int, *, only: bool) -> None:
        """Look up at most `number` originals, from the one on that the seed names; `only`: draw none, if there are
        some."""
        if self.answer is not None and self.answer.originals:
            first = turn_of(self.seed)
            found = originals(self.plan.loaded, self.answer.originals, first + number)
            self.found = found[first:]
            self.is_whole = only and bool(self.found)

    def prepend(self) -> None:
        """Prepend documents, unless nothing is drawn."""
        if not self.is_whole:
            _ = self.retrieved.all

    def jobs(self, number: int) -> Iterator[Job[GeneratedImage]]:
        """The jobs of `number` pictures, or of the found ones alone."""
        answer = self.answer
        if answer is not None and answer.kind == "found":
            answer = replace(answer, kind="restyled")
        for place in range(len(self.found) if self.is_whole else number):
            if place < len(self.found):
                yield self._of_original(place)
                continue
            alternatives = self.retrieved.all
            make = _image_maker(self.plan, self.prompt, alternatives, self.enlarger, answer, place)
            yield self.plan.job(alternatives, make, place=place)

    def _of_original(self, place: int) -> Job[GeneratedImage]:
        """The job of an original: without requests."""
        document, original = self.found[place]
        seed = candidate_seed(
            self.seed, place * self.plan.num_candidates, turn_of(self.seed) + place
        )

        def finish(_: Sequence[Completion]) -> GeneratedImage:
            assert document.pixels is not None
            return GeneratedImage(
                document.pixels,
                self.prompt,
                seed,
                (document,),
                None,
                0.0,
                upscaled=None if self.enlarger is None else self.enlarger.upscale(document.pixels),
                number=place,
                answer=self.answer,
                original=original,
            )

        return Job((), finish, reserved=self.plan.num_candidates)


#: The purpose of a sampler, named like the flag of `SamplerConfig`.
Role: TypeAlias = Literal["edits", "structures"]
_ROLES: Mapping[str, Role] = {"edit": "edits", "structure": "structures"}


def sampler_for(role: Role, recipe: Recipe, registry: Registry) -> str | None:
    """Name of the default sampler for edits or structures.

    The first by name that is made for it (`SamplerConfig.edits`, `.structures`). None: use the recipe's sampler,
    because it is made for one of the two (both guide by a picture), or because no sampler is.
    """
    if recipe.sampler is not None and any(
        getattr(recipe.sampler, mark) for mark in _ROLES.values()
    ):
        return None
    return next(iter(marked(registry, "sampler", role)), None)


def _check_known(answer: Answer | None, prompt: str) -> None:
    """Raise `GenerationError` for a prompt of which neither the whole nor a word is in the index: the picture would be an
    arbitrary one."""
    if answer is not None and answer.is_arbitrary:
        raise GenerationError(
            f"prompt {prompt!r}",
            f"no word of it is in the index: {answer.nearest_in_words}",
            "use another word for it",
        )


def box_below(loaded: Loaded, whole: Picture, keep: int) -> Box:
    """The box of what the model sees of a picture below its first `keep` pixel rows."""
    x0, y0, x1, y1 = CentreCrop(pixels_of(whole).shape[:2], loaded.image_size).pixels
    if not 0 <= keep < y1 - y0:
        raise GenerationError(
            "keep",
            f"is {keep}, the model sees {y1 - y0} rows of pixels",
            f"use 0 to {y1 - y0 - 1}",
        )
    return x0, y0 + keep, x1, y1


def image_events(events: Iterable[Event]) -> Iterator[Event]:
    """Events of picture jobs, with scores and the picture in place of each `Done`."""
    for event in events:
        if isinstance(event, Done):
            yield from result_events(event.request, event.result)
        else:
            yield event


def result_events(first: int, image: GeneratedImage | InfilledImage) -> Iterator[Event]:
    """Events of a finished picture; `first` is its first candidate's number."""
    choice = image.choice
    if choice is not None:
        for place, score in enumerate(choice.scores):
            yield Scored(first + place, score, choice.measure)
    yield (
        ImageReady(first, image) if isinstance(image, GeneratedImage) else InfillReady(first, image)
    )


def _num_images(loaded: Loaded, asked: int | None) -> int:
    return loaded.recipe.generate.num_images if asked is None else asked


def check_num_images(loaded: Loaded, num_prompts: int, asked: int | None) -> None:
    """Raise `GenerationError` for more pictures than a call that returns all of them may keep."""
    number = num_prompts * _num_images(loaded, asked)
    check_kept(loaded, number, "num_images", "use fewer, or stream, which keeps one at a time")


def _image_maker(
    plan: Plan,
    prompt: str,
    alternatives: Sequence[Augmented],
    enlarger: Upscaler | None,
    answer: Answer | None = None,
    number: int = 0,
    note: str = "",
) -> Make[GeneratedImage]:
    """A function that makes a picture from its chosen completion."""

    def make(
        completion: Completion, seed: int, choice: Choice | None, decode: Decode
    ) -> GeneratedImage:
        codes = _picture_of(completion.document)
        pixels = decode(codes)
        return GeneratedImage(
            pixels,
            prompt,
            seed,
            alternative_of(alternatives, seed).retrieved,
            codes,
            completion.log_probability,
            choice,
            None if enlarger is None else enlarger.upscale(pixels),
            plan.sampler_name,
            number=number,
            answer=answer,
            note=note,
        )

    return make


def _picture_of(document: Document) -> Codes:
    """The last picture of a filled document."""
    return next(segment for segment in reversed(document) if isinstance(segment, Codes))
