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
    SEVERAL_HOLES,
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
#: Commands that choose among the recipe's number of candidates.
_DRAWING = ("generate", "generate --condition", "infill")
METHODS: Mapping[str, Method] = {
    "generate": "generate",
    "generate --condition": "structure",
    "edit": "edit",
    "caption": "caption",
    "ask": "ask",
}


@dataclass(frozen=True)
class Verdict:
    """Whether a command works with a recipe.

    Args:
        error: why it doesn't; None: it works.
        here: whether only this machine is in the way: a device, a package or memory that it lacks.
        force: whether it works all the same with `--force`: only the training that its results need is missing.
    """

    error: CM3Error | None = None
    here: bool = False
    force: bool = False

    @property
    def runs(self) -> bool:
        """Whether the command works, on this machine."""
        return self.error is None

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON: `runs`, and of a command that doesn't run `place`, `cause`, `next_step`,
        `this_machine` and `force`."""
        if self.error is None:
            return {"runs": True}
        error = self.error
        parts = {"place": error.place, "cause": error.cause, "next_step": error.next_step}
        return {"runs": False, **parts, "this_machine": self.here, "force": self.force}


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
    for command, found in _verdicts(recipe, choice):
        here = drawing if command in _DRAWING else writing
        if found.error is None:
            life[command] = here
        else:
            life[command] = replace(found, force=found.force and here.runs)
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
        needed += [WORDS] if _has_own_words(prompt) else []
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


def _has_own_words(prompt: Document) -> bool:
    """Whether a prompt for the example record has words besides the record's."""
    return any(text not in ("", EXAMPLE) for text in _texts_of(prompt))


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


def _verdicts(recipe: Recipe, choice: TaskChoice) -> Iterator[tuple[str, Verdict]]:
    """(command, whether it can work) of the commands that use a model, whatever the machine."""
    for command, method in METHODS.items():
        forced = _error_of(recipe, command, choice, method, force=True)
        if method in PLAIN or choice.serves(method):
            error = _error_of(recipe, command, choice, method)
            yield command, Verdict(error, force=forced is None)
        else:
            yield command, _untrained(command, forced)
        if command == "edit":
            yield "infill", Verdict(_infill_error(recipe))
    yield "chat", _chat_verdict(recipe, choice)


def choice_of(recipe: Recipe, registry: Registry) -> TaskChoice:
    """Chooses tasks for a model that a recipe trains."""
    layout = available(recipe.layout)
    return TaskChoice(TunedTasks.of(recipe), registry, layout is None or layout.has_sentinels)


def _error_of(
    recipe: Recipe,
    command: str,
    choice: TaskChoice,
    method: Method,
    name: str | None = None,
    *,
    force: bool = False,
) -> CM3Error | None:
    if recipe.sampler is None:
        return RecipeError(
            "sampler", f"is not in the recipe, and {command} needs one", "add sampler=cfg"
        )
    try:
        task = choice.task_for(method, name, force=force)
    except CM3Error as error:
        return error
    prompt = prompt_of(task)
    found = _prompt_error(recipe, command, prompt, fills=choice.fills)
    if found is None and command in _DRAWING and _hides_texts(recipe, prompt):
        return _lacking(recipe, SEVERAL_HOLES, command)
    return found


def _hides_texts(recipe: Recipe, prompt: Document) -> bool:
    """Whether choosing among candidates hides several texts of a prompt."""
    reranker = available(recipe.reranker)
    if reranker is None or not ranks(recipe) or not reranker.hides_texts:
        return False
    return sum(isinstance(segment, Text) and bool(segment.text) for segment in prompt) > 1


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


def _chat_verdict(recipe: Recipe, choice: TaskChoice) -> Verdict:
    if (name := choice.conversing()) is not None:
        return Verdict(_error_of(recipe, "chat", choice, "ask", name))
    layout = available(recipe.layout)
    in_turns = layout is not None and layout.offers().get(TURNS) is True
    name = None if in_turns else choice.conversing(untuned=True)
    if name is None:
        error = _first_lack(recipe, "chat", (TURNS, TEXT))
    else:
        error = _error_of(recipe, "chat", choice, "ask", name, force=True)
    if choice.tuned.turns:
        return Verdict(error)
    return _untrained("chat", error)


def _untrained(command: str, error: CM3Error | None) -> Verdict:
    """The verdict on a command that only tuned models run without --force.

    Args:
        command: which one.
        error: why it can't work with --force either.
    """
    told = GenerationError(
        command,
        "the recipe trains on no such examples, so its results would be meaningless",
        f"train on some (docs/tuning.md){', or give --force' if error is None else ''}",
    )
    return Verdict(told, force=error is None)


#: A text of an example record.
EXAMPLE = "a"


def prompt_of(task: Task, text: str = EXAMPLE) -> Document:
    """A task's prompt for an example record, whose texts are all `text`."""
    example = {"text": text, "image": Codes(np.zeros(1, np.int32), (1, 1))}
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
    if _has_own_words(prompt):
        found.append(WORDS)
    if any(isinstance(part, TextHole) for part in parts):
        found.append(TEXT)
    if any(isinstance(part, (Codes, Image)) and not ends_missing(part) for part in parts):
        found.append(PREFIX)
    if num_holes(prompt) != 1 or not continues:
        found.append(HOLES)
    if num_holes(prompt) > 1:
        found.append(SEVERAL_HOLES)
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


def ranks(recipe: Recipe) -> bool:
    """Whether a reranker chooses among candidates of a picture."""
    return recipe.reranker is not None and recipe.generate.num_candidates > 1


def embeds(recipe: Recipe, *, reranks: bool) -> bool:
    """Whether the embedder is built: for a retriever, or for a reranker."""
    retriever = available(recipe.retriever)
    retrieves = retriever is not None and retriever.retrieves and retriever.num_retrieved > 0
    return retrieves or reranks


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
        reranks = "reranker" in _BUILT[stage] and ranks(self._recipe)
        unused = set() if reranks else {"reranker"}
        unused |= set() if embeds(self._recipe, reranks=reranks) else {"embedder"}
        for kind in _BUILT[stage]:
            config = self._recipe.section(kind)
            if config is None or isinstance(config, MissingComponent) or kind in unused:
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
