"""Jobs that write text: captions of pictures, and answers to questions about them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cm3core.document import Image, PixelArray, TextHole
from cm3core.generation.engine import Completion, Request
from cm3core.interfaces.task import Task
from cm3core.model.candidates import Decode, Plan
from cm3core.model.jobs import Job
from cm3core.model.loaded import Loaded, Picture, check_prompt, check_text, seen, text_hole
from cm3core.model.options import GenerationOptions
from cm3core.model.results import Choice, GeneratedText
from cm3core.model.retrieval import Augmented
from cm3core.model.tasks import (
    question_task,
    record_of,
    task_for,
    tuned_with_documents,
    without_wording,
)


class Writing(Loaded):
    """A model that writes text: the jobs of `Model.captions` and `ask`."""

    def caption_jobs(
        self,
        pictures: Sequence[Picture],
        *,
        max_tokens: int | None = None,
        task: str | None = None,
        force: bool = False,
        **options: Any,
    ) -> tuple[list[Job[GeneratedText]], int]:
        """The jobs of `captions`, one per picture, and the maximum number of tokens they generate."""
        hole = text_hole(self.recipe, max_tokens)
        chosen = task_for(self, "caption", task, force=force)
        return _text_jobs(self, pictures, chosen, None, hole, GenerationOptions.of(options))

    def ask_job(
        self,
        picture: Picture,
        question: str,
        *,
        template: str | None = None,
        max_tokens: int | None = None,
        task: str | None = None,
        force: bool = False,
        **options: Any,
    ) -> tuple[Job[GeneratedText], int]:
        """The job of `ask`, and the maximum number of tokens it generates."""
        if template is None:
            chosen = task_for(self, "ask", task, force=force)
            question = without_wording(chosen, question)
        else:
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
    """Jobs whose result is the text that a task asks for about each picture."""
    shown = [seen(loaded, picture) for picture in pictures]
    if options.num_candidates is None:  # the recipe's number is of pictures
        options = replace(options, num_candidates=1)
    plan = Plan.of(loaded, options)
    records = [record_of(task, question, own) for own in loaded.encode(shown)]
    prompts = [task.prompt(record, max_tokens=hole.max_tokens) for record in records]
    for prompt in prompts[:1]:  # all have the same words
        check_prompt(
            loaded, "question in its template", prompt, truncate=False, next_step="shorten it"
        )
    requests = [Request(prompt, seed=options.seed) for prompt in prompts]
    augmented = plan.augmented(requests, [(image_of(pixels),) for pixels in shown])
    [response] = task.responses

    def job(record: dict[str, Any], alternatives: Sequence[Augmented]) -> Job[GeneratedText]:
        [(_, retrieved)] = alternatives

        def make(
            completion: Completion, seed: int, choice: Choice | None, _: Decode
        ) -> GeneratedText:
            text = str(task.answer(record, completion.document)[response])
            return GeneratedText(text, seed, retrieved, completion.log_probability, choice)

        return plan.job(alternatives, make)

    total = len(requests) * plan.num_candidates * (hole.max_tokens or 0)
    jobs = [job(record, one) for record, one in zip(records, augmented, strict=True)]
    return jobs, total


def image_of(pixels: PixelArray) -> Image:
    """A picture by reference whose key is its content."""
    return Image("sha256:" + hashlib.sha256(pixels.tobytes()).hexdigest(), lambda: pixels)
