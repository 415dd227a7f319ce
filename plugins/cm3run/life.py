"""What each command can do with a recipe, and with the models that it trains, before anything is built. No torch.

The answers follow from what the components declare (`cm3core.recipe.abilities`) and from the prompt that a command
makes: a caption stands before its picture, so writing one needs a model that fills holes; an edit has two pictures,
which the context must hold. The matrix of swaps (`tests/matrix`) runs every command and compares.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cm3core.config.schema import all_parts
from cm3core.document import Codes, Document, Image, ImageHole, MaskedText, Text, TextHole
from cm3core.errors import CM3Error, GenerationError, RecipeError
from cm3core.interfaces.task import Method
from cm3core.recipe.abilities import (
    FIXED_DOCUMENTS,
    GRADIENTS,
    GRID,
    HOLES,
    PREFIX,
    TEXT,
    TURNS,
    WORDS,
    known,
    lack_of,
)
from cm3core.recipe.recipe import MissingComponent, available, default_layout
from cm3core.sequence.grammar import ends_missing, num_holes
from cm3run.tasks import PLAIN, TaskChoice, TunedTasks

if TYPE_CHECKING:
    from cm3core.interfaces.component import ComponentConfig
    from cm3core.interfaces.task import Task, TaskConfig
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe

#: Sections without which a stage can't begin.
NEEDED: Mapping[str, tuple[str, ...]] = {
    "train": ("dataset", "text_tokenizer", "image_tokenizer", "objective", "attention", "decoder"),
    "generate": ("text_tokenizer", "image_tokenizer", "attention", "decoder"),
}
#: Kinds whose components a checkpoint holds.
TOKENIZERS = ("text_tokenizer", "image_tokenizer")
_RETRIEVING = ("layout", "embedder", "retriever", "dataset")
_USING = (*NEEDED["generate"], *_RETRIEVING, "sampler", "prompt_rewriter", "finisher")
#: Kinds that training builds, that generating or editing pictures builds, and that the other commands build.
_BUILT: Mapping[str, tuple[str, ...]] = {
    "train": (*NEEDED["train"], *_RETRIEVING, "task"),
    "generate": (*_USING, "reranker"),
    "write": _USING,
}
#: Commands that go with training, and commands that go with a model, by the method whose prompt they make.
_OF_RUNS = ("resume", "export", "load")
#: Commands that choose among candidates.
_DRAWING = ("generate", "edit")
METHODS: Mapping[str, Method] = {
    "generate": "generate",
    "edit": "edit",
    "caption": "caption",
    "ask": "ask",
}
#: What a model must have been trained on for a command that plain documents don't teach.
_EXAMPLES: Mapping[str, str] = {"edit": "edits", "ask": "questions"}


@dataclass(frozen=True)
class Verdict:
    """Whether a command works with a recipe.

    Args:
        error: why it doesn't; None: it works.
        here: whether only this machine is in the way: a device, a package or memory that it lacks.
    """

    error: CM3Error | None = None
    here: bool = False

    @property
    def runs(self) -> bool:
        """Whether the command works, on this machine."""
        return self.error is None

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON: `runs`, and of a command that doesn't run `place`, `cause`, `next_step` and
        `this_machine`."""
        if self.error is None:
            return {"runs": True}
        error = self.error
        parts = {"place": error.place, "cause": error.cause, "next_step": error.next_step}
        return {"runs": False, **parts, "this_machine": self.here}


YES = Verdict()


