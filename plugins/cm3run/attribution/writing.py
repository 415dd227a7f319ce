"""Files of generated pictures, with what made them and the documents that were in front."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from PIL import Image as Pillow

from cm3core.errors import DataError
from cm3core.images import png_bytes
from cm3run.attribution.credits import Credit, PictureFacts, told_copy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cm3core.interfaces.dataset import Original

#: The PNG chunk that readers of XMP look for.
XMP_KEY = "XML:com.adobe.xmp"
#: The element of our chunks, as JSON.
FACTS = "{urn:cm3leon:facts}facts"
#: Largest XMP packet that a JPEG file holds, in bytes.
_XMP_BYTES = 65_000
_GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_NAMESPACES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "cc": "http://creativecommons.org/ns#",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "made": "urn:cm3leon:facts",
}
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")
_OPENING = re.compile(r"<svg\b[^>]*?(/?)>", re.DOTALL)
_METADATA = re.compile(r"\s*(?:<metadata\b[^>]*?/>|<metadata\b.*?</metadata>)\s*", re.DOTALL)


def png(pixels: NDArray[np.uint8], facts: PictureFacts) -> bytes:
    """The bytes of a PNG; pixels as `cm3core.images.png_bytes` takes them."""
    return png_bytes(pixels, facts.chunks() | {XMP_KEY: xmp(facts, with_chunks=False)})


def encoded(
    pixels: NDArray[np.uint8], format: str, facts: PictureFacts, *, quality: int = 100
) -> bytes:
    """The bytes of a picture file.

    Args:
        pixels: uint8 [height, width, 3 or 4].
        format: "png", "jpeg" or "webp".
        facts: written into it.
        quality: of JPEG and WebP, 0..100.
    """
    if format == "png":
        return png(pixels, facts)
    packet = xmp(facts).encode()
    if len(packet) > _XMP_BYTES:  # a prompt may be long; the documents stay
        packet = xmp(replace(facts, texts={}), with_chunks=False).encode()
    if len(packet) > _XMP_BYTES:
        raise DataError(
            f"{format} file",
            f"can't name the {len(facts.credits)} documents that were in front",
            "write a PNG",
        )
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, format=format.upper(), quality=quality, xmp=packet)
    return file.getvalue()


def svg(text: str, facts: PictureFacts) -> str:
    """An SVG with the facts as its `<metadata>`, in place of such as it has.

    Raises:
        DataError: it has no `<svg>` element.
    """
    return _with_metadata(text, _rdf(facts, "cc:Work"))


def _with_metadata(text: str, rdf: ElementTree.Element) -> str:
    text = _METADATA.sub("", text)
    opening = _OPENING.search(text)
    if opening is None:
        raise DataError("SVG", "has no <svg> element", "give an SVG")
    written = f"<metadata>\n{_serialised(rdf)}\n</metadata>"
    if opening[1]:  # <svg ... /> has no place for it
        return text.replace(opening[0], f"{opening[0][:-2]}>\n{written}\n</svg>", 1)
    return text.replace(opening[0], f"{opening[0]}\n{written}\n", 1)


def original_files(original: Original, credit: Credit) -> list[tuple[str, bytes]]:
    """A document's own file, with whom to name for it: in the metadata of an SVG, beside any other as REUSE has it
    (https://reuse.software), in FILE.license.

    Returns the ends of the files' names, and their bytes.

    Raises:
        DataError: the file is no SVG though it is called one, or its ending is none.
    """
    place = f"original of {credit.id}"
    if not _SUFFIX.fullmatch(original.suffix):
        raise DataError(
            place, f"has the ending {original.suffix!r}", "use one such as .svg or .jpg"
        )
    if original.suffix == ".svg":
        texts = {"original": credit.id}
        own = replace(credit, nearness=None)
        root = _element("rdf:RDF")
        work = _document(own, "cc:Work", rdf_about="")
        work.append(_element("made:facts", json.dumps(PictureFacts(texts, (own,)).chunks())))
        root.append(work)
        try:
            text = _with_metadata(original.content.decode("utf-8"), root)
        except (UnicodeDecodeError, DataError) as error:
            raise DataError(place, "is called .svg and is none", "correct the data set") from error
        return [(original.suffix, text.encode())]
    own_provenance = credit.provenance
    lines = {
        "SPDX-FileCopyrightText": own_provenance.attribution,
        "SPDX-License-Identifier": own_provenance.licence,
        "SPDX-FileComment": credit.line,
    }
    beside = "".join(f"{key}: {_one_line(text)}\n" for key, text in lines.items() if text)
    return [
        (original.suffix, original.content),
        (f"{original.suffix}.license", beside.encode()),
    ]


def xmp(facts: PictureFacts, *, with_chunks: bool = True) -> str:
    """An XMP packet: that a model made the picture (IPTC's digital source type), and after which documents."""
    root = _element("x:xmpmeta")
    root.append(_rdf(facts, "rdf:Description", with_chunks=with_chunks))
    return _serialised(root)


def licences_text(pictures: Iterable[tuple[str, Sequence[Credit]]]) -> str:
    """The file LICENSES of a zip: for each picture, by its name, the documents that were in front."""
    lines = [
        "These pictures were generated by a model. Each was drawn after the documents that it names here, and is a",
        "changed version of them: keep this file, or name them yourself, where you use the pictures.",
        "",
    ]
    for name, credits in pictures:
        told = told_copy(credits)
        lines.append(f"{name}: {told}" if told else name)
        lines += [f"  {_one_line(one.line)}" for one in credits] or ["  no document was in front"]
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _name(prefixed: str) -> str:
    prefix, _, name = prefixed.partition(":")
    return f"{{{_NAMESPACES[prefix]}}}{name}"


def _element(name: str, text: str = "", **attributes: str) -> ElementTree.Element:
    """An element by its prefixed name; attributes with `_` for the colon. Characters that XML can't hold are left
    out."""
    own = {_name(key.replace("_", ":")): _NO_XML.sub("", one) for key, one in attributes.items()}
    element = ElementTree.Element(_name(name), own)
    element.text = _NO_XML.sub("", text) or None
    return element


def _added(parent: ElementTree.Element, name: str, text: str = "", **attributes: str) -> None:
    if text or attributes:
        parent.append(_element(name, text, **attributes))


def _rdf(facts: PictureFacts, node: str, *, with_chunks: bool = True) -> ElementTree.Element:
    """What is known of the picture as RDF, in the forms that XMP allows where the node is a description."""
    root = _element("rdf:RDF")
    work = _element(node, rdf_about="")
    root.append(work)
    is_xmp = node == "rdf:Description"
    rights = "\n".join(one.line for one in facts.credits)
    texts = {
        "dc:title": facts.texts.get("prompt", ""),
        "dc:description": "\n".join(
            filter(None, [facts.texts.get("prompt", ""), told_copy(facts.credits)])
        ),
        "dc:rights": rights,
    }
    for name, text in texts.items():
        if text and is_xmp:
            work.append(_listed(name, "rdf:Alt", text))
        else:
            _added(work, name, text)
    if is_xmp:
        _added(work, "xmp:CreatorTool", facts.generator)
        _added(work, "Iptc4xmpExt:DigitalSourceType", _GENERATED)
        documents = _element("made:documents")
    else:
        creator = _element("dc:creator")
        agent = _element("cc:Agent")
        _added(agent, "dc:title", facts.generator)
        creator.append(agent)
        work.append(creator)
        _added(work, "dc:format", "image/svg+xml")
        _added(work, "Iptc4xmpExt:DigitalSourceType", rdf_resource=_GENERATED)
        documents = _element("dc:source")
    if facts.credits:
        bag = _element("rdf:Bag")
        bag.extend(_document(one) for one in facts.credits)
        documents.append(bag)
        work.append(documents)
    if with_chunks:
        _added(work, "made:facts", json.dumps(facts.chunks()))
    return root


def _listed(name: str, kind: str, text: str) -> ElementTree.Element:
    """A property of XMP whose value is a list."""
    element, values = _element(name), _element(kind)
    item = _element("rdf:li", text)
    item.set("{http://www.w3.org/XML/1998/namespace}lang", "x-default")
    values.append(item)
    element.append(values)
    return element


def _document(one: Credit, name: str = "rdf:li", **attributes: str) -> ElementTree.Element:
    item = _element(name, **attributes or {"rdf_parseType": "Resource"})
    own = one.provenance
    _added(item, "dc:identifier", one.id)
    _added(item, "dc:title", own.title)
    _added(item, "dc:creator", own.attribution)
    _added(item, "dc:source", own.address or own.source)
    _added(item, "dc:publisher", own.collection)
    _added(item, "dc:rights", own.licence)
    if own.licence_link:
        _added(item, "cc:license", rdf_resource=own.licence_link)
    if one.nearness is not None:
        _added(item, "made:nearness", f"{one.nearness:.3f}")
    return item


def _serialised(root: ElementTree.Element) -> str:
    for prefix, address in _NAMESPACES.items():
        ElementTree.register_namespace(prefix, address)
    ElementTree.indent(root, " ")
    return ElementTree.tostring(root, encoding="unicode")
