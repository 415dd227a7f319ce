"""Files of pictures that name the documents in front: written by hand-made facts, parsed by XML's own parser, read back."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cm3core.errors import DataError
from cm3core.images import png_bytes
from cm3core.interfaces.dataset import Original, Provenance, licence_link
from cm3run.attribution import (
    Credit,
    PictureFacts,
    encoded,
    facts_in,
    facts_in_zip,
    facts_of_file,
    licences_text,
    original_files,
    png,
    svg,
    together,
    told_copy,
    xmp,
)
from messages import tells

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
DC = "{http://purl.org/dc/elements/1.1/}"
CC = "{http://creativecommons.org/ns#}"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><path d="M0 0"/></svg>'
BELL = Credit(
    "set/bell",
    Provenance("CC-BY-4.0", "npm set 1.0", "Ann & <Bob>", "set", "bell", "https://example.org/set"),
    0.912,
)
HAND = Credit("context 0")
FACTS = PictureFacts(
    {"prompt": "a bell", "seed": "3", "model": "icons", "recipe_hash": "00"}, (BELL, HAND)
)
PIXELS = np.full((8, 8, 3), 255, np.uint8)
TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from("\0\x0b\x1b\r\n<>&]'\"\ufffe"))


def test_an_svg_names_its_documents_in_dublin_cores_terms() -> None:
    root = ElementTree.fromstring(svg(SVG, FACTS))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert [child.tag.rpartition("}")[2] for child in root] == ["metadata", "path"]
    [work] = root.iter(f"{CC}Work")
    assert work.get(f"{RDF}about") == ""
    assert work.findtext(f"{DC}title") == "a bell"
    assert work.findtext(f"{DC}description") == "a bell\nnearly a copy of set/bell (CC-BY-4.0)"
    agent = work.find(f"{DC}creator/{CC}Agent/{DC}title")
    assert agent is not None
    assert agent.text == "cm3leon 0.1.0, icons"
    assert work.findtext(f"{DC}rights") == (
        'set/bell: "bell" by Ann & <Bob>, of set; CC-BY-4.0, '
        "https://creativecommons.org/licenses/by/4.0/; https://example.org/set; npm set 1.0\n"
        "context 0: author unknown; licence unknown"
    )
    bell, hand = work.findall(f"{DC}source/{RDF}Bag/{RDF}li")
    known = {child.tag.rpartition("}")[2]: child.text for child in bell}
    assert known == {
        "identifier": "set/bell",
        "title": "bell",
        "creator": "Ann & <Bob>",
        "source": "https://example.org/set",
        "publisher": "set",
        "rights": "CC-BY-4.0",
        "license": None,
        "nearness": "0.912",
    }
    link = bell.find(f"{CC}license")
    assert link is not None
    assert link.get(f"{RDF}resource") == "https://creativecommons.org/licenses/by/4.0/"
    assert hand.findtext(f"{DC}rights") == "unknown"


@pytest.mark.parametrize("form", ["png", "jpeg", "webp", "svg"])
def test_every_form_says_the_same(form: str) -> None:
    content = svg(SVG, FACTS).encode() if form == "svg" else encoded(PIXELS, form, FACTS)
    found = facts_in(content, form)
    assert found.is_credited
    assert found.credits == FACTS.credits
    assert {key: found.texts[key] for key in FACTS.texts} == FACTS.texts
    if form != "svg":
        with Image.open(io.BytesIO(content)) as picture:
            assert picture.format == form.upper()
            assert picture.size == (8, 8)


@given(TEXTS, TEXTS)
def test_any_prompt_and_any_author_make_valid_xml(prompt: str, author: str) -> None:
    credit = Credit(author, Provenance(prompt, author, author, prompt, author, prompt), 0.5)
    facts = PictureFacts({"prompt": prompt, "recipe_hash": "0"}, (credit,))
    ElementTree.fromstring(xmp(facts))
    found = facts_in(svg(SVG, facts).encode(), "svg")
    assert found.texts["prompt"] == prompt
    assert [(one.id, one.provenance.attribution) for one in found.credits] == [(author, author)]


def test_a_prompt_that_is_too_long_for_jpeg_leaves_the_documents() -> None:
    long = PictureFacts({"prompt": "bell " * 30_000, "recipe_hash": "0"}, (BELL,))
    with Image.open(io.BytesIO(encoded(PIXELS, "jpeg", long))) as picture:
        root = ElementTree.fromstring(picture.info["xmp"])
    assert "Ann & <Bob>" in "".join(root.itertext())
    many = PictureFacts(
        {}, tuple(Credit(f"set/{number}", BELL.provenance) for number in range(300))
    )
    with pytest.raises(DataError) as caught:
        encoded(PIXELS, "jpeg", many)
    assert tells(caught.value, "jpeg file: has no room for the 300 ... PNG")
    assert len(facts_in(png(PIXELS, many.with_texts(recipe_hash="0")), "png").credits) == 300


def test_metadata_that_an_svg_has_is_replaced() -> None:
    other = SVG.replace("<path", "<metadata id='a'><x/></metadata><metadata/><path")
    assert svg(other, FACTS) == svg(SVG, FACTS)
    assert svg(svg(SVG, FACTS), FACTS) == svg(SVG, FACTS)
    empty = '<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>'
    assert facts_in(svg(empty, FACTS).encode(), "svg").credits == FACTS.credits
    with pytest.raises(DataError, match="SVG: has no <svg> element"):
        svg("<g/>", FACTS)


def test_what_a_copy_is_called() -> None:
    assert told_copy([HAND, BELL]) == "nearly a copy of set/bell (CC-BY-4.0)"
    assert told_copy([Credit("a", nearness=0.8)]) == "nearly a copy of a (licence unknown)"
    assert told_copy([Credit("a", nearness=0.79)]) == told_copy([]) == told_copy([HAND]) == ""


def test_the_documents_of_a_sheet_are_named_once_each() -> None:
    far = Credit("set/bell", BELL.provenance, 0.1)
    assert together([[far, HAND], [BELL], [HAND]]) == (BELL, HAND)


def test_a_picture_that_is_made_of_another_names_its_documents_too() -> None:
    twice = PictureFacts({}, (HAND, HAND))  # two parts of one document
    assert twice.after(()).credits == (HAND, HAND)
    assert twice.after([BELL, HAND, BELL]).credits == (HAND, HAND, replace(BELL, nearness=None))


def test_the_text_for_a_zip() -> None:
    assert licences_text([("bell", (BELL, HAND)), ("house", ())]).splitlines()[3:] == [
        "bell: nearly a copy of set/bell (CC-BY-4.0)",
        '  set/bell: "bell" by Ann & <Bob>, of set; CC-BY-4.0, '
        "https://creativecommons.org/licenses/by/4.0/; https://example.org/set; npm set 1.0",
        "  context 0: author unknown; licence unknown",
        "house",
        "  no documents",
    ]


def test_an_original_comes_with_whom_to_name() -> None:
    [(end, content)] = original_files(Original(".svg", SVG.encode()), BELL)
    assert end == ".svg"
    [work] = ElementTree.fromstring(content).iter(f"{CC}Work")
    assert work.findtext(f"{DC}creator") == "Ann & <Bob>"
    assert work.findtext(f"{DC}title") == "bell"
    found = facts_in(content, "original")
    assert (found.texts["original"], "prompt" in found.texts) == ("set/bell", False)
    assert [one.provenance for one in found.credits] == [BELL.provenance]
    (end, content), (beside, words) = original_files(Original(".jpg", b"bytes"), BELL)
    assert (end, content, beside) == (".jpg", b"bytes", ".jpg.license")
    assert words.decode().splitlines() == [
        "SPDX-FileCopyrightText: Ann & <Bob>",
        "SPDX-License-Identifier: CC-BY-4.0",
        f"SPDX-FileComment: {BELL.line}",
    ]


@pytest.mark.parametrize(
    ("licence", "link"),
    [
        ("CC-BY-SA-3.0", "https://creativecommons.org/licenses/by-sa/3.0/"),
        ("CC-BY-NC-ND-4.0", "https://creativecommons.org/licenses/by-nc-nd/4.0/"),
        ("apache-2.0", "https://spdx.org/licenses/Apache-2.0.html"),
        ("proprietary", ""),
        ("LicenseRef-mine", ""),
        ("", ""),
        ("(", ""),
    ],
)
def test_where_a_licence_can_be_read(licence: str, link: str) -> None:
    assert licence_link(licence) == link


def in_zip(**files: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("_", "."), content)
    return target.getvalue()


def test_the_pictures_of_a_zip() -> None:
    content = in_zip(bell_png=png(PIXELS, FACTS), bell_svg=svg(SVG, FACTS).encode(), LICENSES=b"x")
    found = facts_in_zip(content, "set.zip")
    assert list(found) == ["bell.png", "bell.svg"]
    assert all(one.credits == FACTS.credits for one in found.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SVG.encode(), "x: has no generation metadata"),
        (b"<svg", "x: is not well-formed XML"),
        (
            b'<!DOCTYPE svg [<!ENTITY a "b">]>' + SVG.encode(),
            "x: has a document type declaration, which is refused",
        ),
        (png_bytes(PIXELS), "x: has no generation metadata"),
        (b"nothing", "x: is not a picture"),
        (
            png_bytes(PIXELS, {"recipe_hash": "0", "documents": "[{}]"}),
            "x: its metadata are damaged",
        ),
        (png_bytes(PIXELS, {"recipe_hash": "0", "documents": "{"}), "x: its metadata are damaged"),
        (
            png_bytes(PIXELS, {"recipe_hash": "0", "retrieved": "[1]"}),
            "x: its metadata are damaged",
        ),
        (
            png_bytes(
                PIXELS,
                {
                    "recipe_hash": "0",
                    "documents": json.dumps([{"id": "a", "licence": "MIT", "nearness": 7}]),
                },
            ),
            "x: its metadata are damaged",
        ),
    ],
)
def test_files_that_say_nothing_or_nonsense(content: bytes, message: str, tmp_path) -> None:
    with pytest.raises(DataError) as caught:
        facts_in(content, "x")
    assert str(caught.value).startswith(message)
    (tmp_path / "x").write_bytes(content)
    assert facts_of_file(tmp_path / "x") is None


def cut_zip() -> bytes:
    """One whose table says that it begins before the file does."""
    content = bytearray(in_zip(a_png=png(PIXELS, FACTS)))
    del content[:5]
    return b"PK\x03\x04" + bytes(content[4:])


def test_bad_zips() -> None:
    for content, message in (
        (b"PK\x03\x04 and no more", "x: is a damaged zip"),
        (cut_zip(), "x: is a damaged zip"),
        (in_zip(a_txt=b"a"), "x: contains no picture with generation metadata"),
        (in_zip(a_png=b"a"), "x: a.png: is not a picture"),
    ):
        with pytest.raises(DataError) as caught:
            facts_in_zip(content, "x")
        assert str(caught.value).startswith(message)


def test_files_of_earlier_versions_have_ids_alone() -> None:
    old = png_bytes(PIXELS, {"recipe_hash": "0", "retrieved": '["set/bell"]'})
    found = facts_in(old, "old")
    assert not found.is_credited
    assert found.credits == (Credit("set/bell"),)


@pytest.mark.parametrize(
    ("original", "cause"),
    [
        (Original("/../x", b""), "has the extension '/../x'"),
        (Original(".svg", b"<p>no drawing</p>"), "has the extension .svg but is not an SVG"),
        (Original(".svg", b"\xff<svg/>"), "has the extension .svg but is not an SVG"),
    ],
)
def test_originals_that_are_none(original: Original, cause: str) -> None:
    with pytest.raises(DataError) as caught:
        original_files(original, BELL)
    assert str(caught.value).startswith(f"original of set/bell: {cause}\n")


FILES = {
    "png": png(PIXELS, FACTS),
    "jpeg": encoded(PIXELS, "jpeg", FACTS),
    "webp": encoded(PIXELS, "webp", FACTS),
    "svg": svg(SVG, FACTS).encode(),
    "zip": in_zip(bell_png=png(PIXELS, FACTS), bell_svg=svg(SVG, FACTS).encode()),
}


@given(st.sampled_from(sorted(FILES)), st.data())
def test_damaged_files_end_in_a_message(form: str, data: st.DataObject) -> None:
    content = bytearray(FILES[form])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(1, 3))] = data.draw(st.binary(max_size=3))
    damaged = bytes(content[: data.draw(st.integers(1, len(content)))])
    with contextlib.suppress(DataError):
        (facts_in_zip if form == "zip" else facts_in)(damaged, "damaged")
