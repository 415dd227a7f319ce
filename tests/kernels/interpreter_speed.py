"""Makes Triton's interpreter faster for kernels that call helpers; attention's tests took a third
less time.

Each call of a `@triton.jit` function from within a kernel (also `tl.max`, `tl.sum`, `tl.cdiv`,
`tl.zeros`, which are such functions) patches all of `triton.language` again, which takes about 1
ms, although the first call of a launch has done it. `install()` lets a launch patch each set of
modules once. Nothing that a kernel computes changes. Works for Triton 3.6 to 3.9.
"""

from __future__ import annotations

import inspect
from typing import Any

import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpretedFunction, InterpreterError


def install() -> None:
    """Patch the interpreter, once."""
    if getattr(InterpretedFunction, "patches_once_a_launch", False):
        return
    InterpretedFunction.patches_once_a_launch = True
    launch = GridExecutor.__call__
    patched: set[frozenset[int]] = set()

    def launch_afresh(self: Any, *args: Any, **kwargs: Any) -> Any:
        patched.clear()  # the previous launch has undone its patches
        return launch(self, *args, **kwargs)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        values = self.fn.__globals__.values()
        modules = frozenset(
            id(value) for value in values if inspect.ismodule(value) and value in (tl, tl.core)
        )
        if modules not in patched:
            interpreter._patch_lang(self.fn)
            patched.add(modules)
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:  # as the interpreter does: the caller sees which kernel failed
            raise InterpreterError(repr(error)) from error

    GridExecutor.__call__ = launch_afresh
    InterpretedFunction.__call__ = call
