"""`/v1/conditions`: structures of pictures that are sent, and each way in which it refuses."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cm3core.errors import MissingPackageError
from cm3core.images import fit, open_image
from cm3core.interfaces.condition import Condition
from cm3plugins.conditions import CannyConfig, LineSegmentsConfig
from cm3run.model import conditions
from cm3serve.conditions import LONGEST, MOST_KEPT, Structures
from cm3serve.settings import Limits
from toy_server import GENERATE, Served, png, served, tuned, tuned_model

pytest.importorskip("cv2", reason="the package opencv-python-headless is not installed")
PATH = "/v1/conditions"


@pytest.fixture(autouse=True)
def whatever_the_codes_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy's sixteen codes keep little of any structure."""
    monkeypatch.setattr(conditions, "LEAST_STRUCTURE", 0.0)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    limits = Limits(picture_pixels=10_000, body_bytes=60_000, body_seconds=0.5)
    with served({"tuned": tuned()}, limits=limits) as running:
        yield running


def photo() -> Any:
    pixels = np.full((48, 64, 3), 255, np.uint8)
    pixels[10:40, 20:50] = (200, 30, 30)
    return pixels


def url_of(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def test_it_is_what_the_condition_draws_as_the_model_sees_it(server: Served) -> None:
    for name, config in {"canny": CannyConfig(), "lsd": LineSegmentsConfig()}.items():
        answer = server.post(PATH, condition=name, image_url=url_of(png(photo()))).json()
        expected = fit(config.build().draw(photo()), (8, 8))
        assert (open_image(base64.b64decode(answer["b64_json"])) == expected).all()
        assert (answer["condition"], answer["feature"]) == (name, config.feature)
        assert answer["size"] == "8x8"
    # which is what a generation follows
    follow = {"image_url": url_of(base64.b64decode(answer["b64_json"])), "feature": "line segments"}
    drawn = server.post(GENERATE, prompt="red", condition=follow, seed=3)
    picture = open_image(base64.b64decode(drawn.json()["data"][0]["b64_json"]))
    own = tuned_model().generate("red", 1, seed=3, condition=("lsd", photo()))[0]
    assert (picture == own.pixels).all()


def test_large_pictures_are_drawn_smaller(server: Served) -> None:
    wide = np.full((4, 2400, 3), 255, np.uint8)
    wide[:, 1196:1204] = 0
    answer = server.post(PATH, condition="canny", image_url=url_of(png(wide))).json()
    small = fit(wide, (2, LONGEST))
    expected = fit(CannyConfig().build().draw(small), (8, 8))
    assert (open_image(base64.b64decode(answer["b64_json"])) == expected).all()


def test_the_page_is_told_what_can_be_drawn(server: Served) -> None:
    facts = server.post("/studio/facts").json()
    offered = {one["name"]: one["feature"] for one in facts["conditions"]}
    # those from texts, without weights, and pictures as they are, are left out
    assert offered == {
        "canny": "canny edge features",
        "edges": "edges",
        "lsd": "line segments",
        "regions": "regions",
        "xdog": "scribble",
    }


@pytest.mark.parametrize(
    ("body", "message", "param", "code"),
    [
        (
            {"image_url": "data:"},
            "condition: is missing",
            "condition",
            "missing_required_parameter",
        ),
        (
            {"condition": "canny"},
            "image_url: is missing",
            "image_url",
            "missing_required_parameter",
        ),
        (
            {"condition": "kanny", "image_url": "data:"},
            "condition: is 'kanny', must be one of canny, edges, lsd, regions, xdog",
            "condition",
            "invalid_value",
        ),
        (
            {"condition": "hed", "image_url": "data:"},
            "condition: is 'hed', must be one of canny, edges, lsd, regions, xdog",
            "condition",
            "invalid_value",
        ),
        (
            {"condition": "canny", "image_url": "http://127.0.0.1/a.png"},
            "image_url: is not a data: URL; this server never fetches addresses. Next: send the "
            "picture itself, as data:image/png;base64,...",
            "image_url",
            "invalid_image_url",
        ),
        (
            {"condition": "canny", "image_url": "data:image/png;base64,!"},
            "image_url: is not base64 (Only base64 data is allowed)",
            "image_url",
            "invalid_base64",
        ),
        (
            {"condition": "canny", "image_url": "data:", "file": "/etc/passwd"},
            "unknown parameter: 'file'; known: condition, image_url, model",
            "file",
            "unknown_parameter",
        ),
        (
            {"condition": ["canny"], "image_url": "data:"},
            "condition: is a list, must be a string",
            "condition",
            "invalid_value",
        ),
    ],
)
def test_wrong_fields(server: Served, body: Any, message: str, param: str, code: str) -> None:
    answer = server.post(PATH, **body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["message"], error["param"], error["code"]) == (message, param, code)


def test_pictures_beyond_the_limits(server: Served) -> None:
    large = np.zeros((101, 100, 3), np.uint8)
    answer = server.post(PATH, condition="canny", image_url=url_of(png(large)))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_image"
    assert "100 x 101 pixels, more than 10,000" in answer.json()["error"]["message"]
    broken = server.post(PATH, condition="canny", image_url=url_of(png(photo())[:60]))
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_image")
    long = server.post(PATH, condition="canny", image_url="data:" + "A" * 70_000)
    assert (long.status_code, long.json()["error"]["code"]) == (413, "body_too_large")
    unknown = server.post(PATH, condition="canny", image_url="data:", model="other")
    assert unknown.status_code == 404


def test_each_is_built_once_and_the_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    class Same(Condition):
        fingerprint = "same"

        def _draw(self, source: Any, rng: Any) -> Any:
            return source.copy()

    def open_one(model: Any, name: str) -> tuple[Condition, str]:
        built.append(name)
        if name == "none":
            raise MissingPackageError("a", "b", "c")
        return Same(), name

    monkeypatch.setattr("cm3serve.conditions.open_condition", open_one)
    monkeypatch.setattr("cm3serve.conditions.condition_config", lambda model, name: CannyConfig())
    structures = Structures()
    for place in [*range(MOST_KEPT), 0, MOST_KEPT, 0, 1]:
        structures.of(None, f"c{place}")  # type: ignore[arg-type]  # not looked at
    # the ninth took the place of the one whose use was longest ago
    assert built == [*(f"c{place}" for place in range(MOST_KEPT + 1)), "c1"]
