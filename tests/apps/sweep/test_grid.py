"""Overrides with several values, and the block `sweep` of a recipe's file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cm3apps.sweep.block import SweepBlock, block_of
from cm3apps.sweep.grid import Grid, split_values
from cm3core.errors import RecipeError
from cm3core.plugins.discovery import load_registry
from cm3core.recipe import compose, library, list_recipes
from tests.fixtures.messages import tells

#: Values that a comma outside must not split.
WHOLE = st.one_of(
    st.from_regex(r"[a-z0-9_.:-]{1,8}", fullmatch=True),
    st.from_regex(r"it's|a \$\{x\.y\}|l'eau", fullmatch=True),
    st.lists(st.integers(0, 99), min_size=1, max_size=3).map(str),
    st.dictionaries(
        st.from_regex(r"[a-z]{1,3}", fullmatch=True), st.integers(0, 9), min_size=1
    ).map(lambda one: yaml.safe_dump(one, default_flow_style=True).strip()),
    st.from_regex(r"'[a-z,\]\}]{1,6}'|\"[a-z,\[\{]{1,6}\"", fullmatch=True),
)


@given(st.lists(WHOLE, min_size=1, max_size=5, unique=True), st.sampled_from([",", ", ", " ,"]))
def test_values_are_found_again(values: list[str], comma: str) -> None:
    assert split_values("key=...", comma.join(values)) == values


def test_a_grid_by_hand() -> None:
    grid = Grid.of(["a.x=1,2", "b.y=[0.9, 0.95]", "c=p,{q: [1,2]}"])
    assert grid.fixed == ("b.y=[0.9, 0.95]",)
    assert [cell.varied for cell in grid.cells()] == [
        ("a.x=1", "c=p"),
        ("a.x=1", "c={q: [1,2]}"),
        ("a.x=2", "c=p"),
        ("a.x=2", "c={q: [1,2]}"),
    ]
    assert next(cell.label for cell in grid.cells()) == "a.x=1 c=p"


def test_named_cells_are_one_more_axis() -> None:
    grid = Grid.of(["c=1,2"], {"small": ["a=1", "b=1"], "large": ["a=2"]})
    assert [(cell.label, cell.varied) for cell in grid.cells()] == [
        ("small c=1", ("a=1", "b=1", "c=1")),
        ("small c=2", ("a=1", "b=1", "c=2")),
        ("large c=1", ("a=2", "c=1")),
        ("large c=2", ("a=2", "c=2")),
    ]


def test_without_several_values_there_is_one_cell() -> None:
    assert [(cell.label, cell.varied) for cell in Grid.of(["a=1"]).cells()] == [("all", ())]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a=1,,2", "a=1,,2: lists an empty value ... write null"),
        ("a=1,", "a=1,: lists an empty value"),
        ("a=1,2,1", "a=1,2,1: lists 1 twice"),
        ("a=[1,2", "a=[1,2: has no closing ]"),
        ("a={b: [1}", "a={b: [1}: has no closing ]"),
        ("a='x,y", "a='x,y: has no closing '"),
    ],
)
def test_malformed_values(override: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        Grid.of([override])
    assert tells(error.value, message)


def test_a_key_given_twice() -> None:
    with pytest.raises(RecipeError) as error:
        Grid.of(["a=1,2", "a=3"])
    assert tells(error.value, "a: is given twice: a=1,2 and a=3 ... separated by commas")


def test_the_block_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("sweep: {grid: ['a.b=1,2'], seeds: 3, metrics: [x]}\n")
    assert block_of(path) == SweepBlock(grid=["a.b=1,2"], seeds=3, metrics=["x"])
    path.write_text("train: {steps: 1}\n")
    assert block_of(path) == SweepBlock()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sweep: {seed: 3}", "mine.yaml: sweep.seed: is no key of a sweep ... 'seeds'"),
        ("sweep: {seeds: many}", "mine.yaml: sweep.seeds: is 'many', must be"),
        ("sweep: {seeds: 0}", "mine.yaml: sweep.seeds: is 0 ... 1 or more"),
        ("sweep: {grid: a=1}", "mine.yaml: sweep.grid: is 'a=1', must be"),
        ("sweep: [a=1]", "mine.yaml: sweep: is ['a=1'], must be"),
    ],
)
def test_a_wrong_block(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text)
    with pytest.raises(RecipeError) as error:
        block_of(Path("mine.yaml"))
    assert tells(error.value, message)


def test_a_block_is_no_part_of_the_recipe(tmp_path: Path) -> None:
    """Neither of its hash, nor of recipes that extend it; the command line has none."""
    registry = load_registry()
    path, other = tmp_path / "mine.yaml", tmp_path / "other.yaml"
    path.write_text("extends: [tiny]\nsweep: {seeds: 3}\n")
    other.write_text("extends: [./mine.yaml]\n")
    plain = compose("tiny", registry=registry)
    assert compose(str(path), registry=registry).hash == plain.hash
    assert block_of(other) == SweepBlock()
    with pytest.raises(RecipeError) as error:
        compose("tiny", ["sweep.seeds=3"], registry=registry)
    assert tells(error.value, "command line: sweep: is not a section of a recipe")


CLAIMS = [recipe.name for recipe in list_recipes() if recipe.name.startswith("claims/")]


def test_there_are_claims() -> None:
    assert CLAIMS


@pytest.mark.slow
@pytest.mark.parametrize("name", CLAIMS)
def test_every_cell_of_a_shipped_claim_is_valid(name: str) -> None:
    from cm3apps.sweep.plan import plan_of

    block = block_of(library.find(name))
    plan = plan_of(
        name, Grid.of(block.grid, block.cells), block.seeds, load_registry(), is_model=False
    )
    assert len(plan.cells) > 1
    assert len(plan.seeds) == block.seeds
