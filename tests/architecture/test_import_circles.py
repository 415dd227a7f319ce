"""No module imports itself by way of others, in none of the packages.

Every import counts: those inside functions, those for annotations (`if TYPE_CHECKING:`), and those
of a package's `__init__`. A circle means that none of its files can be read without the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import grimp
import pytest

from source_packages import PACKAGES


def circles(modules: Iterable[str], imported_by: Callable[[str], Iterable[str]]) -> list[list[str]]:
    """Groups of two or more modules that reach each other (strongly connected components; Tarjan
    1972)."""
    found: list[list[str]] = []
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        path.append(module)
        for other in sorted(imported_by(module)):
            if other not in number:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in path:
                lowest[module] = min(lowest[module], number[other])
        if lowest[module] == number[module]:
            group = path[path.index(module) :]
            del path[path.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in sorted(modules):
        if module not in number:
            visit(module)
    return sorted(found)


def test_no_module_is_in_a_circle() -> None:
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    assert len(graph.modules) > 300
    assert circles(graph.modules, graph.find_modules_directly_imported_by) == []


@pytest.mark.parametrize(
    ("imports", "expected"),
    [
        ({"a": ["b"], "b": ["c"], "c": []}, []),
        ({"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}, []),  # two ways to one place
        ({"a": ["b"], "b": ["a"]}, [["a", "b"]]),
        ({"x": ["a"], "a": ["b"], "b": ["c", "y"], "c": ["a"], "y": []}, [["a", "b", "c"]]),
        (
            {"a": ["b"], "b": ["a", "c"], "c": ["d"], "d": ["c"]},
            [["a", "b"], ["c", "d"]],
        ),
    ],
)
def test_the_search_finds_circles(imports: dict[str, list[str]], expected: list[list[str]]) -> None:
    assert circles(imports, imports.__getitem__) == expected
