"""The quickstart's `report.md`: the run and all measurements, with the pictures."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import cm3core
from cm3apps.evaluation.evaluating import SHEET
from cm3apps.evaluation.measured import COPIED, RECONSTRUCTED
from cm3apps.markdown_text import code, plain
from cm3apps.quickstart.judged import FOLDER, judged_of, judged_split
from cm3apps.quickstart.pictures import write_curves
from cm3apps.quickstart.showing import num_named
from cm3core.errors import MissingPackageError
from cm3core.files import write_text
from cm3core.recipe.recipe import files_of
from cm3run.training.metrics import read_metrics

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import DocumentSourceConfig, Judged
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe

#: First score of a table -> what it means.
_MEANINGS = {
    "usable": "Usable: the asked thing, in the asked hand, and no copy of a document or of a drawing of the memory.",
    "scenes": "Right: all objects in number, size and place, the background, and nothing else. The other columns are percentages "
    "of the pictures whose prompt says the fact (object: of one kind of object; objects: of several); documents: of the prompts "
    "whose documents show every named object.",
    "scene_caption": "True: in any of the data set's wordings.",
}
#: What stands beside the scores of what was drawn -> its row.
_BESIDE = {
    RECONSTRUCTED: "real, after the image tokenizer: the ceiling",
    COPIED: "first document, copied",
}


def write_report(
    out: Path,
    recipe: Recipe,
    registry: Registry,
    training: dict[str, Any],
    drawn: dict[str, Any],
    command: str,
) -> Path:
    """Write `report.md`, the curves if matplotlib is installed, and the resolved recipe; return the
    report's path."""
    try:
        write_curves(out / "losses.png", read_metrics(out / "run"))
        curves = "![losses](losses.png)"
    except MissingPackageError as error:
        curves = (
            f"Without {error.place}, because {error.cause}: {code(error.next_step)}; the command "
            "above then adds them."
        )
    for name, text in files_of(recipe, registry).items():
        write_text(out / name, text)
    config = recipe.dataset
    assert config is not None
    pictures = [_answers(out, drawn), _judged(out, drawn, config)]
    if not any(one["kind"] for one in drawn["answers"]):  # only drawn, as the judged ones are
        pictures.reverse()
    parts = [
        _head(command),
        *pictures,
        _run(training, drawn),
        _captions(drawn),
        _losses(training, curves),
        _again(out, drawn),
    ]
    path = out / "report.md"
    write_text(path, "\n".join(parts))
    return path


def _head(command: str) -> str:
    lines = [
        "# cm3 quickstart: report",
        "",
        f"Made by {code(command)} with cm3leon {cm3core.__version__} on {platform.machine()} "
        f"({os.cpu_count()} cores, torch {torch.__version__}).",
        "",
    ]
    return "\n".join(lines)


def _run(training: dict[str, Any], drawn: dict[str, Any]) -> str:
    return "\n".join(["## The run", "", *run_rows(training, drawn), ""])


def run_rows(training: dict[str, Any], drawn: dict[str, Any]) -> list[str]:
    """The time and memory of the run, as a table in Markdown.

    Args:
        training: the content of training.json.
        drawn: the content of drawn.json.
    """
    memory = max(training["peak_memory_bytes"], drawn["peak_memory_bytes"])
    speed = training["tokens"] / max(training["seconds"], 1e-9)
    return [
        "| | |",
        "| --- | --- |",
        f"| training | {training['seconds'] / 60:.1f} minutes, {training['step']:,} steps, "
        f"{training['tokens']:,} tokens ({speed:,.0f} tokens a second) |",
        f"| generating and judging all of this | {drawn['drawing_seconds'] / 60:.1f} minutes |",
        f"| total of this run | {drawn['minutes']:.1f} minutes |",
        f"| peak memory | {memory / 2**30:.2f} GiB |",
    ]


def _answers(out: Path, drawn: dict[str, Any]) -> str:
    """What the model answers to prompts: found, restyled or composed."""
    if not drawn["answers"]:
        return ""
    lines = ["## Answers to prompts", ""]
    if (out / "answers.png").exists():
        lines += ["![answers](answers.png)", ""]
    lines += ["| prompt | answer |", "| --- | --- |"]
    lines += [
        f"| {plain(one['prompt'])} | {plain(one['told'] or 'drawn')} |" for one in drawn["answers"]
    ]
    return "\n".join([*lines, ""])


def _judged(out: Path, drawn: dict[str, Any], config: DocumentSourceConfig) -> str:
    """What was drawn of held-out documents: of each kind a sheet, then its scores; and the first scores of all."""
    lines = ["## Held-out documents", ""]
    judged, meanings = {one.name: one for one in judged_of(config)}, {**_MEANINGS}
    rows = ["| | cases | | this run | ceiling |", "| --- | --- | --- | --- | --- |"]
    for name, scores in drawn["scores"].items():
        own = judged.get(name) or judged_split(config, name)
        lines += [f"### {own.title[:1].upper()}{own.title[1:]}", ""]
        sheet = f"{FOLDER}/{name}/{SHEET}"
        if (out / sheet).exists():
            lines += [f"![{plain(name)}]({sheet})", ""]
        first = next(iter(own.headings), "")
        meaning = [meanings.pop(first), ""] if first in meanings else []  # told once
        lines += [*score_rows(scores, own.headings), "", *meaning, *_nats(scores), ""]
        rows += _summary(own, scores)
    how = (
        "The first documents of each split by a hash of their ids, one sample of each, none selected; scores with standard "
        "errors. A sheet shows the first cases. The rows below the first are of real pictures and of copies, for comparison."
    )
    table = ["### All scores", "", *rows, ""] if len(rows) > 2 else []
    return "\n".join([*lines, *table, how, ""])


