"""The quickstart's `report.md`: everything that it did and measured, with the pictures."""

from __future__ import annotations

import os
import platform
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
    "train": "training concepts (the prompt is a training caption)",
    "comp": "`comp`: concept seen, this style held out",
    "unseen": "`unseen`: concepts never trained on; the prepended document is the concept in another style",
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
        _again(out),
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
    if drawn["judged_among"]:
        lines += [
            "R@5: the share of pictures whose own text is among the judge's five best of all "
            "texts (R@1: the best). The judge uses a network (EfficientNet-Lite1) that no part "
            "of the training used; its score of the real pictures is the ceiling. It knows "
            "things, not styles.",
            "",
            "| prompts | texts | real R@5 | with a prepended document: R@1 / R@5 | without: "
            "R@1 / R@5 |",
            "| --- | --- | --- | --- | --- |",
        ]
        for split, values in drawn["splits"].items():
            if "real_r5" not in values:
                continue
            with_ = (
                f"{values['with_r1']:.2f} / {values['with_r5']:.2f}" if "with_r5" in values else "–"
            )
            lines.append(
                f"| {SPLITS[split]}, {values['num_prompts']} | {values['num_texts']:.0f} | "
                f"{values['real_r5']:.2f} | "
                f"{with_} | {values['without_r1']:.2f} / {values['without_r5']:.2f} |"
            )
        lines.append("")
    for split in drawn["splits"]:
        if (out / f"pictures-{split}.png").exists():
            lines += [f"### {SPLITS[split]}", "", f"![{split}](pictures-{split}.png)", ""]
    return "\n".join(lines)


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
            "| pictures | real R@1 / R@5 | with the box cut out | inpainted |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| {SUBJECTS[name]} | "
            + " | ".join(
                f"{values[f'{kind}_r1']:.2f} / {values[f'{kind}_r5']:.2f}"
                for kind in ("real", "cut", "repaired")
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


def _again(out: Path) -> str:
    model = out / "model"
    return "\n".join(
        [
            "## Next steps",
            "",
            "```bash",
            f'cm3 generate "red apple, noto style" --model {model} --n 4 -o drawn',
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
