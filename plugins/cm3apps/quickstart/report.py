"""The quickstart's `report.md`: the run and all measurements, with the pictures."""

from __future__ import annotations

import os
import platform
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import cm3core
from cm3apps.markdown_text import code, plain
from cm3apps.quickstart.pictures import write_curves
from cm3apps.quickstart.showing import num_named
from cm3core.errors import MissingPackageError
from cm3core.files import write_text
from cm3core.recipe.recipe import files_of
from cm3run.training.metrics import read_metrics

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe

SPLITS = {
    "train": "what it was trained on (`train`)",
    "comp": "a drawing held out, its name in `train` in other sets or styles (`comp`)",
    "compose": "two parts of names of `train`, held out together (`compose`)",
    "unseen": "held out by name, in all versions (`unseen`)",
    "valid": "held-out documents (`valid`)",
}
#: The prepended document, by condition: for icons, for other data sets.
DOCUMENTS = {"version": "another version", "retrieved": "what was retrieved"}


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
    parts = [
        _head(training, drawn, command),
        _pictures(out, drawn),
        _captions(drawn),
        _losses(training, curves),
        _again(out),
    ]
    path = out / "report.md"
    write_text(path, "\n".join(parts))
    return path


def _head(training: dict[str, Any], drawn: dict[str, Any], command: str) -> str:
    lines = [
        "# cm3 quickstart: report",
        "",
        f"Made by {code(command)} with cm3leon {cm3core.__version__} on {platform.machine()} "
        f"({os.cpu_count()} cores, torch {torch.__version__}).",
        "",
        *run_rows(training, drawn),
        "",
    ]
    return "\n".join(lines)


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
        f"| generating everything below | {drawn['drawing_seconds'] / 60:.1f} minutes; "
        f"{drawn['generation_tokens_per_second']:,.0f} image tokens a second |",
        f"| total of this run | {drawn['minutes']:.1f} minutes |",
        f"| peak memory | {memory / 2**30:.2f} GiB |",
    ]


def _pictures(out: Path, drawn: dict[str, Any]) -> str:
    lines = ["## Pictures generated for prompts", ""]
    if drawn["splits"]:
        among = max(int(own["real"]["among"]) for own in drawn["splits"].values())
        lines += [
            "Nats a code: the loss on the real picture, given its caption and any prepended document (lower is "
            "better). R@1 and R@5: how often the real",
            f"picture is the nearest, or among the five nearest, of {among} real ones"
            + (" of the same set and style" if drawn["documents"] == "version" else "")
            + ", by the",
            "squared difference of blurred pictures of 32 x 32 pixels; by chance "
            f"{1 / among:.2f} and {5 / among:.2f}. One sample of each, none selected.",
            "",
            *picture_rows(drawn),
            "",
        ]
    for split in drawn["splits"]:
        if (out / f"pictures-{split}.png").exists():
            lines += [
                f"### {_title(split)[:1].upper()}{_title(split)[1:]}",
                "",
                f"![{plain(split)}](pictures-{split}.png)",
                "",
            ]
    return "\n".join(lines)


def picture_rows(drawn: dict[str, Any]) -> list[str]:
    """The measurements of each split, as a table in Markdown.

    Args:
        drawn: the content of drawn.json.
    """
    documents = drawn["documents"]
    head = ["asked for", "pictures", "nats a code"]
    if documents is not None:
        head += [f"after {DOCUMENTS[documents]}", "gain"]
    head += ["real", "drawn"]
    if documents is not None:
        head += [f"drawn after {DOCUMENTS[documents]}", "copies of that"]
    rows = [head, ["---"] * len(head)]
    for split, own in drawn["splits"].items():
        row = [_title(split), f"{own['num']}", f"{own['nats']['none']['mean']:.3f}"]
        if documents is not None:
            gain = own["gain"]
            row += [
                f"{own['nats'][documents]['mean']:.3f}",
                f"{gain['mean']:.3f} ± {gain['error']:.3f}",
            ]
        row += [_both(own["real"]), _both(own["drawn"]["none"])]
        if documents is not None:
            row += [f"**{_both(own['drawn'][documents])}**", _both(own["copied"])]
        rows.append(row)
    return [f"| {' | '.join(row)} |" for row in rows]


def caption_rows(drawn: dict[str, Any]) -> list[str]:
    """The number of captions that name the right object, as a table in Markdown."""
    documents = drawn["documents"]
    head = ["captions of", "pictures", "name the thing"]
    if documents is not None:
        head.append(f"after {DOCUMENTS[documents]}, whose caption is read")
    rows = [head, ["---"] * len(head)]
    for split, captions in drawn["captions"].items():
        row = [_title(split), f"{len(captions)}", f"{num_named(captions)}"]
        if documents is not None:
            row.append(f"{num_named(captions, 'with_document')}")
        rows.append(row)
    return [f"| {' | '.join(row)} |" for row in rows]


def repair_rows(drawn: dict[str, Any]) -> list[str]:
    """R@1 and R@5 of pictures with a box cut out and of inpainted pictures, as a table in Markdown."""
    documents = drawn["documents"]
    names = ["real", "cut", "inpainted"]
    head = ["pictures", "number", "real", "with a box cut out", "inpainted"]
    if documents is not None:
        names.append("with_document")
        head.append(f"after {DOCUMENTS[documents]}")
    rows = [head, ["---"] * len(head)]
    for split, own in drawn["repairs"].items():
        rows.append([_title(split), f"{own['num']}", *(_both(own[name]) for name in names)])
    return [f"| {' | '.join(row)} |" for row in rows]


def _title(split: str) -> str:
    return SPLITS.get(split, plain(split))


def _both(found: dict[str, float]) -> str:
    return f"{found['r1']:.2f} / {found['r5']:.2f}"


def _captions(drawn: dict[str, Any]) -> str:
    lines = ["## Captions", ""]
    if not drawn["captions"]:
        why = "No captions and no inpainting: the objective masks nothing, so the model only continues."
        return "\n".join([*lines, why, ""])
    lines += [*caption_rows(drawn), ""]
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
    lines += [
        "## Inpainted pictures",
        "",
        "The grey box is cut out and inpainted from its surroundings and the text; R@1 / R@5 as above.",
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


def _again(out: Path) -> str:
    model = shlex.quote(str(out / "model"))
    run = out / "run"
    watching = [f"tensorboard --logdir {shlex.quote(str(run))}"] * (run / "tensorboard").is_dir()
    return "\n".join(
        [
            "## Next steps",
            "",
            "```bash",
            f'cm3 generate "bell off, outline rounded" --model {model} --n 4 -o drawn',
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
