"""Conversations with pictures in and out: the replies of `Model.chat`, and a stateful `Conversation`.

In a layout with turns (`Layout.has_turns`), conversations are the model's own sequences. A reply is text, a picture
wherever the model begins one, more text, until the model ends its turn. Each part is one request, so that the
guidance streams of a picture see everything before it, including the reply's own text. Other models use a task whose
record is a picture and the conversation as text; without a picture they generate one.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cm3core.arguments import Count, CountOrZero, Name, check_fields, checked
from cm3core.document import (
    Codes,
    Document,
    ImageHole,
    PixelArray,
    Segment,
    Text,
    TextHole,
    with_turn,
)
from cm3core.errors import GenerationError
from cm3run.generation.engine import Completion, Event, Failed, Request, candidate_seed
from cm3run.generation.prepare import SHORTEN
from cm3run.model.candidates import sampler_keys
from cm3run.model.drawing import Drawing
from cm3run.model.jobs import Chain, Done, Step, run_chains
from cm3run.model.loaded import (
    Picture,
    check_length,
    check_prompt,
    codes_of,
    given_pixels,
    is_drawing,
    sampler_of,
    seen,
    text_hole,
)
from cm3run.model.results import GeneratedImage
from cm3run.model.tasks import conversing_task, named_task
from cm3run.model.turns import (
    Answer,
    Part,
    Reply,
    ReplyPart,
    ReplyPicture,
    ReplyReady,
    Turn,
    as_text,
    beginnings,
    most_that_fit,
    turns_of,
)
from cm3run.model.writing import Writing, image_of
from cm3run.tasks import CONVERSATION

if TYPE_CHECKING:
    from cm3core.interfaces.sampler import Sampler
    from cm3run.model.jobs import Job


#: Maximum number of pictures in one reply.
MAX_PICTURES = 4


@dataclass(frozen=True, kw_only=True)
class ReplyOptions:
    """The options of a reply; `Chatting.chat` describes them."""

    answer: Answer = "any"
    max_tokens: Count | None = None
    max_pictures: CountOrZero = MAX_PICTURES
    truncate: bool = False
    seed: int = 0
    force: bool = False
    sampler: Name | None = None
    sampling: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, GenerationError)
        candidate_seed(self.seed, 0)

    @classmethod
    def of(cls, options: dict[str, Any]) -> ReplyOptions:
        """Pick the options from a call's keyword arguments; all other keys are the sampler's."""
        names = cls.__dataclass_fields__.keys() - {"sampling"}
        own = {name: options[name] for name in names if name in options}
        rest = {key: value for key, value in options.items() if key not in names}
        return cls(**own, sampling=sampler_keys(rest))


class Chatting(Drawing, Writing):
    """A model that can chat."""

    @checked(GenerationError)
    def chat(self, conversation: str | Sequence[Turn], **options: Any) -> Reply:
        """Reply to a conversation, whose last turn is the user's.

        >>> model.chat([Turn("user", ("What is it?", Path("bell.png")))]).text    # doctest: +SKIP

        Args:
            conversation: turns, or a single text. Pictures may have any size: the model sees the largest
                centred square of each (or crop in its aspect ratio).
            options: keyword arguments:

                answer          "any": the model decides between text and pictures; "text": a text;
                                "image": a picture
                max_tokens      of all texts of the reply; None: the recipe's
                                `generate.max_text_tokens`
                max_pictures    of the reply
                truncate        drop the oldest turns of a conversation that doesn't fit
                force           allow models that were not tuned for conversations
                seed, sampler, sampling, and the sampler's keys: see `Model`

        Raises:
            DataError: a picture can't be read.
            GenerationError: the conversation is empty, doesn't end with the user's turn, or doesn't
                fit; the model was not tuned for conversations, or not for this kind of answer.
        """
        return self.chats([conversation], **options)[0]

    @checked(GenerationError)
    def chats(self, conversations: Sequence[str | Sequence[Turn]], **options: Any) -> list[Reply]:
        """Reply to several conversations in one batch; see `chat`. All use the same seed, and each reply equals that
        of the conversation alone."""
        replies: dict[int, Reply] = {}
        for event in self.chat_events(conversations, details=False, **options):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, ReplyReady):
                replies[event.request] = event.reply
        return [replies[number] for number in range(len(conversations))]

    @checked(GenerationError)
    def chat_events(
        self,
        conversations: Sequence[str | Sequence[Turn]],
        *,
        details: bool = True,
        **options: Any,
    ) -> Generator[Event, None, None]:
        """Yield the events of `chats` as they happen: `TextGrown` and `PictureGrown` with `details`,
        `ReplyPart`, and for each conversation `ReplyReady` or `Failed`. Leaving the iterator stops the work."""
        asked = ReplyOptions.of(options)
        chains = (self.reply_chain(one, asked) for one in conversations)
        for event in run_chains(self.engine, chains, details=details):
            if isinstance(event, Done):
                yield ReplyReady(event.request, event.result)
            elif isinstance(event, (Failed, ReplyPart)) or details:
                yield event

    @checked(GenerationError)
    def reply_chain(self, conversation: str | Sequence[Turn], asked: ReplyOptions) -> Chain[Reply]:
        """The chain of requests that produces a reply."""
        turns = turns_of(conversation)
        task = self.check_converses(force=asked.force)
        if task is None:
            return (yield from self._in_turns(turns, asked))
        return (yield from self._by_task(task, turns, asked))

    @checked(GenerationError)
    def check_converses(self, *, force: bool = False) -> str | None:
        """The task used for conversations; None: the layout's turns.

        Raises:
            GenerationError: the model was not tuned for conversations and `force` is not set, or it can't have any.
        """
        tuned = conversing_task(self)
        if tuned is not None:
            return tuned
        has_turns = self.components.serializer.layout.has_turns
        if has_turns and (self.tasks.turns or force):
            return None
        if force and (untuned := conversing_task(self, untuned=True)) is not None:
            return untuned
        names = ", ".join(self.tasks.names)
        raise GenerationError(
            "conversation",
            f"the model was not tuned for conversations{f', but for {names}' if names else ''}; what "
            "it would reply is meaningless",
            "use a model that was, tune one (docs/tuning.md), or give force=True (--force)",
        )

    # ---- in turns of the layout

    def _in_turns(self, turns: list[Turn], asked: ReplyOptions) -> Chain[Reply]:
        """A reply made of texts and pictures."""
        sampler = sampler_of(self, asked.sampler, **asked.sampling)
        left = text_hole(self.recipe, asked.max_tokens).max_tokens or 1
        segments = [self._segments(number, turn) for number, turn in enumerate(turns)]
        number = self._num_read(segments, turns, left, asked, sampler)
        document = tuple(one for own in segments[len(turns) - 1 - number :] for one in own)
        parts: list[str | ReplyPicture] = []
        nats, num_pictures, draws = 0.0, 0, asked.answer == "image"
        finish: Literal["stop", "length"] = "stop"
        while True:
            room = self._fits((*document, ImageHole()), sampler)
            may_draw = asked.answer == "any" and num_pictures < asked.max_pictures and room
            hole: Segment = ImageHole()
            if draws and not room and parts:
                finish = "length"
                break
            if not draws:
                most = min(left, self._room_for_text(document))
                if parts and most < 1:
                    finish = "length"
                    break
                least = 0 if parts else 1
                hole = TextHole(max(1, most), least, or_picture=may_draw)
            seed = candidate_seed(asked.seed, len(parts))
            prompt = (*document, with_turn(hole, not parts))
            done = yield Step(Request(prompt, seed=seed, sampler=sampler, keep=True), len(parts))
            assert done is not None
            nats += done.log_probability
            made = done.document[-1]
            if isinstance(made, Codes):
                num_pictures += 1
                given = [part for turn in turns for part in turn.parts] + parts
                pixels = self.drawn(
                    made,
                    [one.text for one in document if isinstance(one, Text)],
                    [
                        one.pixels if isinstance(one, ReplyPicture) else given_pixels(self, one)
                        for one in given
                        if not isinstance(one, str)
                    ],
                )
                parts.append(ReplyPicture(pixels, made, seed, done.log_probability))
            elif isinstance(made, Text) and made.text:
                left -= done.num_tokens
                parts.append(made.text)
            if made != Text(""):
                document = (*document, made)
                yield ReplyPart(0, len(parts) - 1, parts[-1])
            draws = done.ends[-1] == "picture"
            if done.ends[-1] == "length":
                finish = "length"
            if done.ends[-1] in ("length", "end", "stop") or asked.answer != "any":
                break
        return Reply(tuple(parts), asked.seed, finish, number, len(turns) - 1 - number, nats)

    def _segments(self, number: int, turn: Turn) -> Document:
        """A turn's texts and pictures; adjacent texts are joined."""
        segments: list[Segment] = []
        for part in turn.parts:
            if not isinstance(part, str):
                segments.append(self._codes_of(part))
            elif part.strip():
                before = segments.pop().text + "\n" if _is_text(segments) else ""  # type: ignore[union-attr]  # is one
                segments.append(Text(before + part.strip()))
        for segment in segments:
            if isinstance(segment, Text):
                check_length(self, f"conversation, turn {number}", segment.text, next_step=SHORTEN)
        return tuple(with_turn(one, place == 0) for place, one in enumerate(segments))

    def _codes_of(self, picture: Path | PixelArray | ReplyPicture) -> Segment:
        """A picture's codes; a picture drawn by the model keeps its own."""
        if isinstance(picture, ReplyPicture):
            return picture.codes
        if is_drawing(self, picture):
            return codes_of(self, picture)
        return self.coded((image_of(seen(self, picture)),))[0]

    def _num_read(
        self,
        segments: list[Document],
        turns: list[Turn],
        most: int,
        asked: ReplyOptions,
        sampler: Sampler,
    ) -> int:
        """The number of turns before the last one to read, so that a reply still fits."""
        roles = [turn.role for turn in turns[:-1]]
        hole: Segment = ImageHole() if asked.answer == "image" else TextHole(1)

        def fits(number: int, hole: Segment = hole) -> bool:
            kept = segments[len(turns) - 1 - number :]
            return self._fits((*(one for own in kept for one in own), hole), sampler)

        if asked.truncate:
            wanted = hole if asked.answer == "image" else TextHole(most)
            return most_that_fit(beginnings(roles), lambda number: fits(number, wanted))
        if roles and not fits(len(roles)) and fits(0):
            raise GenerationError(
                "conversation",
                f"of {len(turns)} turns doesn't fit the decoder's context of "
                f"{self.components.context_length} tokens",
                "begin a new one, or drop the oldest turns (truncate)",
            )
        return len(roles)

    def _fits(self, document: Document, sampler: Sampler) -> bool:
        return self.engine.fits(Request(document, sampler=sampler))

    def _room_for_text(self, document: Document) -> int:
        """Text tokens that fit the context after the document."""
        prompt = self.components.serializer.prompt((*document, with_turn(TextHole(1))))
        return self.components.context_length - len(prompt) + 1

    # ---- by a task

    def _by_task(self, task: str, turns: list[Turn], asked: ReplyOptions) -> Chain[Reply]:
        """Reply with a text about the conversation's last picture, or with a picture."""
        shown = [picture for turn in turns for picture in turn.pictures]
        text = turns[-1].text.strip()
        options: dict[str, Any] = {"seed": asked.seed, "force": asked.force}
        options |= {"sampler": asked.sampler, "sampling": asked.sampling}
        read = 0
        job: Job[Any]
        if asked.answer == "image" or (asked.answer == "any" and not shown):
            options |= {"num_candidates": 1}
            if shown:
                jobs, _ = self.edit_jobs(_pixels_or_file(shown[-1]), text, 1, **options)
            else:
                jobs, _ = self.image_jobs(text, 1, draw=True, **options)
            job = next(iter(jobs))
        elif not shown:
            raise GenerationError(
                "conversation",
                "has no picture, and this model writes only about pictures",
                "show one, or ask for one (answer='image')",
            )
        elif not text:
            options["max_tokens"] = asked.max_tokens
            [job], _ = self.caption_jobs([_pixels_or_file(shown[-1])], **options)
        else:
            question, own, read = self.question_read(
                task,
                [(turn.role, turn.text.strip()) for turn in turns],
                max_tokens=asked.max_tokens,
                truncate=asked.truncate,
                force=asked.force,
            )
            options |= {"task": own, "max_tokens": asked.max_tokens}
            job, _ = self.ask_job(_pixels_or_file(shown[-1]), question, **options)
        completions: list[Completion] = []
        for request in job.requests:
            done = yield Step(replace(request, keep=True), 0)
            assert done is not None
            completions.append(done)
        made = job.finish(completions)
        part: str | ReplyPicture
        if isinstance(made, GeneratedImage):
            part = ReplyPicture(made.pixels, made.codes, made.seed, made.log_probability, made.note)
        else:
            part = made.text
        yield ReplyPart(0, 0, part)
        cut = completions[-1].ends[-1:] == ("length",)
        nats = made.log_probability
        left_out = len(turns) - 1 - read
        return Reply((part,), asked.seed, "length" if cut else "stop", read, left_out, nats)

    @checked(GenerationError)
    def question_read(
        self,
        task: Name | None,
        said: Sequence[tuple[str, str]],
        *,
        max_tokens: Count | None = None,
        truncate: bool = False,
        force: bool = False,
        place: str = CONVERSATION,
    ) -> tuple[str, Name | None, int]:
        """What to ask about a conversation's picture: the text, the task for it, and how many of the turns before the
        last one it includes.

        A question without an earlier turn, or of which none fits, is put as `Model.ask` puts it (task None): the model
        was tuned on single questions and on conversations in different wordings.

        Args:
            task: the conversation task; None: the model was not tuned for one, and only the last turn is read.
            said, max_tokens, truncate, force, place: see `conversation_read`.

        Raises:
            GenerationError: the turns together are too long.
        """
        if task is None or not any(text for _, text in said[:-1]):
            return said[-1][1], None, 0
        conversation, number = self.conversation_read(
            task, said, max_tokens=max_tokens, truncate=truncate, force=force, place=place
        )
        return (conversation, task, number) if number else (said[-1][1], None, 0)

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
        """A conversation as text for a conversation task, and how many of the turns before the last one it includes.

        Args:
            task: its name.
            said: (role, text) of each turn, the last one the user's; turns without text are skipped.
            max_tokens: of the answer.
            truncate: drop the oldest turns that don't fit; otherwise all are read, and a text that is too long
                is refused.
            place: name of the conversation in error messages.

        Raises:
            GenerationError: the turns together are too long.
        """
        if not len(said):
            raise GenerationError(place, "has no turn", "add a turn of the user")
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
            step = "shorten them, or drop the oldest turns (truncate)"
            prompt = self._asked_about(task, text_of(number), max_tokens, force)
            check_prompt(self, place, prompt, truncate=False, next_step=step)
        return text_of(number), number

    def _asked_about(self, task: str, text: str, max_tokens: int | None, force: bool) -> Document:
        """The prompt for a conversation; the picture is blank, since all pictures have the same length."""
        grid = self.components.image_tokenizer.grid
        blank = Codes(np.zeros(grid[0] * grid[1], np.int32), grid)
        chosen = named_task(self, task, force=force)
        fields = {"image": blank, CONVERSATION: text}
        return chosen.prompt(fields, max_tokens=text_hole(self.recipe, max_tokens).max_tokens)

    def _is_read(self, task: str, text: str, max_tokens: int | None, force: bool) -> bool:
        """Whether a conversation and an answer to it fit."""
        prompt = self._asked_about(task, text, max_tokens, force)
        try:
            check_prompt(self, CONVERSATION, prompt, truncate=False)
        except GenerationError:
            return False
        return self.engine.fits(Request(prompt))