def _summary(judged: Judged, scores: dict[str, Any]) -> list[str]:
    """The row of one kind of documents: the first score, and that of the real pictures after the image tokenizer."""
    for name, heading in judged.headings.items():
        for one in scores["scores"]:
            if one["name"] != name or "value" not in one:
                continue
            beside, spread = one.get("beside", {}), one.get("beside_spread", {})
            ceiling = _score(beside.get(RECONSTRUCTED), spread.get(RECONSTRUCTED))
            own = _score(one["value"], one["spread"])
            return [f"| {judged.title} | {one['num']} | {heading} | {own} | {ceiling} |"]
    return []


def score_rows(scores: dict[str, Any], headings: Mapping[str, str]) -> list[str]:
    """The scores of what was drawn, and those of real drawings and copies, as a table in Markdown.

    Args:
        scores: the content of scores.json.
        headings: name of a score to show -> its heading; if there is none of these, all are shown.
    """
    found = {one["name"]: one for one in scores["scores"] if "value" in one}
    names = [name for name in headings if name in found]
    names = names or [name for name in found if not name.endswith("_nats")]
    beside = list(dict.fromkeys(row for name in names for row in found[name].get("beside", {})))
    head = ["", *(headings.get(name, name) for name in names)]
    rows = [head, ["---"] * len(head)]
    rows.append(["**this run**", *(_score(found[n]["value"], found[n]["spread"]) for n in names)])
    for row in beside:
        own = (found[name] for name in names)
        values = [
            _score(one.get("beside", {}).get(row), one.get("beside_spread", {}).get(row))
            for one in own
        ]
        rows.append([_BESIDE.get(row, row), *values])
    return [f"| {' | '.join(row)} |" for row in rows]


def _score(value: float | None, spread: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if spread is None else f"{value:.3g} ± {spread:.2g}"


def _nats(scores: dict[str, Any]) -> list[str]:
    """The loss on the real pictures, in a sentence."""
    return [
        f"{one['num']} pictures. Loss on the real ones, given prompt and documents: {one['value']:.3f} "
        f"nats a code ({plain(one['name'])})."
        for one in scores["scores"]
        if one["name"].endswith("_nats") and "value" in one
    ]


def caption_rows(drawn: dict[str, Any]) -> list[str]:
    """The number of captions that name the right object, as a table in Markdown."""
    rows = ["| captions of | pictures | name the thing |", "| --- | --- | --- |"]
    for split, captions in drawn["captions"].items():
        rows.append(f"| {_title(split)} | {len(captions)} | {num_named(captions)} |")
    return rows


def repair_rows(drawn: dict[str, Any]) -> list[str]:
    """Mean absolute errors of inpainted boxes and of white ones, as a table in Markdown."""
    rows = ["| pictures | number | inpainted | left white |", "| --- | --- | --- | --- |"]
    for split, own in drawn["repairs"].items():
        rows.append(
            f"| {_title(split)} | {own['num']} | {own['inpainted']:.3f} | {own['white']:.3f} |"
        )
    return rows


def _title(split: str) -> str:
    return "what it was trained on (`train`)" if split == "train" else f"`{plain(split)}`"


def _captions(drawn: dict[str, Any]) -> str:
    if not drawn["captions"] and not drawn["repairs"]:
        why = "No captions and no inpainting: the objective masks nothing, so the model only continues."
        return "\n".join(["## Captions", "", why, ""])
    lines = ["## Captions", "", *caption_rows(drawn), ""] if drawn["captions"] else []
    for split, captions in drawn["captions"].items():
        lines += [
            f"![captions, {plain(split)}](captions-{split}.png)",
            "",
            f"| written for {_title(split)} | real |",
            "| --- | --- |",
        ]
        lines += [
            f"| {plain(caption['written'])} | {plain(caption['real'])} |" for caption in captions
        ]
        lines.append("")
    if not drawn["repairs"]:
        return "\n".join(lines)
    lines += [
        "## Inpainted pictures",
        "",
        "The grey box is cut out and inpainted from its surroundings and the text; mean absolute error of the box, 0 to 1.",
        "",
        *repair_rows(drawn),
        "",
    ]
    for split in drawn["repairs"]:
        lines += [f"![inpainted, {plain(split)}](inpainted-{split}.png)", ""]
    return "\n".join(lines)


def _losses(training: dict[str, Any], curves: str) -> str:
    lines = ["## Losses", "", curves, "", *loss_rows(training), ""]
    return "\n".join(lines)


def loss_rows(training: dict[str, Any]) -> list[str]:
    """The final losses of training by modality, as a table in Markdown.

    Args:
        training: the content of training.json.
    """
    return [
        "| at the end of training | nats a token |",
        "| --- | --- |",
        *(
            f"| {plain(name)} | {value:.3f} |"
            for name, value in sorted(training["metrics"].items())
            if "_loss" in name
        ),
    ]


def _again(out: Path, drawn: dict[str, Any]) -> str:
    model = shlex.quote(str(out / "model"))
    prompt = next((one["prompt"] for one in reversed(drawn["answers"])), "")
    run = out / "run"
    watching = [f"tensorboard --logdir {shlex.quote(str(run))}"] * (run / "tensorboard").is_dir()
    return "\n".join(
        [
            "## Next steps",
            "",
            "```bash",
            f"cm3 generate {shlex.quote(prompt)} --model {model} --n 4 -o drawn",
            f"cm3 caption picture.png --model {model}",
            f"cm3 infill picture.png --box 16,16,48,48 --model {model} -o repaired.png",
            *watching,
            "```",
            "",
            "The resolved recipe is in [recipe.yaml](recipe.yaml). To train it again, or longer, "
            "use `cm3 train recipe.yaml`.",
            "",
        ]
    )
