"""Every installed component can be used in the matrix: with its ingredients, its recipe is valid."""

from __future__ import annotations

from swapping.cells import Swap, keys_of, table_of
from swapping.ingredients import Kitchen, Usable, as_overrides, names, usable
from swapping.plan import components, used

HOW = (
    "make it usable: write a function with @usable({key!r}) in tests/fixtures/swapping/ingredients.py, which returns its "
    "keys (files made in the test) and the components that it needs"
)


def test_every_component_can_be_used(kitchen: Kitchen) -> None:
    wrong = []
    for kind, of_kind in used().items():
        for name in of_kind:
            table = table_of(as_overrides(keys_of([Swap(kind, name)], kitchen)))
            if table["valid"] == kitchen.usable(kind, name).refused:
                told = table.get("message", "is valid, although its ingredients say `refused`")
                wrong.append(f"{kind}={name}: {told}\n  {HOW.format(key=f'{kind}/{name}')}")
    assert not wrong, "\n".join(wrong)


def test_ingredients_are_of_installed_components() -> None:
    installed = {
        f"{kind}/{name.rpartition('/')[2]}"
        for kind, of_kind in components().items()
        for name in of_kind
    }
    assert set(names()) <= installed


def test_a_component_that_joins_has_its_defaults(kitchen: Kitchen) -> None:
    """As one of a plugin installed later, which has no function here."""
    assert not kitchen.usable("sampler", "new").differs
    assert kitchen.usable("sampler", "new").is_section


def test_ingredients_are_made_once(kitchen: Kitchen) -> None:
    made = []

    @usable("sampler/of_a_test")
    def make(kitchen: Kitchen) -> Usable:
        made.append(1)
        return kitchen.usable("sampler", "new")

    try:
        assert kitchen.usable("sampler", "plugin/of_a_test") is kitchen.usable(
            "sampler", "of_a_test"
        )
        assert made == [1]
    finally:
        names().pop("sampler/of_a_test")
