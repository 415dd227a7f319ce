"""The server says of each picture whether it was found, restyled or composed, and returns the original of what it
found."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Iterator

import httpx
import pytest

from cm3run.attribution import facts_in
from toy_finder import finder
from toy_server import CHAT, Served, served, toy

SETS = "/v1/sets"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served({"finder": finder, "toy": toy()}) as running:
        yield running


def test_pictures_have_an_answer(server):
    answer = server.post(prompt="bell, lucide", seed=1, n=2).json()
    found, drawn = answer["data"]
    assert found["answer"] == {
        "kind": "found",
        "asked": "bell",
        "thing": "bell",
        "similarity": 1.0,
        "same_above": 0.9,
        "unknown_below": 0.5,
        "guess": False,
        "near": [
            {"name": "bell", "similarity": 1.0},
            {"name": "plug", "similarity": 0.112},
            {"name": "bell ring", "similarity": 0.104},
        ],
        "text": "found: lucide/bell (ISC) is 'bell, outline rounded, lucide', similarity 1.00; this is its original",
    }
    [document] = found["documents"]
    assert (document["id"], document["licence"]) == ("lucide/bell", "ISC")
    assert (found["nearness"], found["copy_of"]) == (None, None)
    assert drawn["answer"]["kind"] == "restyled"
    facts = facts_in(base64.b64decode(found["b64_json"]), "png")
    assert facts.texts["original"] == "lucide/bell"
    # only one of the two is drawn
    assert answer["usage"]["output_tokens"] == 16
    [one] = server.post(prompt="bell ring off", seed=1).json()["data"]
    assert (one["answer"]["kind"], one["answer"]["guess"]) == ("composed", True)


def test_what_the_index_has_no_word_of_is_refused(server):
    for body in ({"prompt": "zebra"}, {"prompt": "zebra", "stream": True, "partial_images": 1}):
        refused = server.post(**body)
        assert refused.status_code == 400
        assert "'zebra': no word of it is in the index" in refused.json()["error"]["message"]
    refused = server.post(SETS, things=["bell", "zebra"], style="lucide")
    assert refused.status_code == 400
    assert "'zebra, lucide': no word" in refused.json()["error"]["message"]


def test_the_original_is_sent_and_can_be_fetched(server):
    pytest.importorskip("vtracer", reason="the package vtracer is not installed")
    [one] = server.post(prompt="bell, lucide", return_svg=True).json()["data"]
    assert '<path d="M0 2h4"/>' in one["svg"]
    assert facts_in(one["svg"].encode(), "svg").texts["original"] == "lucide/bell"
    fetched = httpx.get(server.url + one["documents"][0]["original"])
    assert b'<path d="M0 2h4"/>' in fetched.content


def test_drawing_can_be_insisted_on(server):
    [one] = server.post(prompt="bell, lucide", draw=True).json()["data"]
    assert one["answer"]["kind"] == "restyled"
    for draw in (True, False):  # a request works with any model
        [one] = server.post(prompt="red", model="toy", draw=draw).json()["data"]
        assert "answer" not in one


def test_streams_and_sets_have_them(server):
    streamed = server.post(prompt="bell, lucide", stream=True, partial_images=2).text
    assert '"kind": "found"' in streamed
    assert "partial_image" not in streamed
    answer = server.post(SETS, things=["bell", "bell ring off"], style="lucide", seed=1).json()
    assert [one["answer"]["kind"] for one in answer["data"]] == ["found", "composed"]
    assert answer["usage"]["output_tokens"] == 16
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(answer["zip"]))) as archive:
        licences = archive.read("LICENSES").decode()
    assert "\nbell (an original, not generated)\n" in licences
    drawn = server.post(SETS, things=["bell"], style="lucide", draw=True).json()
    assert drawn["data"][0]["answer"]["kind"] == "restyled"


def test_chats_have_them(server):
    message = {"role": "user", "content": "bell, lucide"}
    answer = server.post(CHAT, messages=[message]).json()["choices"][0]["message"]
    assert answer["answer"]["kind"] == "found"
    assert answer["content"][0]["type"] == "image_url"