def life_of(
    recipe: Recipe,
    registry: Registry,
    *,
    carried: Collection[str] = (),
    device: str | None = None,
) -> dict[str, Verdict]:
    """What each command can do with a recipe: command -> verdict, in the order of a model's life.

    A recipe without a decoder, for training a tokenizer, has no commands.

    Args:
        recipe: composed.
        registry: the plugins that it was composed with.
        carried: kinds whose components come from a checkpoint, in addition to the tokenizers of a model that
            `train.start_from` names.
        device: type of this machine's device, "cpu" or "cuda". None: looked up if a component needs to know.

    Raises:
        RecipeError: the recipe is refused: a value is wrong, something that training or a named component needs is
            missing, or components can't be combined.
    """
    if recipe.train.start_from is not None:
        carried = {*carried, *TOKENIZERS}
    recipe.check(ready=recipe.decoder is not None, carried=carried)
    if recipe.decoder is None:
        return {}
    _check_sections(recipe)
    if recipe.layout is None:
        names = {**recipe.component_names, "layout": "the default"}
        recipe = replace(recipe, layout=default_layout(registry), component_names=names)
    for ability in (GRADIENTS, FIXED_DOCUMENTS):
        if (lacking := _lacking(recipe, ability, "train")) is not None:
            raise lacking
    choice = choice_of(recipe, registry)
    _check_tasks(recipe, choice.tuned)
    machine = _Machine(recipe, device)
    train = machine.verdict("train")
    life = {"train": train, **dict.fromkeys(_OF_RUNS, train)}
    drawing, writing = machine.verdict("generate"), machine.verdict("write")
    for command, error in _errors(recipe, choice):
        here = drawing if command in _DRAWING else writing
        life[command] = here if error is None else Verdict(error)
    return life


def _check_tasks(recipe: Recipe, tuned: TunedTasks) -> None:
    """Raise `RecipeError` if documents of a task can't be trained on: pictures before their end with a layout that allows
    nothing after a picture, words of a task with a text tokenizer that knows none, or more pictures than fit the context
    in all documents."""
    if tuned.configs and not tuned.plain:
        errors = [_document_error(recipe, name, config) for name, config in tuned.configs.items()]
        if None not in errors and errors[0] is not None:
            raise errors[0]
    for name, config in tuned.configs.items():
        prompt = prompt_of(config.build())
        needed = [PREFIX] if any(isinstance(one, (Codes, ImageHole)) for one in prompt[:-1]) else []
        if any(text not in ("", _EXAMPLE) for text in _texts_of(prompt)):
            needed.append(WORDS)
        place = "dataset" if recipe.task is None else "task"
        for ability in needed:
            if (lack := lack_of(recipe.components, ability)) is not None:
                raise RecipeError(
                    place,
                    f"documents of the task {name!r} need a model that {known(ability).words}, but {lack.cause}",
                    f"write {lack.next_step}, or train on other documents",
                )


def _document_error(recipe: Recipe, name: str, config: TaskConfig) -> RecipeError | None:
    """The error of a task whose documents have more pictures than fit the context, at no text."""
    layout, tokenizer = available(recipe.layout), available(recipe.image_tokenizer)
    if layout is None or tokenizer is None or recipe.decoder is None:
        return None
    prompt, context = prompt_of(config.build()), recipe.decoder.context_length
    pictures = sum(isinstance(part, (Codes, Image, ImageHole)) for part in prompt)
    least = pictures * layout.picture_length(tokenizer.grid)
    if least <= context:
        return None
    texts = (len(prompt) - pictures) * recipe.data.max_text_tokens
    return RecipeError(
        "decoder.context_length",
        f"is {context:,}, and documents of the task {name!r} have {pictures} pictures, {least:,} tokens without text",
        f"write decoder.context_length={least + texts}",
    )


def _texts_of(prompt: Document) -> Iterator[str]:
    """The given texts of a prompt."""
    for segment in prompt:
        for part in segment.parts if isinstance(segment, MaskedText) else (segment,):
            if isinstance(part, (str, Text)):
                yield (part if isinstance(part, str) else part.text).strip()


def _check_sections(recipe: Recipe) -> None:
    needed = list(NEEDED["train"])
    if recipe.train.sample_every_steps is not None or recipe.train.sample_every_minutes is not None:
        needed.append("sampler")
    missing = [kind for kind in needed if recipe.section(kind) is None]
    if missing:
        raise RecipeError(
            missing[0],
            "is not in the recipe (or null), and training needs it",
            f"add {missing[0]}=NAME (cm3 kinds {missing[0]} lists them)",
        )


