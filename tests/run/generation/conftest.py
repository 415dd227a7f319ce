"""Fixtures of the generation tests."""

from __future__ import annotations

import pytest

from engine_parts import make_decoder


@pytest.fixture(scope="module")
def decoder():
    return make_decoder()
