"""The pages' tables of measured figures, made from what is stored. `python docs/_generate.py` writes them.

Stored are the cards beside the weights (`cm3 eval card` wrote them from evaluations), and docs/figures: the
`figures.json` of `cm3 experiment icons`, and what `docs/_held_out.py` and `docs/_sheets.py` measure.

A sentence or a table that is written by hand names where its figures are stored, in a comment above it:

    <!-- figures: sheets.json; readme.median = 0.97; readme.copies / readme.num = 96% -->
    <!-- figures: icons64-tuned/CARD.md; Captions > unseen & told > name = 60% -->

`tests/docs/test_figures.py` compares these with what is stored, and with the paragraph below the comment.
"""

from __future__ import annotations

import html
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
FIGURES = DOCS / "figures"
MODELS = DOCS.parent / "plugins/cm3plugins/assets/models"
MARKER = re.compile(r"<!-- figures: (.*?) -->\n", re.DOTALL)
SPLITS = ("comp", "compose", "unseen", "train")
#: Tables under one heading: rows of cells by the name of their column.
Rows = list[dict[str, str]]


# ---- what is stored


@cache
def stored(source: str) -> Any:
    """A file of docs/figures; the tables of a card, by heading."""
    if source.endswith(".json"):
        return json.loads((FIGURES / source).read_text(encoding="utf-8"))
    tables: dict[str, Rows] = {}
    heading, columns = "", []
    for line in (MODELS / source).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading, columns = line.lstrip("# "), []
        elif line.startswith("|"):
            cells = [html.unescape(cell.strip().strip("*")) for cell in line[1:-1].split(" |")]
            if not columns:
                columns = cells
            elif set("".join(cells)) - set("- "):
                row = dict(zip(columns, cells, strict=True))
                tables.setdefault(heading, []).append(row)
        else:
            columns = []
    return tables


def value_of(source: str, key: str) -> float:
    """A stored figure: `a.b.c` of a JSON file, a quotient of two, 1 less one; or `HEADING > CELL & CELL > COLUMN` of a
    card, `> NUMBER` behind it: which number of the cell."""
    if key.startswith("1 - "):
        return 1 - value_of(source, key[4:])
    if " / " in key and source.endswith(".json"):
        one, other = (value_of(source, part) for part in key.split(" / "))
        return one / other
    found = stored(source)
    if source.endswith(".json"):
        for part in key.split("."):
            found = found[part]
        return float(found)
    heading, cells, column, *number = key.split(" > ")
    [row] = [row for row in found[heading] if set(cells.split(" & ")) <= set(row.values())]
    return float(re.findall(r"[\d.]+", row[column])[int(number[0]) - 1 if number else 0])


def shown(source: str, key: str, like: str) -> str:
    """A stored figure, written as another is: percent, with as many decimals, thousands by comma."""
    value = value_of(source, key)
    number = like.rstrip("%")
    decimals = len(number.partition(".")[2])
    return f"{value * 100:.{decimals}f}%" if like.endswith("%") else f"{value:,.{decimals}f}"


def markers(text: str) -> list[tuple[str, str, str, str]]:
    """The figures that comments of a page name: (source, key, figure, what stands below)."""
    found = []
    for comment in MARKER.finditer(text):
        below = MARKER.sub("", text[comment.end() :]).lstrip().split("\n\n")[0]
        source, *figures = (part.strip() for part in " ".join(comment[1].split()).split(";"))
        for figure in figures:
            key, like = figure.rsplit(" = ", 1)
            found.append((source, key, like, below))
    return found


# ---- tables


def _of_icons() -> list[str]:
    """Nats and R@k of `cm3 experiment icons`, from the card of the tuned model."""
    card = "icons64-tuned/CARD.md"
    nats = [
        ("loss, nothing prepended", "nothing"),
        ("another version", "another version"),
        ("something else", "something else"),
    ]
    drawn = [
        ("R@1 / R@5, nothing prepended", "drawn, nothing prepended"),
        ("another version", "drawn, another version prepended"),
        ("copy of it", "copies of the other version"),
        ("the retrieved icon", "drawn, retrieved from `all`"),
        ("copy of it", "copies of the first one retrieved from `all`"),
    ]
    lines = [
        f"| split | {' | '.join(title for title, _ in nats + drawn)} |",
        "| --- |" + " --- |" * len(nats + drawn),
    ]
    for split in SPLITS:
        [row] = [
            one
            for one in stored(card)["How probable the true pictures are"]
            if one["split"] == split
        ]
        cells = [row[column].split(" ")[0] for _, column in nats]
        pictures = {
            one["pictures"]: one["R@1 / R@5, pixels"]
            for one in stored(card)["What it draws"]
            if one["split"] == split
        }
        cells += [pictures[name] for _, name in drawn]
        lines.append(f"| `{split}` | {' | '.join(cells)} |")
    return lines


