"""A model's card in Markdown: facts about the model, stored results (folders of `cm3 eval`) with the commands that made
them, and the metadata for the Hugging Face Hub at its head.
"""

from __future__ import annotations

import json
import re
import shlex
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

from cm3apps.evaluation.made import weights_sha256
from cm3apps.evaluation.reading import read_scores
from cm3apps.evaluation.run_options import run_options
from cm3apps.markdown_text import code, plain
from cm3core.errors import DataError
from cm3core.images import open_image
from cm3core.plugins.registry import Registry
from cm3run.checkpoint import WEIGHTS, find_checkpoint, find_model, read_state
from cm3run.evaluation.protocol import SHOWN
from cm3run.model import Model
from cm3run.training.data_notes import counted, stored_provenance


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a model.

    Args:
        name: its name for `cm3` commands.
        recipe, recipe_hash: its recipe's name and hash.
        weights_sha256: the hash of the decoder's tensors, see `weights_sha256`.
        components: kind -> the recipe's component.
        num_parameters: parameters of the decoder.
        num_bytes: bytes of its weights file.
        image_size: (height, width) of its pictures, in pixels.
        num_codes, codebook_size: codes per picture, and size of the image tokenizer's codebook.
        context_length, max_text_tokens: in tokens.
        steps, tokens, seconds: of training; 0 if the checkpoint does not have them.
        tasks: the tasks that it was tuned for.
        data_set, split: the names of its data set and split.
        trained_on: licences, sources and attributions of its training documents, with counts.
        retrieves_from: the same for its memory; empty if it does not retrieve.
    """

    name: str
    recipe: str
    recipe_hash: str
    weights_sha256: str
    components: Mapping[str, str]
    num_parameters: int
    num_bytes: int
    image_size: tuple[int, int]
    num_codes: int
    codebook_size: int
    context_length: int
    max_text_tokens: int
    steps: int
    tokens: int
    seconds: float
    tasks: Sequence[str]
    data_set: str
    split: str
    trained_on: Sequence[Mapping[str, Any]]
    retrieves_from: Sequence[Mapping[str, Any]]


def facts_of(name: str, model: Model, registry: Registry) -> ModelFacts:
    """The facts from a loaded model and its folder.

    Raises:
        CheckpointError: the folder's state can't be read.
    """
    folder = find_checkpoint(find_model(name, registry))
    state = read_state(folder)
    recipe, components = model.recipe, model.components
    tokenizer = components.image_tokenizer
    rows, columns = tokenizer.grid
    parameters = components.decoder.module.parameters()
    retrieves = recipe.retriever is not None and recipe.retriever.num_retrieved > 0
    known = stored_provenance(folder)
    trained_on = known.get("trained_on") or counted(components.source)
    # the run recorded the memory of training; `generate.memory_split` may name another one
    same = known.get("memory") if components.memory_split is None else None
    memory = (same or counted(components.memory)) if retrieves else []
    return ModelFacts(
        name=name,
        recipe=recipe.name,
        recipe_hash=recipe.hash,
        weights_sha256=weights_sha256(model),
        components=dict(recipe.component_names),
        num_parameters=sum(one.numel() for one in parameters),
        num_bytes=(folder / WEIGHTS).stat().st_size,
        image_size=tokenizer.image_size,
        num_codes=rows * columns,
        codebook_size=tokenizer.codebook_size,
        context_length=int(getattr(recipe.decoder, "context_length", 0)),
        max_text_tokens=recipe.data.max_text_tokens,
        steps=state.step,
        tokens=state.tokens,
        seconds=float(state.elapsed_s),
        tasks=tuple(model.tasks.names),
        data_set=recipe.component_names.get("dataset", ""),
        split="" if recipe.dataset is None else recipe.dataset.split,
        trained_on=trained_on,
        retrieves_from=memory,
    )


#: Options for the machine, the label and trust, which don't affect the measurement.
_OWN = ("help", "out", "label", "device", "threads", "trust_plugins", "trust_endpoints", "verbose")


class _Parser(ArgumentParser):
    """Raises `ValueError` instead of exiting."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def repeated(arguments: Sequence[str], model: str) -> str | None:
    """The command of `cm3 eval run` from these arguments of `cm3`, with the model's current name.

    None if they belong to another command or to none.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--plugin", action="append", default=[])
    parser.add_argument("-v", "--verbose", action="store_true")
    run_options(parser)
    try:
        given = parser.parse_intermixed_args(arguments)
    except ValueError:
        return None
    command, *names = given.names
    names = names[1:] if names[:1] == ["run"] else names
    if command != "eval" or len(names) != 2:
        return None
    before: list[str] = []
    after: list[str] = []
    for action in parser._actions:
        value = getattr(given, action.dest, action.default)
        if action.option_strings and action.dest not in _OWN and value != action.default:
            place = before if action.dest == "plugin" else after
            place += _written(action.option_strings[-1], value)
    return shlex.join(["cm3", *before, "eval", "run", model, names[1], *after])


def _written(option: str, value: Any) -> list[str]:
    if value is True:
        return [option]
    values = value if isinstance(value, list) else [value]
    return [word for one in values for word in (option, str(one))]


SCORES, SAMPLES = "scores.json", "samples.jsonl"
ENVIRONMENT = "environment.json"


@dataclass(frozen=True)
class Evaluated:
    """An evaluation.

    Args:
        folder: its folder.
        scores: the content of its scores.json.
        samples: the lines of its samples.jsonl that have a picture, in the order of their numbers.
        arguments: the arguments of the `cm3` that made it; empty if unknown.
    """

    folder: Path
    scores: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]]
    arguments: Sequence[str] = ()

    @property
    def protocol(self) -> str:
        """Its protocol's name."""
        return str(self.scores["protocol"]["name"])

    def pictures(self, num: int) -> list[tuple[str, Any]]:
        """(prompt, pixels) of the first `num` samples."""
        return [
            (str(row["prompt"]), open_image(self.folder / row["picture"]))
            for row in self.samples[:num]
        ]


