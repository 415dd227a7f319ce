"""README.md of an exported model's folder, which is the model card of a repository of the Hugging Face Hub."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.markdown_text import code, plain

if TYPE_CHECKING:
    from cm3core.recipe import Recipe
    from cm3run.checkpoint import CheckpointState

#: Kinds whose component the card names.
_KINDS = ("decoder", "image_tokenizer", "text_tokenizer", "objective", "retriever", "sampler")
#: Maximum number of data sources in the table; the rest is summed up.
_MOST_ROWS = 40


def readme(
    name: str, address: str, recipe: Recipe, state: CheckpointState, known: Mapping[str, Any]
) -> str:
    """The whole card, with the Hub's metadata at its head.

    Args:
        name: of the model.
        address: by which commands open it: a folder or `hf://USER/NAME`.
        recipe, state: the model's.
        known: the content of its provenance.json; empty without the file.
    """
    from cm3run.checkpoint.exporting import README_MARK

    components = [
        f"{kind.replace('_', ' ')} {_code(recipe.component_names[kind])}"
        for kind in _KINDS
        if kind in recipe.component_names
    ]
    lines = [
        "---",
        "library_name: cm3leon",
        "pipeline_tag: text-to-image",
        "---",
        README_MARK,
        "",
        f"# {plain(name)}",
        "",
        "A model of cm3leon, which generates, captions and inpaints pictures:",
        "",
        "```bash",
        f'cm3 generate "PROMPT" --model {shlex.quote(" ".join(address.split()))} -o out',
        "```",
        "",
        "| | |",
        "| --- | --- |",
        f"| recipe | {_code(recipe.name)}, hash {_code(recipe.hash)} |",
        f"| components | {', '.join(components)} |",
        f"| training | {state.step:,} steps, {state.tokens:,} tokens |",
        "",
        "## Data",
        "",
        *_data(known),
    ]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    """A text as code in a table's cell."""
    return code(text).replace("|", "&#124;")


def _data(known: Mapping[str, Any]) -> list[str]:
    rows = known.get("trained_on")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows) or not rows:
        return ["The licences of its training data are not recorded."]
    shown = [
        "| documents | licence | source | attribution |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows[:_MOST_ROWS]:
        cells = [plain(str(row.get(key, ""))) for key in ("documents", "licence", "source")]
        shown.append(f"| {' | '.join(cells)} | {plain(str(row.get('attribution', '')))} |")
    if rest := rows[_MOST_ROWS:]:
        licences = ", ".join(sorted({str(row.get("licence", "")) for row in rest}))
        shown += ["", f"{len(rest):,} more sources, under {plain(licences)}."]
    return shown


def own_readme(folder: Path) -> str | None:
    """The card to push that is in a model's folder already: of `cm3 eval card`, or a README.md that the user wrote or
    changed. None: there is none."""
    from cm3run.checkpoint.exporting import README_MARK

    card, written = folder / "CARD.md", folder / "README.md"
    if written.is_file():
        text = written.read_text(encoding="utf-8")
        if README_MARK not in text:
            return text
    return card.read_text(encoding="utf-8") if card.is_file() else None
