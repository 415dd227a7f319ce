"""`cm3 task`: list tasks, and show a task's training documents and prompts."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cm3apps.cli import MAX_SEED, add_trust, registry_of, whole_number
from cm3apps.cli.opening import MODEL_TOLD
from cm3core.errors import DataError, FileError
from cm3run import DEFAULT_MODEL
from cm3run.instructions import SLOT
from cm3run.json_text import parse_json
from cm3run.printing import printable

if TYPE_CHECKING:
    from cm3core.document import Document
    from cm3core.interfaces.component import ComponentConfig
    from cm3core.interfaces.task import Task, TaskConfig
    from cm3core.plugins.registry import Registry
    from cm3run.build import Components
    from cm3run.instructions import Forms

HELP = "list tasks, and show a task's training documents and prompts"
EXAMPLE = """  cm3 task list
  cm3 task list --model runs/tuned
  cm3 task show vqa
  cm3 task show vqa task.layout=paper --record '{"question": "What is it?", "answer": "a bell"}'"""
#: Width of a text in a table, in characters.
WIDTH = 60


def configure(parser: ArgumentParser) -> None:
    """Add the actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser(
        "list",
        help="list all tasks with their fields, or those of a model",
        description="List all tasks with their given and requested fields.",
    )
    listing.add_argument(
        "--model", metavar="MODEL", help="only the tasks that this model was tuned for"
    )
    showing = actions.add_parser(
        "show",
        help="print the prompt, the training document, its tokens and their weights",
        description="Print how a task converts a record: the prompt, the training document with its "
        "response in brackets, and the tokens with their loss weights.",
    )
    showing.add_argument(
        "task", metavar="NAME", help="a task; with --model, the model's version of it"
    )
    showing.add_argument(
        "overrides",
        nargs="*",
        metavar="task.KEY=VALUE",
        help="task keys to change, e.g. task.layout=paper",
    )
    showing.add_argument(
        "--record",
        metavar="JSON",
        help="the fields as a JSON object, or a JSON file; pictures are not read, and the "
        "value of a missing field is its name",
    )
    showing.add_argument(
        "--seed",
        type=whole_number(0, MAX_SEED),
        help="draw the wording, as training does (default: the first wording)",
    )
    showing.add_argument(
        "--model",
        metavar="MODEL",
        help=f"take tokenizers, loss weights and the task from this model (default: {MODEL_TOLD}, "
        "without its tasks)",
    )
    for action in (listing, showing):
        add_trust(action)


def run(args: Namespace) -> int:
    """List or show."""
    return _list(args) if args.action == "list" else _show(args)


def _list(args: Namespace) -> int:
    registry = registry_of(args)
    if args.model is not None:
        from cm3run.checkpoint import find_checkpoint, find_model, read_tasks
        from cm3run.checkpoint.carried import with_trusted

        folder = find_checkpoint(find_model(args.model, registry))
        tuned = read_tasks(
            folder,
            with_trusted(registry, folder, args.trust_plugins),
            trust_endpoints=args.trust_endpoints,
        )
        for name, config in tuned.configs.items():
            _print_task(name, config)
            if (forms := tuned.instructions.get(name)) is not None:
                _print_instructions(forms)
        for name, step in tuned.lost.items():
            print(f"{name:<18} the plugin that provides it is not in use; {step}")
        if tuned.plain:
            print(f"{'(plain)':<18} caption before its picture: generate, caption")
        if not tuned.names:
            print("tuned for no task: generate and caption use plain documents")
        return 0
    for name in registry.names("task"):
        _print_task(name, registry.config_class("task", name))
    return 0


def _print_instructions(forms: Forms) -> None:
    """The instructions of a task, below it."""
    print(f"{'':<18} tuned on {len(forms.forms)} instructions ({SLOT}: any words):")
    for form in forms.forms:
        print(f"{'':<20}{printable(form)}")


def _print_task(name: str, config: TaskConfig | type[ComponentConfig]) -> None:
    """One line: fields, and the command that uses it."""
    config_class = config if isinstance(config, type) else type(config)
    serves = vars(config_class).get("serves", "")
    use = f"cm3 {serves}" if serves else "Python: model.do"
    if serves == "structure":
        use = "cm3 generate --condition"
    try:
        made = config() if isinstance(config, type) else config
    except TypeError:  # a plugin's task whose keys have no defaults
        print(f"{name:<18} its keys say: cm3 describe {name}")
        return
    built = cast("TaskConfig", made).build()
    fields = f"{', '.join(built.given)} -> {', '.join(built.responses)}"
    print(f"{name:<18} {fields:<52} {use}")


