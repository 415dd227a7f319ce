"""Every kernel of the package against the rules, and every rule against a kernel that breaks it."""

from __future__ import annotations

from pathlib import Path

import pytest

# Loaded by conftest.py in this folder.
from kernel_lint import RULES, findings, kernels_of

PACKAGE = Path(__file__).parents[2] / "kernels" / "cm3kernels"
SOURCES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "triton" in path.read_text(encoding="utf-8") and kernels_of(path.read_text(encoding="utf-8"))
]

GOOD = """
LIMIT = tl.constexpr(4)

@triton.jit
def good(x_ptr, out_ptr, x_row, n, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * x_row + column, mask=column < n, other=0.0)
    largest = tl.max(x, 0)
    if largest > 0 and BLOCK > LIMIT:
        x = tl.dot(x, x, input_precision="ieee")
    tl.store(out_ptr + row * x_row + column, tl.where(x > -float("inf"), x, -1.0), mask=column < n)
"""
#: What to replace in GOOD, by what, and the finding: one case or more for each rule.
PLANTED = {
    "masked load": (
        ", mask=column < n, other=0.0)",
        ", mask=column < n)",
        "line 8: good: a masked load needs `other=`",
    ),
    "block pointer": (
        "tl.max(x, 0)",
        "tl.make_block_ptr(x)",
        "line 9: good: `make_block_ptr` was removed in Triton 3.9",
    ),
    "atomics": (
        "tl.store(out",
        "tl.atomic_add(out",
        "line 12: good: `atomic_add` makes results depend on the order",
    ),
    "libdevice": (
        "tl.max(x, 0)",
        "libdevice.log1p(n)",
        "line 9: good: `libdevice` is not in the interpreter",
    ),
    "assembly": (
        "tl.max(x, 0)",
        "tl.inline_asm_elementwise(n)",
        "line 9: good: `inline_asm_elementwise` is for one vendor",
    ),
    "sort": ("tl.max(x, 0)", "tl.sort(x)", "line 9: good: `sort` of a vocabulary takes seconds"),
    "warp specialisation": (
        "tl.arange(0, BLOCK)",
        "tl.range(0, BLOCK, warp_specialize=True)",
        "line 7: good: `warp_specialize` fails or does nothing",
    ),
    "branch on a block": (
        "if largest > 0",
        "if x > 0",
        "line 10: good: a branch on the block `x`: use tl.where",
    ),
    "branch on a derived block": (
        "largest = tl.max(x, 0)",
        "largest = x * 2",
        "line 10: good: a branch on the block `largest`",
    ),
    "int32 offset": (".to(tl.int64)", "", "line 8: good: `row * x_row` is int32: cast to tl.int64"),
    "mask number": ("-1.0)", "-1e6)", "line 12: good: -1000000.0 looks like a mask"),
    "dot precision": (
        ', input_precision="ieee"',
        "",
        "line 11: good: a dot needs `input_precision=`",
    ),
    "plain constant": (
        "tl.constexpr(4)",
        "4",
        "line 10: good: `LIMIT` of the module is a plain number",
    ),
    "autotune": (
        "@triton.jit",
        "@triton.autotune([], [])\n@triton.jit",
        "line 4: module: `autotune` decides by timing",
    ),
}


def test_the_good_kernel_is_good() -> None:
    assert findings(GOOD) == []


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_mistake_is_found(case: str) -> None:
    old, new, finding = PLANTED[case]
    source = GOOD.replace(old, new)
    assert source != GOOD
    found = findings(source)
    assert [line for line in found if line.startswith(finding)], found


def test_every_rule_has_a_planted_mistake() -> None:
    broken = [GOOD.replace(old, new) for old, new, _ in PLANTED.values()]
    silent = [
        rule.__name__
        for rule in RULES
        if not any(list(rule(kernel)) for source in broken for kernel in kernels_of(source))
    ]
    assert silent == []


def test_kernels_are_found() -> None:
    assert {path.parent.name for path in SOURCES} >= {
        path.parent.name for path in PACKAGE.glob("*/triton.py")
    }


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_kernel_breaks_a_rule(path: Path) -> None:
    assert findings(path.read_text(encoding="utf-8")) == []