def _lacking(recipe: Recipe, ability: str, command: str) -> RecipeError | None:
    """The error of a command that needs an ability, if the recipe lacks it."""
    lack = lack_of(recipe.components, ability)
    if lack is None:
        return None
    return RecipeError(
        command,
        f"needs a model that {known(ability).words}, but {lack.cause}",
        f"train with {lack.next_step}",
    )


def _errors(recipe: Recipe, choice: TaskChoice) -> Iterator[tuple[str, CM3Error | None]]:
    """(command, why it can't work) of the commands that use a model."""
    for command, method in METHODS.items():
        yield command, _error_of(recipe, command, choice, method)
        if command == "edit":
            yield "infill", _infill_error(recipe)
    yield "chat", _chat_error(recipe, choice)


def choice_of(recipe: Recipe, registry: Registry) -> TaskChoice:
    """Chooses tasks for a model that a recipe trains."""
    layout = available(recipe.layout)
    return TaskChoice(TunedTasks.of(recipe), registry, layout is None or layout.has_sentinels)


def _error_of(
    recipe: Recipe, command: str, choice: TaskChoice, method: Method, name: str | None = None
) -> CM3Error | None:
    if recipe.sampler is None:
        return RecipeError(
            "sampler", f"is not in the recipe, and {command} needs one", "add sampler=cfg"
        )
    if name is None and method not in PLAIN and not choice.serves(method):
        return _untrained(command, _EXAMPLES[command])
    try:
        task = choice.task_for(method, name)
    except CM3Error as error:
        return error
    return _prompt_error(recipe, command, prompt_of(task), fills=choice.fills)


def _infill_error(recipe: Recipe) -> CM3Error | None:
    """Infilling a box leaves holes among the codes of a picture; pictures made of paths have no boxes."""
    if recipe.sampler is None:
        return RecipeError(
            "sampler", "is not in the recipe, and infill needs one", "add sampler=cfg"
        )
    tokenizer = available(recipe.image_tokenizer)
    if tokenizer is not None and tokenizer.reads_drawings:
        return _first_lack(recipe, "infill", (HOLES,)) or RecipeError(
            "infill",
            "pictures are made of paths, so there is no box to fill",
            "infill a path of an SVG file: cm3 infill FILE.svg --path 1",
        )
    return _first_lack(recipe, "infill", (GRID, HOLES))


def _chat_error(recipe: Recipe, choice: TaskChoice) -> CM3Error | None:
    if (name := choice.conversing()) is not None:
        return _error_of(recipe, "chat", choice, "ask", name)
    if choice.tuned.turns:
        return _first_lack(recipe, "chat", (TURNS, TEXT))
    return _untrained("chat", "conversations")


def _untrained(command: str, what: str) -> GenerationError:
    """The error of a command that only tuned models run without --force."""
    return GenerationError(
        command,
        f"the recipe trains on no {what}, so its results would be meaningless",
        f"train on some (docs/tuning.md), or give cm3 {command} --force",
    )


#: A text of an example record.
_EXAMPLE = "a"


def prompt_of(task: Task) -> Document:
    """A task's prompt for an example record."""
    example = {"text": _EXAMPLE, "image": Codes(np.zeros(1, np.int32), (1, 1))}
    return task.prompt({name: example[task.fields[name]] for name in task.given}, max_tokens=1)


def _prompt_error(
    recipe: Recipe, command: str, prompt: Document, *, fills: bool
) -> CM3Error | None:
    return _first_lack(recipe, command, needs_of(prompt, fills=fills)) or _too_long(
        recipe, command, prompt
    )


def _first_lack(recipe: Recipe, command: str, abilities: Iterable[str]) -> CM3Error | None:
    errors = (_lacking(recipe, ability, command) for ability in abilities)
    return next((error for error in errors if error is not None), None)