def _show(args: Namespace) -> int:
    import numpy as np

    from cm3run.checkpoint import find_model, open_checkpoint, read_tasks

    registry = registry_of(args)
    opened = open_checkpoint(
        find_model(args.model or DEFAULT_MODEL, registry),
        registry,
        trust_plugins=args.trust_plugins,
        trust_endpoints=args.trust_endpoints,
    )
    registry = opened.components.registry  # with the trusted plugins
    own = (
        {}
        if args.model is None
        else read_tasks(opened.folder, registry, trust_endpoints=args.trust_endpoints).configs
    )
    task = _task(args, own.get(args.task), registry)
    record = _record(args.record, task, opened.components)
    rng = [None if args.seed is None else np.random.default_rng(args.seed) for _ in range(2)]
    print(f"task {args.task}: {', '.join(task.given)} -> {', '.join(task.responses)}")
    print("prompt")
    _print_document(task.prompt(record, rng[0], place="--record"))
    document = task.document(record, rng[1], place="--record")
    print("document")
    _print_document(document)
    print(f"{'tokens':<{WIDTH}} {'weight':>8} {'response only':>14}")
    for text, weight, alone in _tokens(document, opened.components):
        print(f"  {text:<{WIDTH - 2}} {weight:>8g} {alone:>14g}")
    return 0


def _task(args: Namespace, stored: TaskConfig | None, registry: Registry) -> Task:
    """The task, its keys overridden."""
    from cm3core.config.schema import to_plain
    from cm3core.recipe import recipe_from_yaml
    from cm3run.trust import same_guard, unguarded_class

    keys: dict[str, Any] = {"name": args.task}
    if stored is not None:
        names = [
            name
            for name in registry.names("task")
            if registry.config_class("task", name) is unguarded_class(stored)
        ]
        keys = {**to_plain(stored), "name": names[0]}
    for override in args.overrides:
        if not override.startswith("task."):
            raise DataError(override, "is not task.KEY=VALUE", "write e.g. task.layout=paper")
    text = json.dumps({"task": keys, "vocabulary": {"num_text": 256}})
    config = recipe_from_yaml(text, registry, label="cm3 task show", overrides=args.overrides).task
    assert config is not None
    config.check()
    if stored is not None:  # keys without an override keep the model's values
        config = same_guard(stored, config)
    return config.build()


def _record(given: str | None, task: Task, components: Components) -> dict[str, Any]:
    """The record of the command line, all its fields filled."""
    import numpy as np

    from cm3core.document import Codes

    values: Any = {}
    if given is not None:
        text = given
        if not given.lstrip().startswith("{"):
            try:
                text = Path(given).read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise FileError(
                    f"--record {given}",
                    f"can't be read ({error})",
                    "give a JSON object, or its file",
                ) from error
        values = parse_json(text, "--record", 'write e.g. {"question": "What is it?"}')
        if not isinstance(values, dict):
            raise DataError("--record", "is not a JSON object", 'write e.g. {"caption": "a bell"}')
        if unknown := sorted(set(values) - set(task.fields)):
            raise DataError(
                "--record",
                f"the task has no field {unknown[0]!r}",
                f"its fields are {', '.join(task.fields)}",
            )
    grid = components.image_tokenizer.grid
    blank = Codes(np.zeros(grid[0] * grid[1], np.int32), grid)
    return {
        name: blank if kind == "image" else values.get(name, name)
        for name, kind in task.fields.items()
    }


def _print_document(document: Document) -> None:
    """A line for each segment, responses in brackets, holes as underscores."""
    from cm3core.document import MaskedText, Text, TextHole

    for number, segment in enumerate(document):
        if isinstance(segment, Text):
            text, end = "", 0
            for start, stop in segment.responses:
                text += segment.text[end:start] + f"[{segment.text[start:stop]}]"
                end = stop
            shown = f"text     {text}{segment.text[end:]}"
        elif isinstance(segment, MaskedText):
            parts = [part if isinstance(part, str) else "____" for part in segment.parts]
            shown = f"text     {''.join(parts)}"
        elif isinstance(segment, TextHole):
            shown = "text     ____"
        else:
            asked = getattr(segment, "response", None)
            shown = "picture  " + ("____" if asked is None else "[picture]" if asked else "given")
        print(f"  {number}  {shown}")


def _tokens(document: Document, components: Components) -> Iterator[tuple[str, float, float]]:
    """Text, weight, and weight with `response_only`, for each token; the codes of a picture share a row."""
    import numpy as np

    from cm3core.sequence import loss_weights, only_responses

    serializer, vocabulary = components.serializer, components.vocabulary
    sequence = serializer.sequence(document)
    objective = components.recipe.objective
    weights = loss_weights(
        sequence,
        vocabulary,
        getattr(objective, "retrieved_loss_weight", 1.0),
        getattr(objective, "text_loss_weight", 1.0),
    )
    alone = only_responses(np.array(weights), sequence)
    place = 0
    while place < len(sequence):
        token = int(sequence.tokens[place])
        stop = place + 1
        if token in vocabulary.image:
            text = f"{serializer.num_codes} image codes"
            span = next(one for one in sequence.segments if one.start == place)
            stop = span.stop
        elif vocabulary.is_text(sequence.tokens[place : place + 1]).any():
            text = repr(serializer.text(sequence.tokens[place : place + 1]))
        else:
            text = vocabulary.name(token)
        yield text[: WIDTH - 2], float(weights[place]), float(alone[place])
        place = stop
