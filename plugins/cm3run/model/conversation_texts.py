"""Conversations as one text, which tasks of single questions read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cm3core.arguments import Count, Name, checked
from cm3core.document import Codes, Document
from cm3core.errors import GenerationError
from cm3run.generation.engine import Request
from cm3run.model.loaded import Loaded, check_prompt, text_hole
from cm3run.model.tasks import CONVERSATION, named_task
from cm3run.model.turns import as_text, beginnings, most_that_fit


class ConversationTexts(Loaded):
    """A model that reads a conversation as the text of a task."""

    @checked(GenerationError)
    def conversation_read(
        self,
        task: Name,
        said: Sequence[tuple[str, str]],
        *,
        max_tokens: Count | None = None,
        truncate: bool = False,
        force: bool = False,
        place: str = CONVERSATION,
    ) -> tuple[str, int]:
        """A conversation as the text that a task of conversations reads, and how many of the turns
        before the last one it holds.

        Args:
            task: its name.
            said: (role, text) of each turn, the last one the user's; those without text are left out.
            max_tokens: of the answer.
            truncate: leave out the oldest turns that don't fit; without, all are read, and a text that
                is too long is refused.
            place: what the conversation is called in a refusal.

        Raises:
            GenerationError: several turns are too long.
        """
        if not len(said):
            raise GenerationError(place, "has no turn", "add what is to be answered")
        kept = [(role, text) for role, text in said[:-1] if text]
        number = len(kept)

        def text_of(number: int) -> str:
            return as_text([*kept[len(kept) - number :], said[-1]])

        if truncate:
            some = beginnings([role for role, _ in kept])
            number = most_that_fit(
                some, lambda one: self._is_read(task, text_of(one), max_tokens, force)
            )
        elif kept:
            step = "shorten them, or leave out the oldest turns (truncate)"
            prompt = self._asked_about(task, text_of(number), max_tokens, force)
            check_prompt(self, place, prompt, truncate=False, next_step=step)
        return text_of(number), number

    def _asked_about(self, task: str, text: str, max_tokens: int | None, force: bool) -> Document:
        """The prompt about a conversation; the picture, which has always one length, is blank."""
        grid = self.components.image_tokenizer.grid
        blank = Codes(np.zeros(grid[0] * grid[1], np.int32), grid)
        chosen = named_task(self, task, force=force)
        fields = {"image": blank, CONVERSATION: text}
        return chosen.prompt(fields, max_tokens=text_hole(self.recipe, max_tokens).max_tokens)

    def _is_read(self, task: str, text: str, max_tokens: int | None, force: bool) -> bool:
        """Whether a conversation, and an answer to it, are short enough."""
        prompt = self._asked_about(task, text, max_tokens, force)
        try:
            check_prompt(self, CONVERSATION, prompt, truncate=False)
        except GenerationError:
            return False
        return self.engine.fits(Request(prompt))
