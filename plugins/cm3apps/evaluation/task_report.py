"""The report: a table for each task, and its sheets of unselected pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from cm3apps.markdown_text import code, plain
from cm3core.files import write_text

#: Task -> title, and an explanation of its figures.
TITLES = {
    "edit": (
        "Edits",
        "The target among 100 real pictures of its set and style; `finish`: how often a classifier names the "
        "finish that was asked for.",
    ),
    "edges": (
        "Drawing after edges",
        "F1 of the edges of what is drawn, and of those that were given, one pixel apart at most.",
    ),
    "boxes": (
        "Drawing at boxes (a picture of them)",
        "IoU of the ink's box with that of the true icon, in each quarter of a scene; R@k: the icon in its box "
        "among 100.",
    ),
    "place": ("Drawing at boxes (a text)", "As above."),
    "find": ("Finding", "IoU of the box that is told."),
    "answer": (
        "Answers",
        "Exactly right, after VQA's normalisation; of all, and by kind of question.",
    ),
    "chat": ("Second answers in a chat", "As above."),
    "caption": (
        "Captions",
        "The exact name; exactly the style words.",
    ),
    "enlarge": (
        "Enlarging pictures of half the side",
        "PSNR in dB, the mean over pictures; the real picture among 100 of its set and style.",
    ),
}
ROWS = {
    "real": "the real pictures",
    "reconstructed": "the real pictures, through their codes",
    "copied": "copies of what was given",
    "text": "drawn after the caption alone",
    "enlarged": "the small pictures, enlarged by Lanczos: what is given",
    "edsr": "the small pictures, enlarged by EDSR (`cm3 upscale`) and reduced to the size",
    "another": "those of another record",
    "questions": "number of questions",
    "most frequent": "the most frequent answer of the kind in training",
    "white": "the model, shown a white picture",
    "by parts": "a rule, by the texts that are retrieved for the parts of the picture",
    "first retrieved": "the caption of the picture that is retrieved first",
    "drawn": "**drawn**",
    "told": "**told**",
}


def write_report(out: Path, figures: dict[str, Any], command: str) -> Path:
    """Write report.md; return its path.

    Args:
        out: the experiment's folder, which has the sheets.
        figures: the content of figures.json.
        command: the command, quoted in the report.
    """
    lines = [
        "# What a tuned model does",
        "",
        code(command),
        "",
        f"Step {figures['model']['step']:,}. One sample for each record, none selected. With 96 records, a share "
        "near 0.5 has a standard error of 0.05.",
        "",
    ]
    for task, splits in figures["found"].items():
        lines += _of_task(task, splits)
        for split in splits:
            title = plain(TITLES[task][0])
            lines += [f"![{title}, {plain(split)}]({quote(f'{task}-{split}.png')})", ""]
    write_text(out / "report.md", "\n".join(lines))
    return out / "report.md"


def figure_lines(figures: dict[str, Any]) -> list[str]:
    """Lines of Markdown with all figures of figures.json, in tables under second-level headings."""
    return [line for task, splits in figures["found"].items() for line in _of_task(task, splits)]


def _of_task(task: str, splits: dict[str, Any]) -> list[str]:
    title, text = TITLES[task]
    return [f"## {title}", "", text, "", *table(splits), ""]


def table(splits: dict[str, Any]) -> list[str]:
    """The figures of a task in Markdown: a row for each split and kind of picture or answer."""
    columns = list(
        dict.fromkeys(
            name for own in splits.values() for row in own["figures"].values() for name in row
        )
    )
    lines = [
        f"| split | records | | {' | '.join(map(plain, columns))} |",
        "| --- | --- | --- |" + " --- |" * len(columns),
    ]
    for split, own in splits.items():
        for name, values in own["figures"].items():
            cells = [_cell(values[one]) if one in values else "" for one in columns]
            lines.append(f"| {plain(split)} | {own['num']} | {ROWS[name]} | {' | '.join(cells)} |")
    return lines


def _cell(value: float) -> str:
    """A share with two digits, or a number of questions unchanged."""
    return str(value) if isinstance(value, int) else f"{value:.2f}"
