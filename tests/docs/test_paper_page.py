"""docs/paper.md: the recipe has the values that the page's table states, and the real commands and the miniature's differ
in what the page says alone. `test_pages.py` runs the miniature, in order."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cm3core.plugins import load_registry
from cm3core.recipe import compose

PAGE = Path(__file__).parents[2] / "docs" / "paper.md"
TEXT = PAGE.read_text(encoding="utf-8")
#: Rows of the table that compares the paper with the recipe: key and value.
ROWS = re.findall(r"^\|[^|]*\|[^|]*\| `([a-z_.]+)` ([^|]+?) \|", TEXT, re.MULTILINE)
#: Overrides that make a command small, or leave weights out that a test has not.
SMALL = re.compile(
    r"image_tokenizer\.|train\.(accumulate|warmup_steps)=|--(steps|num|skip-missing|candidates|vocab-size|processes|inception|clip"
    r"|device)$"
)


def test_the_table_is_long() -> None:
    assert len(ROWS) > 25


@pytest.mark.parametrize(("key", "stated"), ROWS, ids=[key for key, _ in ROWS])
def test_the_recipe_has_what_the_table_states(key: str, stated: str) -> None:
    recipe = compose("cm3leon-350m", registry=load_registry())
    value = recipe.flat()[key]
    assert yaml.safe_load(stated) == (list(value) if isinstance(value, tuple) else value)


def test_the_miniature_is_the_same_command(read_blocks: Callable[[Path], list[Any]]) -> None:
    """Each real command has one in the miniature that differs in sizes alone."""
    real, small = [], []
    for block in read_blocks(PAGE):
        if block.language == "bash":
            lines = re.sub(r"\\\n\s*", " ", block.text).splitlines()
            (real if block.left_out else small).extend(map(plain, lines))
    assert len(real) == 10
    assert [one for one in real if one not in small] == [
        # scored without documents, too: the miniature draws with two alone
        plain(
            "cm3 eval runs/350m coco30k-v1 --data coco --num-retrieved 0 --rerank clip -o eval/fid-0"
        )
    ]


def test_the_arithmetic(
    read_blocks: Callable[[Path], list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    (block, *_) = (block for block in read_blocks(PAGE) if block.language == "python")
    found: dict[str, Any] = {}
    exec(block.text, found)
    assert capsys.readouterr().out == "2.8 GFLOP a token, 1.4T tokens\n4.0e+21 FLOP\n"
    assert all(figure in block.text for figure in ("# 2.8, 1.4\n", "# 4.0e+21\n"))
    days = found["per_token"] * found["tokens"] / (8 * 989e12 * 0.3) / 86_400
    assert f"would take {days:.0f} days" in " ".join(TEXT.split())


def plain(command: str) -> tuple[str, ...]:
    """A command without what makes it small, or runs it in several processes."""
    words = shlex.split(command.partition("--no-python ")[2] or command, comments=True)
    kept: list[str] = []
    skip = False
    for word in words:
        if skip and not word.startswith("-"):
            skip = False
        elif SMALL.match(word):
            skip = word.startswith("--") and word != "--skip-missing"
        else:
            skip = False
            kept.append(word.replace("small.yaml", "paper.yaml"))
    return tuple(sorted(kept))


def test_plain_keeps_what_matters() -> None:
    assert plain("torchrun --nproc-per-node 8 --no-python cm3 train paper.yaml -o a x=1") == plain(
        "cm3 train small.yaml -o a x=1 --steps 20"
    )
    assert plain("cm3 train small.yaml -o a x=1") != plain("cm3 train small.yaml -o a x=2")
    assert plain("cm3 train small.yaml -o a") != plain("cm3 train small.yaml -o b")
