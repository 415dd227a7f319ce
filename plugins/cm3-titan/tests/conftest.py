"""torchtitan for these tests, on the CPU; they skip where it is not installed."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

#: The reason of a skip.
MISSING = "needs pip install './plugins/cm3-titan[torchtitan]'"


@pytest.fixture(scope="session")
def torchtitan() -> None:
    """torchtitan, imported for the CPU."""
    if find_spec("torchtitan") is None:
        pytest.skip(MISSING)
    from cm3titan.on_cpu import use_cpu

    use_cpu()