def _train_memory() -> list[str]:
    """`icons-unseen-v1` with a memory of training documents: what is drawn, and copies of what is in front."""
    lines = [
        "| model | drawn: R@1 | R@5 | copies: R@1 | R@5 | right finish: drawn | copies |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model in ("icons64", "icons64-tuned"):
        rows = {
            row["score"].strip("`"): row for row in stored(f"{model}/CARD.md")["icons-unseen-v1"]
        }
        r1, r5, finish = (
            rows[name] for name in ("judge_r1-blurred32", "judge_r5-blurred32", "icon_finish")
        )
        drawn = [one["value"].split(" ")[0] for one in (r1, r5, finish)]
        copied = [
            re.search(r"copied ([\d.]+)", one["read against"])[1]  # type: ignore[index]  # these scores have it
            for one in (r1, r5, finish)
        ]
        cells = (*drawn[:2], *copied[:2], drawn[2], copied[2])
        lines.append(f"| `bundled:{model}` | {' | '.join(cells)} |")
    return lines


_RULE = "a rule, by the texts that are retrieved for the parts of the picture"
_WHITE = ("a white picture", "the model, shown a white picture")
_FREQUENT = (
    "the most frequent answer of the kind",
    "the most frequent answer of the kind in training",
)
_SCENE = ("another scene's", "those of another record")
_BOX = ("another icon's box", "those of another record")
#: Task, figure, heading and column of the card, whose figure it is, and what stands beside it.
_TASKS: list[tuple[str, str, str, str, str, list[tuple[str, str]]]] = [
    *(
        (
            "edit",
            "R@5 of the target",
            "Edits",
            "R@5",
            "drawn",
            [("a copy of what was given", "copies of what was given")],
        ),
        ("", "R@1", "Edits", "R@1", "drawn", [("a copy", "copies of what was given")]),
        (
            "",
            "the finish asked for",
            "Edits",
            "finish",
            "drawn",
            [("real targets", "the real pictures")],
        ),
    ),
    *(
        (
            "after edges",
            "F1 of the edges",
            "Drawing after edges",
            "edge F1",
            "drawn",
            [("drawn after the caption alone",) * 2],
        ),
        (
            "",
            "R@5",
            "Drawing after edges",
            "R@5",
            "drawn",
            [("the caption alone", "drawn after the caption alone")],
        ),
    ),
    *(
        (
            "at boxes, as a picture",
            "IoU of the ink's box",
            "Drawing at boxes (a picture of them)",
            "IoU",
            "drawn",
            [_SCENE],
        ),
        (
            "",
            "R@5 of the icon in its box",
            "Drawing at boxes (a picture of them)",
            "R@5",
            "drawn",
            [_SCENE],
        ),
        (
            "at boxes, as a text",
            "IoU of the ink's box",
            "Drawing at boxes (a text)",
            "IoU",
            "drawn",
            [_SCENE],
        ),
    ),
    *(
        (
            "find",
            "IoU of the box told",
            "Finding",
            "IoU",
            "told",
            [_BOX, ("a rule, by what is in front", _RULE)],
        ),
        ("", "IoU above 0.5", "Finding", "IoU above 0.5", "told", [_BOX, ("the rule", _RULE)]),
    ),
    *(
        ("answer", "right", "Answers", "all", "told", [_FREQUENT]),
        ("", "right", "Answers", "all", "told", [_WHITE]),
        ("", '"What is it?", {} questions', "Answers", "what", "told", [_WHITE]),
        (
            "",
            '"How many things are there?", {} questions',
            "Answers",
            "how many",
            "told",
            [_WHITE, ("the rule", _RULE)],
        ),
        (
            "",
            '"Is there a bell?", {} questions',
            "Answers",
            "is there",
            "told",
            [_WHITE, ("the rule", _RULE)],
        ),
        (
            "",
            '"Where is the bell?", {} questions',
            "Answers",
            "where",
            "told",
            [_WHITE, ("the rule", _RULE)],
        ),
    ),
    *(
        ("chat, second answer", "right", "Second answers in a chat", "all", "told", [_FREQUENT]),
        ("", '"What is it?", {} questions', "Second answers in a chat", "what", "told", [_WHITE]),
    ),
    *(
        ("caption", "the exact name", "Captions", "name", "told", [_WHITE]),
        ("", "the exact style", "Captions", "style", "told", [_WHITE]),
        (
            "",
            "the exact name",
            "Captions",
            "name",
            "told",
            [("the caption of the picture that is retrieved first",) * 2],
        ),
    ),
    (
        "enlarge 32 px to 64",
        "PSNR, dB",
        "Enlarging pictures of half the side",
        "PSNR",
        "drawn",
        [
            ("enlarged by Lanczos", "the small pictures, enlarged by Lanczos: what is given"),
            (
                "by `edsr` and reduced",
                "the small pictures, enlarged by EDSR (`cm3 upscale`) and reduced to the size",
            ),
            ("real pictures through their codes", "the real pictures, through their codes"),
        ],
    ),
]


def _tasks() -> list[str]:
    """The figures of `cm3 experiment tasks`."""

    def cells(heading: str, label: str, column: str) -> list[str]:
        found = []
        for split in ("comp", "unseen"):
            [row] = [
                row
                for row in stored("icons64-tuned/CARD.md")[heading]
                if row["split"] == split and row[""] == label
            ]
            value = row[column]
            found.append(f"{float(value):.1f}" if column == "PSNR" else value)
        return found

    lines = [
        "| task | figure | `comp` | `unseen` | beside it: `comp`, `unseen` |",
        "| --- | --- | --- | --- | --- |",
    ]
    for task, figure, heading, column, label, others in _TASKS:
        if "{}" in figure:
            figure = figure.format(" and ".join(cells(heading, "number of questions", column)))
        beside = "; ".join(
            f"{title}: {', '.join(cells(heading, other, column))}" for title, other in others
        )
        own = " | ".join(cells(heading, label, column))
        lines.append(f"| {task} | {figure} | {own} | {beside} |")
    return lines


def _nearness() -> list[str]:
    """How near to the retrieved document drawn and real icons are, of the experiment."""
    lines = [
        "| split | memory | drawn: median | nearly copies | real icons: median | nearly copies |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for split in SPLITS:
        for condition, memory in (("retrieved-train", "`train`"), ("retrieved-all", "all icons")):
            own = stored("icons64-tuned.json")["splits"][split]["nearness"][condition]
            cells = [
                cell
                for name in ("drawn", "real")
                for cell in (
                    f"{own[name]['median']:.2f}",
                    f"{own[name]['copies'] / own[name]['num']:.0%}",
                )
            ]
            lines.append(f"| `{split}` | {memory} | {' | '.join(cells)} |")
    return lines


def _sheets(*names: str) -> list[str]:
    """How near the pictures of sheets are to the documents in front."""
    lines = ["| picture | drawn | median nearness | nearly copies |", "| --- | --- | --- | --- |"]
    for name in names:
        own = stored("sheets.json")[name]
        lines.append(f"| `{name}.png` | {own['num']} | {own['median']:.2f} | {own['copies']} |")
    return lines


def tables() -> dict[str, dict[str, list[str]]]:
    """The tables of the pages, by name."""
    icons = ("icons-comp", "icons-compose", "icons-unseen")
    quickstart = ("quickstart-unseen", "quickstart-compose", "quickstart-comp")
    return {
        "icons-model.md": {
            "tuned": _of_icons(),
            "train memory": _train_memory(),
            "nearness": _nearness(),
        },
        "gallery.md": {
            "sheets": _sheets("readme", "icons-model", *icons),
        },
        "tuning.md": {"tasks": _tasks()},
        "quickstart.md": {"nearness": _sheets(*quickstart), **stored("quickstart.json")},
    }