def needs_of(prompt: Document, *, fills: bool) -> list[str]:
    """The abilities that completing a document needs.

    Args:
        prompt: a document with holes.
        fills: whether the layout has sentinels. Without them, a text that ends in a hole is continued.
    """
    last = prompt[-1]
    parts = [
        part
        for segment in prompt
        for part in (segment.parts if isinstance(segment, MaskedText) else (segment,))
    ]
    continues = isinstance(last, TextHole) or ends_missing(last)
    if not fills and isinstance(last, MaskedText):
        continues = isinstance(last.parts[-1], TextHole)
    found = []
    if any(isinstance(part, TextHole) for part in parts):
        found.append(TEXT)
    if any(isinstance(part, (Codes, Image)) and not ends_missing(part) for part in parts):
        found.append(PREFIX)
    if num_holes(prompt) != 1 or not continues:
        found.append(HOLES)
    return found


def _too_long(recipe: Recipe, command: str, prompt: Document) -> CM3Error | None:
    """The error of a prompt whose pictures and generated texts don't fit the context, at one token a given text."""
    layout, tokenizer = available(recipe.layout), available(recipe.image_tokenizer)
    if layout is None or tokenizer is None or recipe.decoder is None:
        return None
    one = layout.picture_length(tokenizer.grid)
    pictures = sum(isinstance(part, (Codes, Image, ImageHole)) for part in prompt)
    texts = sum(isinstance(part, (Text, MaskedText)) for part in prompt)
    new = most_new_tokens(recipe) * sum(
        isinstance(part, TextHole)
        for segment in prompt
        for part in (segment.parts if isinstance(segment, MaskedText) else (segment,))
    )
    least, context = pictures * one + texts + new + 1, recipe.decoder.context_length
    if least <= context:
        return None
    many = "one picture" if pictures == 1 else f"{pictures} pictures"
    return RecipeError(
        command,
        f"takes {least:,} tokens for {many}{f' and {new} of text' if new else ''}, and decoder.context_length is "
        f"{context:,}",
        f"train with decoder.context_length={least + texts * recipe.data.max_text_tokens}",
    )


def most_new_tokens(recipe: Recipe) -> int:
    """Tokens of a generated text: as many as the recipe allows, and never more than texts had in training."""
    return min(recipe.generate.max_text_tokens, recipe.data.max_text_tokens)


def embeds(recipe: Recipe, *, reranks: bool) -> bool:
    """Whether the embedder is built: for a retriever, or, if candidates are ranked, for a reranker."""
    retriever = available(recipe.retriever)
    retrieves = retriever is not None and retriever.retrieves and retriever.num_retrieved > 0
    return retrieves or (reranks and recipe.reranker is not None)


class _Machine:
    """What keeps this machine from running a recipe's components."""

    def __init__(self, recipe: Recipe, device: str | None) -> None:
        self._recipe, self._device = recipe, device

    @property
    def device(self) -> str:
        """Type of this machine's device; importing torch takes seconds, so it is asked for only where it matters."""
        if self._device is None:
            from cm3run.devices import choose_device

            self._device = choose_device(None).type
        return self._device

    def verdict(self, stage: str) -> Verdict:
        """Whether this machine has all that a stage's components need."""
        for kind in _BUILT[stage]:
            config = self._recipe.section(kind)
            if config is None or isinstance(config, MissingComponent):
                continue
            if kind == "embedder" and not embeds(
                self._recipe, reranks="reranker" in _BUILT[stage]
            ):  # nothing builds it
                continue
            for part in (config, *(inner for _, inner in all_parts(config))):
                if (error := self._error(kind, part, stage)) is not None:
                    return Verdict(error, here=True)
        return YES

    def _error(self, kind: str, part: ComponentConfig, stage: str) -> CM3Error | None:
        if self._fits(part, stage, self._device or "cpu") is None:
            return None
        error = self._fits(part, stage, self.device)
        if error is None:
            return None
        name = self._recipe.component_names[kind]
        return type(error)(f"{kind} {name!r}", error.cause, error.next_step)

    @staticmethod
    def _fits(part: Any, stage: str, device: str) -> CM3Error | None:
        try:
            part.check_machine(device)
            if stage == "train" and part.kind == "attention":
                part.check_training(device)
        except CM3Error as error:
            return error
        return None