def _is_text(segments: list[Segment]) -> bool:
    return bool(segments) and isinstance(segments[-1], Text)


def _pixels_or_file(picture: Path | PixelArray | ReplyPicture) -> Picture:
    return picture.pixels if isinstance(picture, ReplyPicture) else picture


class Conversation:
    """A conversation with a model.

    >>> talk = Conversation(cm3core.load("anole"))                     # doctest: +SKIP
    >>> talk.say("What is it?", Path("bell.png")).text                 # doctest: +SKIP
    'A bell.'
    >>> talk.say("Draw it in green.", answer="image").pictures[0]      # doctest: +SKIP

    Args:
        model: replies.
        turns: the turns so far.
        seed: of the first reply; later seeds are derived from it, so that a conversation can be
            reproduced.
        options: of every reply, see `Model.chat`.

    Raises:
        GenerationError: the model was not tuned for conversations.
    """

    def __init__(
        self, model: Chatting, turns: list[Turn] | None = None, *, seed: int = 0, **options: Any
    ) -> None:
        model.check_converses(force=bool(options.get("force")))
        self.model, self.seed, self.options = model, seed, options
        #: All turns so far, including replies.
        self.turns: list[Turn] = [] if turns is None else list(turns)

    @property
    def next_seed(self) -> int:
        """The seed of the next reply."""
        return candidate_seed(self.seed, sum(turn.role == "assistant" for turn in self.turns))

    @checked(GenerationError)
    def say(self, text: str, *pictures: Path | PixelArray | ReplyPicture, **options: Any) -> Reply:
        """Add a user turn, pictures before the text, and return the reply; both are appended to `turns`.

        `options`: of this reply, see `Model.chat`. A turn that fails is not added.
        """
        for event in self.stream(text, *pictures, **options):
            if isinstance(event, ReplyReady):
                return event.reply
        raise AssertionError("a stream ends with a reply")

    @checked(GenerationError)
    def stream(
        self, text: str, *pictures: Path | PixelArray | ReplyPicture, **options: Any
    ) -> Generator[Event, None, None]:
        """Yield the events of `say` with these arguments as they happen; the last is `ReplyReady`. Leaving
        the iterator stops the work, and nothing is added."""
        parts: tuple[Part, ...] = (*pictures, *([text] if text.strip() else []))
        said = [*self.turns, Turn("user", parts)]
        wanted = {"seed": self.next_seed, **self.options, **options}
        with closing(self.model.chat_events([said], **wanted)) as events:
            for event in events:
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, ReplyReady):
                    self.turns = [*said, event.reply.turn] if event.reply.parts else said[:-1]
                yield event

    def undo(self) -> Turn | None:
        """Remove the last user turn and its reply. Returns the user turn; None: there is no turn."""
        while self.turns:
            last = self.turns.pop()
            if last.role == "user":
                return last
        return None

    def reset(self) -> None:
        """Start over."""
        self.turns = []
