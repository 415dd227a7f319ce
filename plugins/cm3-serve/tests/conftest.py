"""A browser for the tests of the page, and a server with models of different abilities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from toy_server import Served, served, toy, tuned


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A running browser."""
    from toy_page import CHROMIUM, api

    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """A server with models for different tasks; test files that need another server have their own."""
    models = {
        "toy": toy(),
        "tuned": tuned(),
        "answers": tuned({"answer": "vqa"}),
        "places": tuned({"draw": "t2i", "place": "object_to_image"}),
    }
    with served(models, most_models=4) as running:
        yield running
