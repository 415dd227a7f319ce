"""A folder with a small CLIP model."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_models import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Hugging Face's format."""
    path = tmp_path_factory.mktemp("clip")
    tiny().save_pretrained(path)
    return path
