"""The process that the programs of this folder are forked from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fuzzing.prepared import Prepared


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    process = Prepared(tmp_path_factory.mktemp("prepared"))
    yield process
    process.close()
