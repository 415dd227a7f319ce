"""Reads kernels as text, for mistakes that the interpreter forgives and a GPU doesn't. Each rule is
a function of one kernel.

    findings(source) -> ["line 12: kernel: what is wrong", ...]

A kernel is a function decorated with `triton.jit`. What a rule can't know (the type of an argument)
it assumes to be harmless; the rules forbid what our kernels never need.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

#: Attribute -> why not. Any mention inside a kernel counts.
FORBIDDEN = {
    "make_block_ptr": "was removed in Triton 3.9: use pointers and masks",
    "advance": "belongs to block pointers, which were removed in Triton 3.9",
    "inline_asm_elementwise": "is for one vendor, and not in the interpreter",
    "libdevice": "is not in the interpreter: write a short series",
    "sort": "of a vocabulary takes seconds in the interpreter: select by thresholds",
    "atomic_add": "makes results depend on the order of programs: write partial results, then "
    "merge them",
    "atomic_cas": "makes results depend on the order of programs",
    "atomic_xchg": "makes results depend on the order of programs",
    "atomic_max": "is not needed: merge in a second kernel",
    "atomic_min": "is not needed: merge in a second kernel",
    "warp_specialize": "fails or does nothing on sm_90 in Triton 3.6 to 3.9",
}
#: Functions that reduce a block to a scalar.
REDUCTIONS = {"sum", "max", "min", "reduce", "argmax", "argmin", "xor_sum"}
#: A finite number this large is a stand-in for infinity.
MASK_LIKE = 1e4


@dataclass(frozen=True)
class Kernel:
    """A kernel's syntax tree, and the names of its module that are plain numbers."""

    tree: ast.FunctionDef
    plain_numbers: frozenset[str]

    def walk(self) -> Iterator[ast.AST]:
        for statement in self.tree.body:
            yield from ast.walk(statement)

    @property
    def constexprs(self) -> set[str]:
        arguments = self.tree.args
        return {
            argument.arg
            for argument in [*arguments.args, *arguments.kwonlyargs]
            if argument.annotation is not None and "constexpr" in ast.unparse(argument.annotation)
        }


def kernels_of(source: str) -> list[Kernel]:
    """All kernels of a module."""
    module = ast.parse(source)
    plain = [
        statement
        for statement in module.body
        if isinstance(getattr(statement, "value", None), ast.Constant | ast.UnaryOp)
    ]
    numbers = frozenset(
        target.id
        for statement in plain
        for target in _targets(statement)
        if isinstance(target, ast.Name)
    )
    return [
        Kernel(node, numbers)
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef)
        and any(
            "jit" in ast.unparse(decorator).split("(")[0].split(".")
            for decorator in node.decorator_list
        )
    ]


def findings(source: str) -> list[str]:
    """What all rules find, by line."""
    found = [
        (line, kernel.tree.name, text)
        for kernel in kernels_of(source)
        for rule in RULES
        for line, text in rule(kernel)
    ]
    found += [
        (node.lineno, "module", "`autotune` decides by timing: use a table of configurations")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and node.attr == "autotune"
    ]
    return [f"line {line}: {name}: {text}" for line, name, text in sorted(set(found))]


def masked_load_needs_other(kernel: Kernel) -> Iterator[tuple[int, str]]:
    """Masked lanes without `other` are undefined on a GPU, and 0 in the interpreter."""
    for call in _calls(kernel, "load"):
        keywords = {keyword.arg for keyword in call.keywords}
        masked, has_other = (
            "mask" in keywords or len(call.args) > 1,
            "other" in keywords or len(call.args) > 2,
        )
        if masked and not has_other:
            yield call.lineno, "a masked load needs `other=`"


def nothing_forbidden(kernel: Kernel) -> Iterator[tuple[int, str]]:
    """Triton functions that our kernels never call."""
    for node in kernel.walk():
        names = {
            ast.Attribute: lambda n: n.attr,
            ast.Name: lambda n: n.id,
            ast.keyword: lambda n: n.arg,
        }
        name = names.get(type(node), lambda n: None)(node)
        if name in FORBIDDEN:
            yield getattr(node, "lineno", kernel.tree.lineno), f"`{name}` {FORBIDDEN[name]}"


def dot_states_its_precision(kernel: Kernel) -> Iterator[tuple[int, str]]:
    """float32 products are tf32 by default on a GPU, and exact in the interpreter."""
    for call in _calls(kernel, "dot"):
        if "input_precision" not in {keyword.arg for keyword in call.keywords}:
            yield call.lineno, "a dot needs `input_precision=`"


def no_large_negative_number(kernel: Kernel) -> Iterator[tuple[int, str]]:
    """A large number in place of -inf counts as an ordinary score when everything is masked."""
    for node in kernel.walk():
        if (
            isinstance(node, ast.UnaryOp)
            and isinstance(node.op, ast.USub)
            and isinstance(node.operand, ast.Constant)
            and isinstance(node.operand.value, float)
            and MASK_LIKE <= node.operand.value < float("inf")
        ):
            yield (
                node.lineno,
                f"{ast.unparse(node)} looks like a mask: use -inf and a guard for rows with "
                "nothing visible",
            )