def read_result(folder: Path, weights_sha256: str) -> Evaluated:
    """The evaluation in a folder.

    Raises:
        DataError: it is missing, damaged, or of other weights.
    """
    if not (folder / SCORES).is_file():
        raise DataError(
            str(folder), f"holds no {SCORES}", "name the folder of a finished `cm3 eval`"
        )
    scores = read_scores(folder)
    model = scores.get("model")
    stated = model.get("weights_sha256") if isinstance(model, dict) else None
    if stated != weights_sha256:
        told = f"the weights {stated[:12]}..." if isinstance(stated, str) else "no model's weights"
        raise DataError(
            str(folder),
            f"is of {told}, the model has {weights_sha256[:12]}...",
            "measure this model, and name that folder",
        )
    return Evaluated(folder, scores, _samples(folder), _arguments(folder))


def _samples(folder: Path) -> list[dict[str, Any]]:
    path = folder / SAMPLES
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert all(isinstance(row, dict) for row in rows)
        made = [row for row in rows if "picture" in row]
        assert all(isinstance(row["prompt"], str) and _is_inside(row["picture"]) for row in made)
    except (OSError, ValueError, TypeError, KeyError, AssertionError, RecursionError) as error:
        raise DataError(str(path), "is missing or damaged", "evaluate again") from error
    return made


