"""Recipes have a field for each kind, and type checkers are told the truth about them."""

from __future__ import annotations

import ast
import dataclasses
import inspect

from cm3core.plugins import KINDS
from cm3core.recipe import Recipe, recipe
from cm3core.recipe.sections import FIXED_SECTIONS


def test_a_recipe_has_a_field_for_each_kind_and_no_more() -> None:
    names = [item.name for item in dataclasses.fields(Recipe)]
    others = {"name", "component_names", "origins", "brought", *FIXED_SECTIONS}
    assert [name for name in names if name not in others] == list(KINDS)
    assert all(getattr(Recipe(name="bare"), kind) is None for kind in KINDS)


def test_what_type_checkers_read_is_what_there_is() -> None:
    """Of each line in the class that they see: its name is a kind, its type that kind's config."""
    tree = ast.parse(inspect.getsource(recipe))
    (seen,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name == "KindSections"
    ]
    stated = {
        node.target.id: (ast.unparse(node.annotation), ast.unparse(node.value))
        for node in seen.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.value is not None
    }
    there = {
        item.name: (item.type, repr(item.default))
        for item in dataclasses.fields(recipe.KindSections)
    }
    assert len(stated) >= 11
    assert stated == {kind: there[kind] for kind in stated}
