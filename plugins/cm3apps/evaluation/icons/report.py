"""The report: tables in Markdown, and a sheet of unselected pictures for each split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from cm3apps.evaluation.icons.drawing import AskedPicture
from cm3apps.markdown_text import code, plain
from cm3apps.quickstart.pictures import Row, write_table
from cm3core.document import PixelArray
from cm3core.files import write_text
from cm3run.nearness import NEARLY_A_COPY

if TYPE_CHECKING:
    from cm3run.model import Model

SPLIT_TITLES = {
    "comp": "a drawing held out, its name in `train` in other sets or styles (`comp`)",
    "compose": "two parts of names of `train`, held out together (`compose`)",
    "unseen": "held out by name, in all versions (`unseen`)",
    "train": "drawings that it was trained on (`train`)",
}
CONDITION_TITLES = {
    "none": "nothing",
    "version": "another version",
    "retrieved-train": "retrieved, memory `train`",
    "retrieved-all": "retrieved, memory `all`",
    "random": "something else",
}
PICTURE_TITLES = {
    "real": "the real pictures",
    "reconstructed": "the real pictures, through their codes",
    "version": "copies of the other version",
    "copy-retrieved-train": "copies of the first one retrieved from `train`",
    "copy-retrieved-all": "copies of the first one retrieved from `all`",
    "drawn-none": "drawn, nothing prepended",
    "drawn-version": "drawn, another version prepended",
    "drawn-retrieved-train": "drawn, retrieved from `train`",
    "drawn-retrieved-all": "drawn, retrieved from `all`",
    "drawn-random": "drawn, something else prepended",
}
MAKER_TITLES = {
    "tokenizer": "this tokenizer",
    "k-means": "k-means of plain squares",
    "png": "PNG",
    "webp": "WebP",
    "jpeg": "JPEG",
}
_BLOCKS = 4


def write_report(out: Path, figures: dict[str, Any], command: str) -> Path:
    """Write report.md; return its path.

    Args:
        out: the experiment's folder, which has the sheets.
        figures: the content of figures.json.
        command: the command, quoted in the report.
    """
    splits = figures["splits"]
    lines = [
        "# How well it draws icons",
        "",
        code(command),
        "",
        f"Step {figures['model']['step']:,}. {figures['num']} pictures of a split at most, "
        "the same ones for every model. Of 48, a share near 0.5",
        "has a standard error of 0.07: small differences mean nothing.",
        "",
        *figure_lines(figures),
        "## All pictures",
        "",
    ]
    for split in splits:
        title = SPLIT_TITLES.get(split, plain(split))
        lines += [
            f"### {title[:1].upper()}{title[1:]}",
            "",
            f"![pictures, {plain(split)}]({quote(f'pictures-{split}.png')})",
            "",
        ]
    write_text(out / "report.md", "\n".join(lines))
    return out / "report.md"


def figure_lines(figures: dict[str, Any]) -> list[str]:
    """Lines of Markdown with all figures of figures.json, in tables under second-level headings."""
    return [
        *_nats(figures["splits"]),
        *_pictures(figures["splits"], figures["style_classifier"]),
        *_by_set(figures["splits"]),
        *_nearness(figures["splits"]),
        *(_tokenizer(figures["tokenizer"]) if "tokenizer" in figures else ()),
    ]


def write_sheet(
    path: Path, model: Model, asked: Sequence[AskedPicture], drawn: dict[str, PixelArray]
) -> None:
    """Write a PNG: under each caption the real picture, and for each condition the prepended and the drawn
    picture."""
    header = ["asked for"]
    for condition in drawn:
        header += ["drawn"] if condition == "none" else [condition, "drawn with it"]
    rows: list[Row] = []
    for place, one in enumerate(asked):
        tiles: list[PixelArray | None] = [one.pixels(model.image_size)]
        for condition, pictures in drawn.items():
            if condition != "none":
                tiles.append(one.front_pixels(condition, model))
            tiles.append(pictures[place])
        rows.append((one.text, tiles))
    write_table(path, header, rows, num_blocks=_BLOCKS)


def _nats(splits: dict[str, Any]) -> list[str]:
    conditions = list(dict.fromkeys(name for split in splits.values() for name in split["nats"]))
    lines = [
        "## How probable the true pictures are",
        "",
        "Nats a code of the true picture, given its caption and what is prepended (lower is better), "
        "and their standard",
        "error. In brackets: the mean difference from nothing prepended and its standard error; and "
        "how often what is",
        "prepended shows the same thing.",
        "",
        f"| split | {' | '.join(CONDITION_TITLES.get(one, plain(one)) for one in conditions)} |",
        "| --- |" + " --- |" * len(conditions),
    ]
    for split, own in splits.items():
        cells = []
        for name in conditions:
            if name not in own["nats"]:
                cells.append("–")
                continue
            cell = f"{own['nats'][name]['mean']:.3f} ± {own['nats'][name]['error']:.3f}"
            if name != "none":
                gain = own["gain"][name]
                share = own["found"][name]["same_thing"]
                cell += f" ({gain['mean']:+.3f} ± {gain['error']:.3f}; {share:.0%})"
            cells.append(cell)
        lines.append(f"| {plain(split)} | {' | '.join(cells)} |")
    return [*lines, ""]


def _pictures(splits: dict[str, Any], ceiling: dict[str, float]) -> list[str]:
    judges = [
        name
        for name, value in next(iter(splits.values()))["pictures"]["real"].items()
        if isinstance(value, dict)
    ]
    columns = [f"R@1 / R@5, {name}" for name in judges] + ["set and style", "style", "finish"]
    lines = [
        "## What it draws",
        "",
        "R@k: how often the real picture is among the k nearest of 100 real ones of the same set and "
        "style (by chance:",
        "0.01 and 0.05). `pixels` compares blurred pictures of 32 x 32 pixels, `features` those of a "
        "network that no",
        "training of this model used. Set and style: how often a classifier names those asked for; on "
        "held-out real",
        f"pictures it is right in {ceiling['set_and_style']:.2f} (set and style) and "
        f"{ceiling['style']:.2f} (style words) of cases; of the finish alone (outline, filled, duotone, "
        f"colour or broken) in {ceiling['finish']:.2f}.",
        "",
        f"| split | pictures | {' | '.join(columns)} |",
        "| --- | --- |" + " --- |" * len(columns),
    ]
    for split, own in splits.items():
        for name, values in own["pictures"].items():
            cells = [f"{values[one]['r1']:.2f} / {values[one]['r5']:.2f}" for one in judges]
            cells += [f"{values[key]:.2f}" for key in ("set_and_style", "style", "finish")]
            title = PICTURE_TITLES.get(name, plain(name))
            lines.append(f"| {plain(split)} | {title} | {' | '.join(cells)} |")
    return [*lines, ""]


def _by_set(splits: dict[str, Any]) -> list[str]:
    """R@k after a version from the same set, and after one from another; nothing if none was drawn."""
    rows = [
        (split, name, values, judge)
        for split, own in splits.items()
        for name, values in own.get("by_set", {}).items()  # results of an older version lack it
        for judge in values["version"]
    ]
    if not rows:
        return []
    lines = [
        "## Whose version it is",
        "",
        "Pictures drawn after the version, where it is of the same set (mostly of the same hand) and where it is of another: of "
        "another's drawing a perfect artist can only guess.",
        "",
        "| split | the version is of | pictures | judge | R@1 / R@5, copies of it | drawn after it |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for split, name, values, judge in rows:
        cells = [
            f"{values[kind][judge]['r1']:.2f} / {values[kind][judge]['r5']:.2f}"
            for kind in ("version", "drawn-version")
        ]
        lines.append(
            f"| {plain(split)} | {name} | {values['num']} | {judge} | {' | '.join(cells)} |"
        )
    return [*lines, ""]


def _nearness(splits: dict[str, Any]) -> list[str]:
    """Nearness of drawn pictures to the prepended document; nothing if there was none."""
    rows = [
        (split, condition, values)
        for split, own in splits.items()
        for condition, values in own.get("nearness", {}).items()  # older results lack it
    ]
    if not rows:
        return []
    lines = [
        "## How near it is to what was in front",
        "",
        "Ink shared by a picture and the first document in front, each laid over the same square "
        "(`cm3run.nearness`): 1 is",
        f"the same drawing; from {NEARLY_A_COPY:g} on a picture counts as nearly a copy. Beside it, "
        "the real picture that was asked for.",
        "",
        "| split | in front | pictures | drawn: median | nearly copies | real: median | nearly copies |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for split, condition, values in rows:
        cells = [str(values["drawn"]["num"])]
        for name in ("drawn", "real"):
            cells += [f"{values[name]['median']:.2f}", str(values[name]["copies"])]
        title = CONDITION_TITLES.get(condition, plain(condition))
        lines.append(f"| {plain(split)} | {title} | {' | '.join(cells)} |")
    return [*lines, ""]


def _tokenizer(figures: dict[str, Any]) -> list[str]:
    header = ["", "bytes", "fits", "PSNR, dB", "R@1, pixels", "bytes for the same PSNR"]
    lines = [
        "## The image tokenizer",
        "",
        "Things held out by name in all versions (`unseen`). Files: the best one of as many bytes as the "
        "codes take, shrunk if need",
        "be; where none is that small (`fits` below 100%), the smallest. Last column: the smallest "
        "file at full size that is",
        "as near to the picture as this tokenizer's reconstruction.",
        "",
        f"| {' | '.join(header)} |",
        "|" + " --- |" * len(header),
    ]
    for name, own in figures.items():
        cells = [
            MAKER_TITLES.get(name, plain(name)),
            f"{own['bytes']:.0f}",
            "" if own["fits"] is None else f"{own['fits']:.0%}",
            f"{own['psnr']:.1f}",
            f"{own['r1']:.2f}",
            "" if own["same_psnr_bytes"] is None else f"{own['same_psnr_bytes']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]
