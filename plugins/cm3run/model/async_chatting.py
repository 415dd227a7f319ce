"""Conversations for coroutines: the replies of `AsyncModel.chat`, in the batch that all callers share."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from cm3run.generation.engine import Completion, Event, Failed, Finished
from cm3run.model.chains import advance, placed
from cm3run.model.chatting import ReplyOptions
from cm3run.model.turns import Reply, ReplyReady, Turn

if TYPE_CHECKING:
    from cm3run.model.model import Model


class AsyncChatting:
    """The part of `AsyncModel` that converses."""

    model: Model
    #: An `AsyncEngine`.
    engine: Any
    _aside: Callable[..., Any]

    async def chat(self, conversation: str | Sequence[Turn], **options: Any) -> Reply:
        """See `Model.chat`."""
        async with aclosing(self.chat_events(conversation, **options)) as events:
            async for event in events:
                if isinstance(event, ReplyReady):
                    return event.reply
        raise AssertionError("a stream ends with a reply")

    async def chat_events(
        self, conversation: str | Sequence[Turn], **options: Any
    ) -> AsyncGenerator[Event, None]:
        """The events of `Model.chat_events` for one conversation. Leaving it ends the work.

        Raises what `Model.chat` does.
        """
        chain = self.model.reply_chain(conversation, ReplyOptions.of(options))
        completion: Completion | None = None
        while True:
            events, step, reply = await self._aside(advance, chain, completion)
            for event in events:
                yield event
            if step is None:
                yield ReplyReady(0, reply)
                return
            async with aclosing(self.engine.stream(step.request)) as stream:
                async for event in stream:
                    if isinstance(event, Failed):
                        raise event.error
                    if isinstance(event, Finished):
                        completion = event.completion
                    else:
                        yield placed(event, 0, step.part)
