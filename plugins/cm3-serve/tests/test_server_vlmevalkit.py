"""VLMEvalKit against `/v1/chat/completions`, as docs/evaluation.md says: the requests of its class LMDeployAPI (which its run.py
uses for `--base-url`), and, where the package is installed, that class itself.

Its pictures are JPEG; the request has `n`, `temperature` and `max_tokens`, and its key is never empty.
"""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from toy_model import picture
from toy_server import CHAT, Served, tuned_model

QUESTION = "What is it?"


def jpeg() -> bytes:
    data = io.BytesIO()
    Image.fromarray(picture(128, 128)).save(data, "JPEG")
    return data.getvalue()


def request(data: bytes | None, **changed: Any) -> dict[str, Any]:
    """The body of a request of vlmeval.api.lmdeploy.LMDeployAPI, at commit e8e78f0."""
    parts: list[Any] = [{"type": "text", "text": QUESTION}]
    if data is not None:
        url = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
        parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
    messages = [{"role": "user", "content": parts}]
    return {
        "model": "answers",
        "messages": messages,
        "n": 1,
        "max_tokens": 64,
        "temperature": 0.0,
    } | changed


def asked(server: Served, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(
        server.url + CHAT, json=body, headers={"Authorization": "Bearer sk-admin"}, timeout=60
    )


def test_questions_are_answered_in_text_and_the_same_each_time(server: Served) -> None:
    """The answer that Python gives without chance."""
    data = jpeg()
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda _: asked(server, request(data)), range(4)))
    assert {one.status_code for one in answers} == {200}
    [said] = {one.json()["choices"][0]["message"]["content"] for one in answers}
    pixels = Image.open(io.BytesIO(data)).convert("RGB")
    expected = tuned_model({"answer": "vqa"}).ask(
        np.asarray(pixels), QUESTION, max_tokens=64, sampling={"text_temperature": 0.0}
    )
    assert said == expected.text


def test_the_default_of_its_max_tokens_is_refused_with_the_most(server: Served) -> None:
    """So --max-tokens must be given."""
    refused = asked(server, request(jpeg(), max_tokens=2**15))
    assert refused.status_code == 400
    assert "write at most 81 text tokens instead of 32768" in refused.json()["error"]["message"]


def test_a_question_without_a_picture_is_answered_by_a_drawing(server: Served) -> None:
    """Which it can't read: benchmarks need a picture in each question."""
    content = asked(server, request(None, model="toy")).json()["choices"][0]["message"]["content"]
    assert [part["type"] for part in content] == ["image_url"]


@pytest.mark.slow
def test_its_own_class(server: Served, tmp_path: Path) -> None:
    pytest.importorskip("vlmeval", reason="VLMEvalKit is not installed")
    from vlmeval.api import LMDeployAPI

    path = tmp_path / "a.png"
    Image.fromarray(picture(128, 128)).save(path)
    model = LMDeployAPI(
        model="answers", api_base=server.url + CHAT, key="sk-admin", max_tokens=64, retry=1
    )
    said = model.generate(
        [{"type": "image", "value": str(path)}, {"type": "text", "value": QUESTION}]
    )
    body = asked(server, request(jpeg())).json()
    assert said == body["choices"][0]["message"]["content"].strip()
