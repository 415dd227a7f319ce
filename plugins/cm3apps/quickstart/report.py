"""The quickstart's `report.md`: everything that it did and measured, with the pictures."""

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
from cm3apps.quickstart.showing import SUBJECTS, num_named
from cm3core.files import write_text
from cm3core.recipe.storing import files_of
from cm3core.training.metrics import read_metrics

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe

SPLITS = {
    "train": "training pictures (the prompt is a training caption)",
    "comp": "`comp`: thing seen, this version of it held out",
    "compose": "`compose`: two parts that were never seen together",
    "unseen": "`unseen`: things never trained on in any version",
    "valid": "`valid`: held-out documents",
}


def write_report(
    out: Path,
    recipe: Recipe,
    registry: Registry,
    training: dict[str, Any],
    drawn: dict[str, Any],
    command: str,
) -> Path:
    """Write `report.md`, the curves and the resolved recipe; return the report's path."""
    write_curves(out / "losses.png", read_metrics(out / "run"))
    for name, text in files_of(recipe, registry).items():
        write_text(out / name, text)
    parts = [
        _head(training, drawn, command),
        _pictures(out, drawn),
        _captions(drawn),
        _losses(training),
        _again(out, drawn),
    ]
    path = out / "report.md"
    write_text(path, "\n".join(parts))
    return path


def _head(training: dict[str, Any], drawn: dict[str, Any], command: str) -> str:
    minutes = training["seconds"] / 60
    lines = [
        "# cm3 quickstart: report",
        "",
        f"Made by {code(command)} with cm3leon {cm3core.__version__} on {platform.machine()} "
        f"({os.cpu_count()} cores, torch {torch.__version__}).",
        "",
        "| | |",
        "| --- | --- |",
        f"| training | {minutes:.1f} minutes, {training['step']:,} steps, {training['tokens']:,} "
        f"tokens ({training['tokens'] / max(training['seconds'], 1e-9):,.0f} tokens a second) |",
        f"| generating everything below | {drawn['drawing_seconds'] / 60:.1f} minutes; "
        f"{drawn['generation_tokens_per_second']:,.0f} image tokens a second |",
        f"| total of this run | {drawn['minutes']:.1f} minutes |",
        "| peak memory | "
        f"{max(training['peak_memory_bytes'], drawn['peak_memory_bytes']) / 2**30:.2f} GiB |",
        "",
    ]
    return "\n".join(lines)


def _pictures(out: Path, drawn: dict[str, Any]) -> str:
    lines = ["## Pictures generated for prompts", ""]
    judged = {name: own for name, own in drawn["splits"].items() if "ceiling_r5" in own}
    if judged:
        lines += [
            "R@1 and R@5: how often the real picture is the nearest, or among the five nearest, of "
            f"{min(own['num_among'] for own in judged.values()):.0f} real pictures to what was "
            "generated (blurred pixels; nothing of it is trained; icons: all of the same set and "
            "style). Ceiling: the real picture through the image tokenizer. Copying: the prepended "
            "picture itself. For `compose` and `unseen` the memory that is searched also holds "
            "held-out pictures, but never the one that is asked for.",
            "",
            "| prompts | ceiling | with a prepended document | copying it | without |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [_judged_row(SPLITS[split], own) for split, own in judged.items()]
        lines.append("")
    if drawn["retrieves"]:
        lines += [
            "| nats a code of the real pictures | with a prepended document | without | gain |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| {SPLITS[split]} | {own['nats_with']:.3f} | {own['nats_without']:.3f} | "
            f"{own['nats_without'] - own['nats_with']:.3f} |"
            for split, own in drawn["splits"].items()
        ]
        lines.append("")
    for split in drawn["splits"]:
        if (out / f"pictures-{split}.png").exists():
            lines += [f"### {SPLITS[split]}", "", f"![{split}](pictures-{split}.png)", ""]
    return "\n".join(lines)


def _judged_row(title: str, own: dict[str, Any]) -> str:
    """R@1 / R@5 of each kind of picture; a dash where there is none."""
    cells = [
        f"{own[f'{name}_r1']:.2f} / {own[f'{name}_r5']:.2f}" if f"{name}_r1" in own else "–"
        for name in ("ceiling", "with", "copy", "without")
    ]
    return f"| {title}, {own['num_prompts']} | {' | '.join(cells)} |"


def _captions(drawn: dict[str, Any]) -> str:
    lines = ["## Captions", ""]
    if not drawn["captions"]:
        why = (
            "None, and nothing inpainted: the objective masks nothing, so the model only continues."
        )
        return "\n".join([*lines, why, ""])
    lines += [
        f"- {SUBJECTS[name]}: {num_named(captions)} of {len(captions)} captions name the right "
        "thing"
        for name, captions in drawn["captions"].items()
    ]
    lines += ["", "![captions](captions.png)"]
    for name, captions in drawn["captions"].items():
        lines += ["", f"| written for {SUBJECTS[name]} | real |", "| --- | --- |"]
        lines += [
            f"| {plain(caption['written'])} | {plain(caption['real'])} |" for caption in captions
        ]
    lines += [
        "",
        "## Inpainted pictures",
        "",
        "The grey box is cut out and inpainted from its surroundings and the text.",
        "",
    ]
    if any(drawn["repairs"].values()):
        lines += [
            "| pictures | ceiling R@1 / R@5 | with the box cut out | inpainted |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| {SUBJECTS[name]} | "
            + " | ".join(
                f"{values[f'{kind}_r1']:.2f} / {values[f'{kind}_r5']:.2f}"
                for kind in ("ceiling", "cut", "repaired")
            )
            + " |"
            for name, values in drawn["repairs"].items()
            if values
        ] + [""]
    lines += ["![inpainted](infilled.png)", ""]
    return "\n".join(lines)


def _losses(training: dict[str, Any]) -> str:
    lines = [
        "## Losses",
        "",
        "![losses](losses.png)",
        "",
        "| at the end of training | nats a token |",
        "| --- | --- |",
    ]
    lines += [
        f"| {plain(name)} | {value:.3f} |"
        for name, value in sorted(training["metrics"].items())
        if "_loss" in name
    ]
    return "\n".join([*lines, ""])


def _again(out: Path, drawn: dict[str, Any]) -> str:
    model = out / "model"
    prompt = next((own["prompt"] for own in reversed(drawn["splits"].values())), "a picture")
    quoted = shlex.quote(" ".join(prompt.replace("`", " ").split()))
    return "\n".join(
        [
            "## Next steps",
            "",
            "```bash",
            f"cm3 generate {quoted} --model {model} --n 4 -o drawn",
            f"cm3 caption picture.png --model {model}",
            f"cm3 infill picture.png --box 16,16,48,48 --model {model} -o repaired.png",
            f"tensorboard --logdir {out / 'run'}",
            "```",
            "",
            "The resolved recipe is in [recipe.yaml](recipe.yaml); train it again, or longer, "
            "with `cm3 train recipe.yaml`.",
            "",
        ]
    )
