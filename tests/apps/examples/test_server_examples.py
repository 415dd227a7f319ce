"""The examples that call the server: nodes for ComfyUI, held to its contract, and a page by Gradio."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from toy_model import picture, toy_model
from toy_server import served

EXAMPLES = Path(__file__).parents[3] / "examples"


def module_of(path: Path, name: str, package: bool = False) -> ModuleType:
    """As ComfyUI imports a folder of custom_nodes."""
    where = [str(path.parent)] if package else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=where)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def nodes() -> ModuleType:
    return module_of(EXAMPLES / "comfyui" / "__init__.py", "comfyui_cm3leon", package=True)


def test_nodes_keep_comfyuis_contract(nodes):
    assert set(nodes.NODE_CLASS_MAPPINGS) == set(nodes.NODE_DISPLAY_NAME_MAPPINGS)
    for node in nodes.NODE_CLASS_MAPPINGS.values():
        inputs = node.INPUT_TYPES()
        assert set(inputs) <= {"required", "optional", "hidden"}
        given: dict[str, Any] = {}
        for name, (sort, *rest) in (inputs["required"] | inputs["optional"]).items():
            assert sort in {"IMAGE", "MASK", "STRING", "INT", "FLOAT"}
            given[name] = rest[0].get("default") if rest else None
        function = getattr(node(), node.FUNCTION)
        names = set(function.__code__.co_varnames[1 : function.__code__.co_argcount])
        assert names == set(given)
        assert isinstance(node.RETURN_TYPES, tuple)
        assert node.CATEGORY == "cm3leon"


def test_the_nodes_draw_and_fill(nodes):
    draw, fill = (nodes.NODE_CLASS_MAPPINGS[name]() for name in ("Cm3Draw", "Cm3Fill"))
    whole = picture(8, 8)
    image = torch.from_numpy(np.stack([whole, whole]).astype(np.float32) / 255)
    mask = torch.zeros(1, 8, 8)
    mask[:, 4:] = 1
    with served() as server:
        (drawn,) = draw.draw("red", 2, 7, server=server.url)
        (filled,) = fill.fill(image, mask, "red", 5, server=server.url)
        with pytest.raises(RuntimeError, match="prompt: is 25 tokens long"):
            draw.draw("a prompt that is too long", 1, 0, server=server.url)
    assert drawn.dtype == torch.float32
    own = toy_model().generate("red", 2, seed=7)
    assert (drawn * 255).round().byte().numpy().tolist() == [one.pixels.tolist() for one in own]
    expected = toy_model().infill(whole, (0, 4, 8, 8), "red", seed=5).pixels
    assert (filled * 255).round().byte().numpy().tolist() == [expected.tolist()] * 2
    with pytest.raises(RuntimeError, match=r"no server answers at http://127\.0\.0\.1:9"):
        draw.draw("red", 1, 0, server="http://127.0.0.1:9")


def test_the_gradio_page_shows_growing_pictures(monkeypatch):
    """Its function; Gradio itself is not among the tests' packages."""
    pytest.importorskip("openai", reason="the package openai is not installed")
    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace())
    with served() as server:
        monkeypatch.setenv("CM3_SERVE_URL", server.url)
        module = module_of(EXAMPLES / "gradio_app.py", "gradio_app")
        shown = [np.asarray(one.convert("RGB")) for one in module.draw("red", 7)]
    assert len(shown) == 4
    assert (shown[-1] == toy_model().generate("red", 1, seed=7)[0].pixels).all()
