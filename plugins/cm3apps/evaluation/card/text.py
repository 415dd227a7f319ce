"""The card as Markdown, with the metadata that the Hugging Face Hub reads at its head."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from cm3apps.evaluation.card.facts import ModelFacts
from cm3apps.evaluation.card.repeating import repeated
from cm3apps.evaluation.card.results import Evaluated, Measured
from cm3apps.evaluation.icons.report import figure_lines
from cm3apps.evaluation.task_report import figure_lines as task_lines
from cm3apps.markdown_text import code, plain
from cm3run.evaluation.protocol import SHOWN

#: Kinds whose component a card names.
_KINDS = ("decoder", "image_tokenizer", "text_tokenizer", "objective", "retriever", "sampler")
#: Sources of data that a table lists; the rest is summed up.
_MOST_ROWS = 60
#: The line by which a card is known, and for which weights it was written.
_MARK = re.compile(r"<!-- cm3 card 1: weights ([0-9a-f]{64}) -->")


def mark(weights_sha256: str) -> str:
    """The line that says for which weights a card was written."""
    return f"<!-- cm3 card 1: weights {weights_sha256} -->"


def marked_weights(text: str) -> str | None:
    """The weights that a card was written for; None: it is no card."""
    found = _MARK.search(text)
    return None if found is None else found[1]


def card_text(
    facts: ModelFacts,
    results: Sequence[Evaluated | Measured],
    sheets: Mapping[str, str],
    *,
    licence: str | None,
    machine: str | None,
    notes: str,
    command: str,
) -> str:
    """The whole card.

    Args:
        facts: of the model.
        results: whose figures are shown, in this order.
        sheets: protocol -> file of its sheet of pictures, relative to the card.
        licence: of the weights; None: not stated.
        machine: what it was trained on; None: not stated.
        notes: Markdown that ends the limits.
        command: that wrote the card.
    """
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
        *_pictures(results, sheets),
        *_data(facts),
        *_training(facts, machine),
        *_limits(facts, notes),
        "## This card",
        "",
        f"Written by {code(command)} for the weights with the SHA-256 {code(facts.weights_sha256)};",
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


def _figures(facts: ModelFacts, results: Sequence[Evaluated | Measured]) -> list[str]:
    lines = ["## Figures", ""]
    if not results:
        return [*lines, "None were given to the command that wrote this card.", ""]
    for result in results:
        if isinstance(result, Evaluated):
            lines += _scores(facts, result)
        else:
            tasks = result.experiment == "tasks"
            own = task_lines(result.figures) if tasks else figure_lines(result.figures)
            lines += [
                f"### `cm3 experiment {result.experiment}`",
                "",
                f"{result.figures['num']} {'records' if tasks else 'pictures'} of a split at most, the same ones for "
                "every model.",
                "",
                *(f"###{line[2:]}" if line.startswith("## ") else line for line in own),
            ]
    return lines


def _scores(facts: ModelFacts, result: Evaluated) -> list[str]:
    """The table of an evaluation, and what the pictures were generated with."""
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
        # a model that draws with all of its data set is refused without it
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
    """What pictures were generated with."""
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


def _pictures(results: Sequence[Evaluated | Measured], sheets: Mapping[str, str]) -> list[str]:
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