def no_branch_on_a_block(kernel: Kernel) -> Iterator[tuple[int, str]]:
    """`if block:` is an error on a GPU, and "all are true" in the interpreter."""
    blocks = _names_from(
        kernel,
        lambda node: isinstance(node, ast.Call) and _called(node) in {"arange", "full", "zeros"},
        stop=lambda node: isinstance(node, ast.Call) and _called(node) in REDUCTIONS,
    )
    for node in kernel.walk():
        if isinstance(node, ast.If | ast.While | ast.IfExp):
            for name in _names_outside(
                node.test,
                lambda inner: isinstance(inner, ast.Call) and _called(inner) in REDUCTIONS,
            ):
                if name in blocks:
                    yield (
                        node.lineno,
                        f"a branch on the block `{name}`: use tl.where, or reduce it first",
                    )


def offsets_are_int64(kernel: Kernel) -> Iterator[tuple[int, str]]:
    """program_id and loaded numbers are int32: multiplied by a stride or a length (any argument
    known only at run time) they overflow 2^31 silently."""
    arguments = {argument.arg for argument in kernel.tree.args.args} - kernel.constexprs
    wide = _names_from(kernel, _is_int64)
    narrow = (
        _names_from(
            kernel,
            lambda node: isinstance(node, ast.Call) and _called(node) in {"program_id", "load"},
        )
        - wide
    )
    for node in kernel.walk():
        if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)):
            continue
        for stride, other in ((node.left, node.right), (node.right, node.left)):
            if not (isinstance(stride, ast.Name) and stride.id in arguments) or stride.id in wide:
                continue
            names = {inner.id for inner in ast.walk(other) if isinstance(inner, ast.Name)}
            direct = any(
                isinstance(inner, ast.Call) and _called(inner) == "program_id"
                for inner in ast.walk(other)
            )
            if (
                (names & narrow or direct)
                and not names & wide
                and not any(map(_is_int64, ast.walk(other)))
            ):
                yield (
                    node.lineno,
                    f"`{ast.unparse(node)}` is int32: cast to tl.int64 before the product",
                )


def constants_are_constexpr(kernel: Kernel) -> Iterator[tuple[int, str]]:
    """A module-level number inside a kernel must be `tl.constexpr`: the compiler refuses it, the
    interpreter doesn't."""
    for node in kernel.walk():
        if (
            isinstance(node, ast.Name)
            and isinstance(node.ctx, ast.Load)
            and node.id in kernel.plain_numbers
        ):
            yield node.lineno, f"`{node.id}` of the module is a plain number: make it tl.constexpr"


RULES: tuple[Callable[[Kernel], Iterator[tuple[int, str]]], ...] = (
    masked_load_needs_other,
    nothing_forbidden,
    dot_states_its_precision,
    no_large_negative_number,
    no_branch_on_a_block,
    offsets_are_int64,
    constants_are_constexpr,
)


def _called(call: ast.Call) -> str:
    return (
        call.func.attr
        if isinstance(call.func, ast.Attribute)
        else call.func.id
        if isinstance(call.func, ast.Name)
        else ""
    )


def _calls(kernel: Kernel, name: str) -> Iterator[ast.Call]:
    """Calls of `tl.NAME` (not of a method of that name)."""
    for node in kernel.walk():
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {
            f"tl.{name}",
            f"triton.language.{name}",
        }:
            yield node


def _targets(statement: ast.AST) -> list[ast.expr]:
    if isinstance(statement, ast.Assign):
        return [
            inner
            for target in statement.targets
            for inner in (target.elts if isinstance(target, ast.Tuple) else [target])
        ]
    return [statement.target] if isinstance(statement, ast.AnnAssign | ast.AugAssign) else []


def _is_int64(node: ast.AST) -> bool:
    """`x.to(tl.int64)`, `tl.cast(x, tl.int64)`, or an argument's annotation."""
    return isinstance(node, ast.Attribute) and node.attr in {"int64", "uint64"}


def _names_outside(node: ast.AST, stop: Callable[[ast.AST], bool]) -> Iterator[str]:
    """Names in an expression, except inside nodes that `stop` selects, and except where only a
    shape or type is read (`x.dtype`)."""
    if stop(node) or (isinstance(node, ast.Attribute) and node.attr in {"dtype", "shape", "type"}):
        return
    if isinstance(node, ast.Compare) and any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
        return
    if isinstance(node, ast.Name):
        yield node.id
    for child in ast.iter_child_nodes(node):
        yield from _names_outside(child, stop)


def _names_from(
    kernel: Kernel,
    is_source: Callable[[ast.AST], bool],
    stop: Callable[[ast.AST], bool] = lambda node: False,
) -> set[str]:
    """Names whose value comes from a source, directly or through other names, to a fixed point."""
    found: set[str] = set()
    while True:
        before = len(found)
        for statement in kernel.walk():
            value = getattr(statement, "value", None)
            if not _targets(statement) or value is None or stop(value):
                continue
            if any(map(is_source, _outside(value, stop))) or found & set(
                _names_outside(value, stop)
            ):
                found |= {
                    target.id for target in _targets(statement) if isinstance(target, ast.Name)
                }
        if len(found) == before:
            return found


def _outside(node: ast.AST, stop: Callable[[ast.AST], bool]) -> Iterator[ast.AST]:
    if stop(node):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _outside(child, stop)