def _arguments(folder: Path) -> list[str]:
    """The arguments, or nothing if they can't be read, because no figure depends on them."""
    try:
        words = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))["arguments"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []
    return [str(word) for word in words] if isinstance(words, list) else []


def _is_inside(name: object) -> bool:
    """Whether a picture's name is inside the folder of its evaluation."""
    return isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts


#: Kinds whose component a card names.
_KINDS = ("decoder", "image_tokenizer", "text_tokenizer", "objective", "retriever", "sampler")
#: Maximum number of data sources in a table; the rest is summed up.
_MOST_ROWS = 60
#: The line that identifies a card and its weights.
_MARK = re.compile(r"<!-- cm3 card 1: weights ([0-9a-f]{64}) -->")


def mark(weights_sha256: str) -> str:
    """The line that identifies a card and its weights."""
    return f"<!-- cm3 card 1: weights {weights_sha256} -->"


def marked_weights(text: str) -> str | None:
    """The weights that a card was written for; None if the text is not a card."""
    found = _MARK.search(text)
    return None if found is None else found[1]


@dataclass(frozen=True, kw_only=True)
class Stated:
    """Statements by the card's author.

    Args:
        licence: the licence of the weights, or None.
        machine: the machine of the training, or None.
        notes: Markdown to append to the limits.
        command: the command that wrote the card.
    """

    licence: str | None
    machine: str | None
    notes: str
    command: str


def card_text(
    facts: ModelFacts,
    results: Sequence[Evaluated],
    sheets: Mapping[str, str],
    stated: Stated,
) -> str:
    """The whole card.

    Args:
        facts: the facts about the model.
        results: the results to show, in this order.
        sheets: protocol -> file of its sheet of pictures, relative to the card.
        stated: the author's statements.
    """
    licence = stated.licence
    head = ["---", f"license: {json.dumps(licence.lower())}"] if licence else ["---"]
    lines = [
        *head,
        "library_name: cm3leon",
        "pipeline_tag: text-to-image",
        "---",
        mark(facts.weights_sha256),
        "",
        f"# {code(facts.name)}",
        "",
        *_model(facts, licence),
        *_figures(facts, results),
        *_pictures(sheets),
        *_data(facts),
        *_training(facts, stated.machine),
        *_limits(facts, stated.notes),
        "## This card",
        "",
        f"Written by {code(stated.command)} for the weights with the SHA-256 {code(facts.weights_sha256)};",
        f"{code('cm3 eval card MODEL --check CARD.md')} says whether a model still has these weights.",
        "",
    ]
    return "\n".join(lines)


def _model(facts: ModelFacts, licence: str | None) -> list[str]:
    height, width = facts.image_size
    components = [
        f"{kind.replace('_', ' ')} {code(facts.components[kind])}"
        for kind in _KINDS
        if facts.components.get(kind)
    ]
    tasks = ", ".join(map(code, facts.tasks)) if facts.tasks else "none"
    rows = [
        ("recipe", f"{code(facts.recipe)}, hash {code(facts.recipe_hash)}"),
        (
            "parameters",
            f"{facts.num_parameters:,} in the decoder; a file of {_bytes(facts.num_bytes)}",
        ),
        (
            "pictures",
            f"{width} x {height} pixels, {facts.num_codes} codes of {facts.codebook_size:,}",
        ),
        ("sequence", f"{facts.context_length:,} tokens; {facts.max_text_tokens} of a text"),
        ("components", ", ".join(components)),
        ("tasks that it was tuned for", tasks),
        ("licence of the weights", plain(licence) if licence else "not stated"),
    ]
    return [*_table(("", ""), rows), ""]


def _figures(facts: ModelFacts, results: Sequence[Evaluated]) -> list[str]:
    lines = ["## Figures", ""]
    if not results:
        return [*lines, "None were given to the command that wrote this card.", ""]
    return [*lines, *(line for result in results for line in _scores(facts, result))]


def _scores(facts: ModelFacts, result: Evaluated) -> list[str]:
    """The table of an evaluation, and the settings of its pictures."""
    scores = result.scores
    rows = []
    for one in scores["scores"]:
        if "skipped" in one:
            rows.append((code(one["name"]), "n/a", "", plain(str(one["skipped"])), ""))
            continue
        spread = "" if one.get("spread") is None else f" \u00b1 {one['spread']:.2g}"
        beside = [f"{name} {value:.4g}" for name, value in one.get("beside", {}).items()]
        if one.get("real_against_real") is not None:
            beside.append(f"real against real {one['real_against_real']:.4g}")
        if one.get("note"):
            beside.append(str(one["note"]))
        arrow = "higher" if one["higher_is_better"] else "lower"
        rows.append(
            (
                code(one["name"]),
                f"{one['value']:.4g}{spread}",
                arrow,
                plain(", ".join(beside)),
                code(one["hash"]),
            )
        )
    sha256 = str(scores["protocol"]["sha256"])[:SHOWN]
    head = ("score", "value", "better", "read against", "measurement")
    leaks = scores.get("leakage", {}).get("leaks") or []
    warning = (
        [f"Its memory held {len({key for _, key, _ in leaks})} of the reference pictures.", ""]
        if leaks
        else []
    )
    command = repeated(result.arguments, facts.name)
    if command is None:
        # without it, a model that retrieves from its whole data set is refused
        split = scores["model"].get("memory_split")
        command = f"cm3 eval run {facts.name} {result.protocol}" + (
            f" --memory-split {split}" if split else ""
        )
    return [
        f"### {plain(result.protocol)}",
        "",
        f"Protocol {code(f'{result.protocol}#{sha256}')}: {code(command)};",
        f"{_how(scores['model'])}.",
        "",
        *warning,
        *_table(head, rows),
        "",
    ]


def _how(model: Mapping[str, Any]) -> str:
    """The settings of generated pictures."""
    sampler = model.get("sampler", {})
    words = [f"sampler {code(str(sampler.get('name', '')))}"]
    words += [
        f"{key.replace('_', ' ')} {sampler[key]:g}"
        for key in ("guidance_scale", "temperature", "top_p")
        if isinstance(sampler.get(key), (int, float))
    ]
    number = model.get("num_retrieved", 0)
    words.append(f"{number or 'no'} document{'s' * (number != 1)} prepended")
    if model.get("num_candidates", 1) > 1:
        words.append(f"the best of {model['num_candidates']} by {code(str(model.get('reranker')))}")
    return ", ".join(words)


def _pictures(sheets: Mapping[str, str]) -> list[str]:
    if not sheets:
        return []
    lines = [
        "## Pictures",
        "",
        "The first samples of each protocol by their numbers; none was selected.",
        "",
    ]
    for name, file in sheets.items():
        lines += [f"![the first pictures of {plain(name)}]({quote(file)})", ""]
    return lines


def _data(facts: ModelFacts) -> list[str]:
    number = sum(row["documents"] for row in facts.trained_on)
    lines = [
        "## Data",
        "",
        f"Trained on {number:,} documents of the data set {code(facts.data_set)}, split {code(facts.split)}:",
        "",
        *_sources(facts.trained_on),
    ]
    if not facts.retrieves_from:
        return [*lines, "It retrieves nothing.", ""]
    if list(facts.retrieves_from) == list(facts.trained_on):
        return [*lines, "It retrieves from the same documents.", ""]
    return [*lines, "It retrieves from:", "", *_sources(facts.retrieves_from)]


def _sources(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    shown = [
        (
            f"{row['documents']:,}",
            plain(str(row["licence"])),
            plain(str(row.get("source", ""))),
            plain(str(row.get("attribution", ""))),
        )
        for row in rows[:_MOST_ROWS]
    ]
    if rest := rows[_MOST_ROWS:]:
        licences = ", ".join(sorted({str(row["licence"]) for row in rest}))
        number = sum(row["documents"] for row in rest)
        shown.append((f"{number:,}", plain(licences), f"{len(rest)} more sources", ""))
    return [*_table(("documents", "licence", "source", "attribution"), shown), ""]


def _training(facts: ModelFacts, machine: str | None) -> list[str]:
    hours = facts.seconds / 3600
    time = f"{hours:.1f} hours" if hours >= 1.5 else f"{facts.seconds / 60:.1f} minutes"
    place = plain(machine) if machine else "a machine that was not stated"
    flops = 6 * facts.num_parameters * facts.tokens
    return [
        "## Training",
        "",
        f"{facts.steps:,} steps, {facts.tokens:,} tokens, {time} on {place}; about {flops:.1e} floating-point",
        "operations (six a parameter and token).",
        "",
    ]


def _limits(facts: ModelFacts, notes: str) -> list[str]:
    height, width = facts.image_size
    number = sum(row["documents"] for row in facts.trained_on)
    rows = [
        f"It has seen {number:,} documents and nothing else: prompts about other things get pictures of something else.",
        f"A picture has {facts.num_codes} codes; details that these can't hold are lost, also where a picture is "
        f"only edited. Larger pictures than {width} x {height} pixels are enlarged ones.",
        f"Only the first {facts.max_text_tokens} tokens of a text are read.",
        "No filter looks at prompts or pictures.",
    ]
    if facts.retrieves_from:
        rows.append(
            "Pictures may follow a prepended document closely; `cm3 provenance PICTURE` names it with its licence."
        )
    if not facts.tasks:
        rows.append(
            "It was not tuned: it draws, captions and inpaints, and neither edits by instruction nor answers questions."
        )
    return [
        "## Limits",
        "",
        *(f"- {row}" for row in rows),
        "",
        *([notes.strip(), ""] if notes.strip() else []),
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in lines]


def _bytes(number: int) -> str:
    return f"{number / 1e6:.1f} MB" if number < 1e9 else f"{number / 1e9:.1f} GB"
