"""A separate cache folder for every test, and samples of every format for the kits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from picture_files import picture, write, write_tar
from swift_server import swift  # noqa: F401  # the fixture


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CM3_CACHE", str(folder))
    return folder


@pytest.fixture(scope="class")
def samples(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Six good records and a bad one in each format, for the kits."""
    root = tmp_path_factory.mktemp("samples")
    captions = {f"{i}": f"picture {i}\nnumber {i}\n" for i in range(6)}
    for i, text in captions.items():
        write(root / "folder", {f"a/{i}.png": picture(int(i)), f"a/{i}.txt": text})
    write(root / "folder", {"a/bare.png": picture(9)})
    lines: list[Any] = [
        {"text": text.split("\n"), "image": f"folder/a/{i}.png"} for i, text in captions.items()
    ]
    lines.append(
        {
            "segments": [
                {"text": "one"},
                {"image": "folder/a/1.png"},
                {"text": ["two", "zwei"]},
                {"image": "folder/a/2.png"},
            ]
        }
    )
    lines.append({"text": "", "image": "folder/a/1.png"})
    write(root, {"all.jsonl": "\n".join(map(json.dumps, lines))})
    write_tar(
        root / "0.tar",
        {f"{i}.png": picture(int(i)) for i in captions}
        | {f"{i}.txt": text for i, text in captions.items()}
        | {"bare.png": picture(9)},
    )
    request.cls.root = root
