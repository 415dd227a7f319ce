"""Jobs that write text: captions of pictures, and answers to questions about them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from cm3core.document import Image, MaskedText, PixelArray, Segment, TextHole, text_of
from cm3core.errors import GenerationError
from cm3core.generation.engine import Completion, Request
from cm3core.model.candidates import Plan
from cm3core.model.jobs import Job
from cm3core.model.loaded import Loaded, Picture, check_text, seen, text_hole
from cm3core.model.options import GenerationOptions
from cm3core.model.results import Choice, GeneratedText, RetrievedDocument

#: The text before the picture of a question (paper, Table 5).
ASK = "Question: {question} Answer: {answer}."


class Writing(Loaded):
    """A model that writes text: the jobs of `Model.captions` and `ask`."""

    def caption_jobs(
        self, pictures: Sequence[Picture], *, max_tokens: int | None = None, **options: Any
    ) -> tuple[list[Job[GeneratedText]], int]:
        """The jobs of `captions`, one per picture, and the maximum number of tokens they generate."""
        hole = text_hole(self.recipe, max_tokens)
        return _text_jobs(self, pictures, "", hole, "", GenerationOptions.of(options))

    def ask_job(
        self,
        picture: Picture,
        question: str,
        *,
        template: str = ASK,
        max_tokens: int | None = None,
        **options: Any,
    ) -> tuple[Job[GeneratedText], int]:
        """The job of `ask`, and the maximum number of tokens it generates."""
        if template.count("{answer}") != 1 or "{question}" not in template:
            raise GenerationError(
                "template", f"is {template!r}", "write one with {question} and one {answer}"
            )
        check_text(self, "question", question, truncate=False)
        # split first: a question may hold "{answer}" itself
        before, after = (
            part.replace("{question}", question) for part in template.split("{answer}")
        )
        hole = text_hole(self.recipe, max_tokens)
        given = GenerationOptions.of({"num_retrieved": 0, **options})
        [job], total = _text_jobs(self, [picture], before, hole, after, given)
        return job, total


def _text_jobs(
    loaded: Loaded,
    pictures: Sequence[Picture],
    before: str,
    hole: TextHole,
    after: str,
    options: GenerationOptions,
) -> tuple[list[Job[GeneratedText]], int]:
    """Jobs whose result is the text written in the hole before each picture."""
    shown = [seen(loaded, picture) for picture in pictures]
    plan = Plan.of(loaded, options)
    parts = [part for part in (before, hole, after) if part != ""]
    first: Segment = hole if len(parts) == 1 else MaskedText(tuple(parts))
    requests = [Request((first, own), seed=options.seed) for own in loaded.encode(shown)]
    augmented = plan.augmented(requests, [(_image(pixels),) for pixels in shown])

    def job(request: Request, retrieved: tuple[RetrievedDocument, ...]) -> Job[GeneratedText]:
        def make(completion: Completion, seed: int, choice: Choice | None) -> GeneratedText:
            text = text_of(completion.document[:1])
            written = text[len(before) : len(text) - len(after)]
            return GeneratedText(written, seed, retrieved, completion.log_probability, choice)

        return plan.job(request, make)

    total = len(requests) * plan.num_candidates * (hole.max_tokens or 0)
    return [job(*one) for one in augmented], total


def _image(pixels: PixelArray) -> Image:
    """A picture by reference whose key is its content."""
    return Image("sha256:" + hashlib.sha256(pixels.tobytes()).hexdigest(), lambda: pixels)
