"""Jobs that write text: captions of pictures, and answers to questions about them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cm3core.arguments import Count, Name, checked
from cm3core.document import Codes, Image, PixelArray, TextHole
from cm3core.errors import GenerationError
from cm3core.interfaces.task import Task
from cm3run.generation.engine import Completion, Request
from cm3run.model.candidates import Decode, GenerationOptions, Plan
from cm3run.model.jobs import Job
from cm3run.model.loaded import (
    Loaded,
    Picture,
    check_alone,
    check_prompt,
    check_text,
    codes_of,
    seen,
    text_hole,
)
from cm3run.model.prepending import Augmented
from cm3run.model.results import Choice, GeneratedText
from cm3run.model.tasks import (
    question_task,
    record_of,
    task_for,
    tuned_with_documents,
    without_wording,
)

#: A picture whose codes keep less than this share of its variance is hardly visible to the model. The bundled
#: tokenizer keeps at most 0.03 of six kinds of noise; of 7,462 held-out icons only two fall below (milky ways, dots on
#: black).
LEAST_KEPT = 0.2
#: A picture with less variance than this (levels of 0..255, squared) looks like a single colour.
PLAIN = 25.0


class Writing(Loaded):
    """A model that writes text: the jobs of `Model.captions` and `ask`."""

    @checked(GenerationError)
    def caption_jobs(
        self,
        pictures: Sequence[Picture],
        *,
        max_tokens: Count | None = None,
        task: Name | None = None,
        force: bool = False,
        **options: Any,
    ) -> tuple[list[Job[GeneratedText]], int]:
        """The jobs of `captions`, one per picture, and the maximum number of tokens they generate."""
        hole = text_hole(self.recipe, max_tokens)
        chosen = task_for(self, "caption", task, force=force)
        return _text_jobs(self, pictures, chosen, None, hole, GenerationOptions.of(options))

    @checked(GenerationError)
    def ask_job(
        self,
        picture: Picture,
        question: str,
        *,
        template: str | None = None,
        max_tokens: Count | None = None,
        task: Name | None = None,
        force: bool = False,
        **options: Any,
    ) -> tuple[Job[GeneratedText], int]:
        """The job of `ask`, and the maximum number of tokens it generates."""
        if template is None:
            chosen = task_for(self, "ask", task, force=force)
            question = without_wording(chosen, question)
        else:
            check_alone("a template", task)
            chosen = question_task(template)
        check_text(self, "question", question, truncate=True)
        hole = text_hole(self.recipe, max_tokens)
        if template is not None or not tuned_with_documents(self, "ask", task):
            options = {"num_retrieved": 0, **options}
        given = GenerationOptions.of(options)
        [job], total = _text_jobs(self, [picture], chosen, question, hole, given)
        return job, total


def _text_jobs(
    loaded: Loaded,
    pictures: Sequence[Picture],
    task: Task,
    question: str | None,
    hole: TextHole,
    options: GenerationOptions,
) -> tuple[list[Job[GeneratedText]], int]:
    """Jobs that produce the text a task asks for about each picture."""
    shown = [seen(loaded, picture) for picture in pictures]
    if options.num_candidates is None:  # the recipe's number applies to pictures
        options = replace(options, num_candidates=1)
    plan = Plan.of(loaded, options)
    codes = [
        codes_of(loaded, picture, pixels) for picture, pixels in zip(pictures, shown, strict=True)
    ]
    for picture, pixels, own in zip(pictures, shown, codes, strict=True):
        if isinstance(picture, (str, Path)):  # the caller of an array knows its content
            _tell_what_is_lost(loaded, picture, pixels, own)
    records = [record_of(task, question, own) for own in codes]
    prompts = [task.prompt(record, max_tokens=hole.max_tokens) for record in records]
    for prompt in prompts[:1]:  # all have the same wording
        check_prompt(
            loaded, "question in its template", prompt, truncate=False, next_step="shorten it"
        )
    requests = [Request(prompt, seed=options.seed) for prompt in prompts]
    augmented = plan.augmented(requests, [(image_of(pixels),) for pixels in shown])
    [response] = task.responses

    def job(record: dict[str, Any], alternatives: Sequence[Augmented]) -> Job[GeneratedText]:
        [(_, retrieved, _)] = alternatives

        def make(
            completion: Completion, seed: int, choice: Choice | None, _: Decode
        ) -> GeneratedText:
            text = str(task.answer(record, completion.document)[response])
            return GeneratedText(text, seed, retrieved, completion.log_probability, choice)

        return plan.job(alternatives, make)

    total = len(requests) * plan.num_candidates * (hole.max_tokens or 0)
    jobs = [job(record, one) for record, one in zip(records, augmented, strict=True)]
    return jobs, total


def _tell_what_is_lost(
    loaded: Loaded, picture: str | Path, pixels: PixelArray, codes: Codes
) -> None:
    """Warn if a picture's codes, which are all the model sees, lose nearly everything, as with noise."""
    [through] = loaded.decode([codes])
    true = pixels.astype(np.float64)
    variance = true.var(axis=(0, 1)).mean()
    if variance < PLAIN:
        return
    kept = 1 - ((through - true) ** 2).mean() / variance
    if kept < LEAST_KEPT:
        loaded.told(
            f"{picture}: the image tokenizer cannot represent it: its {codes.codes.size:,} codes keep "
            f"{max(kept, 0.0):.0%} of the picture's variance, so the text may be wrong"
        )


def image_of(pixels: PixelArray) -> Image:
    """An `Image` whose key is a hash of its content."""
    return Image("sha256:" + hashlib.sha256(pixels.tobytes()).hexdigest(), lambda: pixels)
