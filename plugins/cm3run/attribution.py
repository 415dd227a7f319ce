"""Attribution of pictures: the documents that were prepended when a picture was generated, with their licences, are
written into its file and read back.

Files of generated pictures are made only by `png`, `encoded` and `svg`. Each takes `PictureFacts`, which list the
documents, so no attribution that a licence requires can be left out. The metadata are stored as follows:

    PNG           text chunks (prompt, seed, ... and `documents`, JSON), and an XMP packet
    JPEG, WebP    the XMP packet, with the chunks as JSON in it
    SVG           <metadata>, RDF in Dublin Core's and Creative Commons' terms, with the chunks as JSON in it

Files to be read may come from anyone, so nothing that they name is opened.
"""

from __future__ import annotations

import io
import json
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired
from xml.etree import ElementTree

from PIL import Image as Pillow
from PIL import PngImagePlugin

from cm3core._version import SOFTWARE, THIS_PROGRAM
from cm3core.arguments import Range
from cm3core.errors import DataError
from cm3core.files import check_regular
from cm3core.images import FORMATS, MAX_FILE_BYTES, open_image, png_bytes
from cm3core.interfaces.dataset import UNKNOWN_LICENCE, Provenance, StatedProvenance, provenance_in
from cm3run.json_text import check_form, parse_json
from cm3run.nearness import NEARLY_A_COPY
from cm3run.xml_text import parse_xml

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cm3core.interfaces.dataset import Original

__all__ = [
    "Credit",
    "FileFacts",
    "PictureFacts",
    "credit_in",
    "encoded",
    "facts_in",
    "facts_in_zip",
    "facts_of_file",
    "is_zip",
    "licences_text",
    "nearest",
    "original_files",
    "png",
    "svg",
    "together",
    "told_copy",
    "xmp",
]


#: Keys of a PNG's text chunks: the documents' ids, and their full credits.
RETRIEVED, DOCUMENTS = "retrieved", "documents"
#: The key of a file that shows a document's own picture, with its id: no model made it.
ORIGINAL = "original"
#: The key of a file that shows a document in another form, made without a model; with the document's id.
ADAPTED = "adapted"


@dataclass(frozen=True)
class Credit:
    """A document that was prepended for a picture.

    Args:
        id: its name in the memory; "context 0", ... for one that the caller passed.
        provenance: its licence and source.
        nearness: of the picture to it, 0..1; None if unknown.
    """

    id: str
    provenance: Provenance = field(default_factory=Provenance)
    nearness: float | None = None

    @property
    def is_copy(self) -> bool:
        """Whether the picture is almost a copy of it."""
        return self.nearness is not None and self.nearness >= NEARLY_A_COPY

    @property
    def named(self) -> str:
        """Its id and licence.

        >>> Credit("ph/bell", Provenance("MIT")).named
        'ph/bell (MIT)'
        """
        known = self.provenance.licence != UNKNOWN_LICENCE
        return f"{self.id} ({self.provenance.licence if known else 'licence unknown'})"

    @property
    def line(self) -> str:
        """The full attribution: title, author, set, licence with its address, address, and place of publication.

        >>> print(Credit("x/bell", Provenance("CC-BY-4.0", "npm x 1", "Ann", "x", "bell", "https://x.org")).line)
        x/bell: "bell" by Ann, of x; CC-BY-4.0, https://creativecommons.org/licenses/by/4.0/; https://x.org; npm x 1
        >>> print(Credit("context 0").line)
        context 0: author unknown; licence unknown
        """
        own = self.provenance
        title = f'"{own.title}" by ' if own.title and own.attribution else ""
        author = own.attribution or "author unknown"
        collection = f", of {own.collection}" if own.collection else ""
        licence = own.licence if own.licence != UNKNOWN_LICENCE else "licence unknown"
        link = f", {own.licence_link}" if own.licence_link else ""
        parts = (f"{title}{author}{collection}", f"{licence}{link}", own.address, own.source)
        return f"{self.id}: {'; '.join(dict.fromkeys(part for part in parts if part))}"

    def as_json(self) -> dict[str, Any]:
        """All fields, as in files and the API; unknown texts are ""."""
        own = self.provenance
        known = {"id": self.id, **asdict(own), "link": own.address}
        known["licence_link"] = own.licence_link
        if self.nearness is not None:
            known["nearness"] = round(self.nearness, 3)
        return known


class CreditForm(StatedProvenance):
    """The form of `Credit.as_json`."""

    id: str
    nearness: NotRequired[Annotated[float, Range(0, 1)] | None]


def credit_in(values: Any) -> Credit:
    """Read the output of `Credit.as_json`; raises `DataError` for anything else."""
    check_form(values, CreditForm, "credit")
    near = values.get("nearness")
    return Credit(values["id"], provenance_in(values), None if near is None else float(near))


def nearest(credits: Iterable[Credit]) -> Credit | None:
    """The credit with the greatest nearness, the first on ties; None: no nearness is known."""
    known = [one for one in credits if one.nearness is not None]
    return max(known, key=lambda one: one.nearness or 0.0, default=None)


def told_copy(credits: Iterable[Credit]) -> str:
    """Describes a near-copy of a document; "" if the picture is not one.

    >>> told_copy([Credit("ph/bell", Provenance("MIT"), 0.91), Credit("ph/key", nearness=0.2)])
    'nearly a copy of ph/bell (MIT)'
    """
    found = nearest(credits)
    return f"nearly a copy of {found.named}" if found is not None and found.is_copy else ""


def together(pictures: Iterable[Sequence[Credit]]) -> tuple[Credit, ...]:
    """The documents of all pictures on a sheet, each once, with its greatest nearness to any picture."""
    found: dict[tuple[str, Provenance], Credit] = {}
    for one in (one for own in pictures for one in own):
        key = one.id, one.provenance
        same = [one, *filter(None, [found.get(key)])]
        near = [each.nearness for each in same if each.nearness is not None]
        found[key] = replace(one, nearness=max(near, default=None))
    return tuple(found.values())


@dataclass(frozen=True)
class PictureFacts:
    """All metadata of a picture.

    Args:
        texts: how it was made: prompt, seed, model, ...; by their keys in PNG files.
        credits: the documents that were prepended.
    """

    texts: Mapping[str, str]
    credits: tuple[Credit, ...]

    def with_texts(self, **texts: str) -> PictureFacts:
        """A copy with additional texts."""
        return replace(self, texts={**self.texts, **texts})

    def after(self, credits: Iterable[Credit]) -> PictureFacts:
        """The metadata of a picture made from another one: a copy with the other picture's credits added."""
        own = {(one.id, one.provenance) for one in self.credits}
        more = together([[replace(one, nearness=None) for one in credits]])
        new = tuple(one for one in more if (one.id, one.provenance) not in own)
        return replace(self, credits=(*self.credits, *new))

    def chunks(self) -> dict[str, str]:
        """The text chunks of a PNG, without the XMP packet."""
        ids = json.dumps([one.id for one in self.credits], ensure_ascii=False)
        documents = json.dumps([one.as_json() for one in self.credits], ensure_ascii=False)
        return {**self.texts, RETRIEVED: ids, DOCUMENTS: documents, SOFTWARE: THIS_PROGRAM}

    @property
    def is_original(self) -> bool:
        """Whether it is a document's own picture."""
        return ORIGINAL in self.texts

    @property
    def source_type(self) -> str:
        """How it came about, as IPTC names it; "" for a document's own picture."""
        if self.is_original:
            return ""
        return _ENHANCED if ADAPTED in self.texts else _GENERATED

    @property
    def generator(self) -> str:
        """The program, and the model if it is known."""
        return ", ".join([THIS_PROGRAM, *filter(None, [self.texts.get("model", "")])])


#: The PNG chunk in which readers look for XMP.
XMP_KEY = "XML:com.adobe.xmp"
#: The element that holds the chunks as JSON.
FACTS = "{urn:cm3leon:facts}facts"
#: Size limit of the XMP packet in a JPEG file, in bytes.
_XMP_BYTES = 65_000
_ENHANCED = "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicallyEnhanced"
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
    """Encode a PNG; pixels as for `cm3core.images.png_bytes`."""
    return png_bytes(pixels, facts.chunks() | {XMP_KEY: xmp(facts, with_chunks=False)})


def encoded(
    pixels: NDArray[np.uint8], format: str, facts: PictureFacts, *, quality: int = 100
) -> bytes:
    """Encode a picture file.

    Args:
        pixels: uint8 [height, width, 3 or 4].
        format: "png", "jpeg" or "webp".
        facts: written into it.
        quality: of JPEG and WebP, 0..100.
    """
    if format == "png":
        return png(pixels, facts)
    packet = xmp(facts).encode()
    if len(packet) > _XMP_BYTES:  # drop the prompt, which may be long; keep the documents
        packet = xmp(replace(facts, texts={}), with_chunks=False).encode()
    if len(packet) > _XMP_BYTES:
        raise DataError(
            f"{format} file",
            f"has no room for the {len(facts.credits)} documents that were prepended",
            "write a PNG",
        )
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, format=format.upper(), quality=quality, xmp=packet)
    return file.getvalue()


def svg(text: str, facts: PictureFacts) -> str:
    """An SVG with the facts as its `<metadata>`, replacing any that it has.

    Raises:
        DataError: the text has no `<svg>` element.
    """
    return _with_metadata(text, _rdf(facts, "cc:Work"))


def _with_metadata(text: str, rdf: ElementTree.Element) -> str:
    text = _METADATA.sub("", text)
    opening = _OPENING.search(text)
    if opening is None:
        raise DataError("SVG", "has no <svg> element", "give an SVG")
    written = f"<metadata>\n{_serialised(rdf)}\n</metadata>"
    if opening[1]:  # <svg ... /> is self-closing
        return text.replace(opening[0], f"{opening[0][:-2]}>\n{written}\n</svg>", 1)
    return text.replace(opening[0], f"{opening[0]}\n{written}\n", 1)


def original_files(original: Original, credit: Credit) -> list[tuple[str, bytes]]:
    """A document's original file with its attribution: in the metadata of an SVG; for other files in FILE.license, as
    REUSE specifies (https://reuse.software).

    Returns the suffixes of the files' names, and their bytes.

    Raises:
        DataError: an .svg file is not an SVG, or the file name extension is invalid.
    """
    place = f"original of {credit.id}"
    if not _SUFFIX.fullmatch(original.suffix):
        raise DataError(
            place, f"has the extension {original.suffix!r}", "use one such as .svg or .jpg"
        )
    if original.suffix == ".svg":
        texts = {ORIGINAL: credit.id}
        own = replace(credit, nearness=None)
        root = _element("rdf:RDF")
        work = _document(own, "cc:Work", rdf_about="")
        work.append(_element("made:facts", json.dumps(PictureFacts(texts, (own,)).chunks())))
        root.append(work)
        try:
            text = _with_metadata(original.content.decode("utf-8"), root)
        except (UnicodeDecodeError, DataError) as error:
            raise DataError(
                place, "has the extension .svg but is not an SVG", "correct the data set"
            ) from error
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
    """An XMP packet: states that a model made the picture (IPTC's digital source type), and the prepended
    documents."""
    root = _element("x:xmpmeta")
    root.append(_rdf(facts, "rdf:Description", with_chunks=with_chunks))
    return _serialised(root)


def licences_text(pictures: Iterable[tuple[str, Sequence[Credit]]]) -> str:
    """The file LICENSES of a zip: the prepended documents of each picture, by the picture's name."""
    lines = [
        "A model generated these pictures, except where their names say otherwise. Each is an adaptation of the documents",
        "listed under it: keep this file, or credit the documents yourself, wherever you use the pictures.",
        "",
    ]
    for name, credits in pictures:
        told = told_copy(credits)
        lines.append(f"{name}: {told}" if told else name)
        lines += [f"  {_one_line(one.line)}" for one in credits] or ["  no documents"]
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _name(prefixed: str) -> str:
    prefix, _, name = prefixed.partition(":")
    return f"{{{_NAMESPACES[prefix]}}}{name}"


def _element(name: str, text: str = "", **attributes: str) -> ElementTree.Element:
    """An element by its prefixed name; attributes use `_` for the colon. Characters that XML can't represent are
    dropped."""
    own = {_name(key.replace("_", ":")): _NO_XML.sub("", one) for key, one in attributes.items()}
    element = ElementTree.Element(_name(name), own)
    element.text = _NO_XML.sub("", text) or None
    return element


def _added(parent: ElementTree.Element, name: str, text: str = "", **attributes: str) -> None:
    if text or attributes:
        parent.append(_element(name, text, **attributes))


def _rdf(facts: PictureFacts, node: str, *, with_chunks: bool = True) -> ElementTree.Element:
    """The facts as RDF; if the node is a description, in the forms that XMP allows."""
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
        _added(work, "Iptc4xmpExt:DigitalSourceType", facts.source_type)
        documents = _element("made:documents")
    else:
        creator = _element("dc:creator")
        agent = _element("cc:Agent")
        _added(agent, "dc:title", facts.generator)
        creator.append(agent)
        work.append(creator)
        _added(work, "dc:format", "image/svg+xml")
        _added(work, "Iptc4xmpExt:DigitalSourceType", rdf_resource=facts.source_type)
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
    """An XMP property whose value is a list."""
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


#: Size limit of an SVG and of a file in a zip, in bytes, and limit of files in a zip; more is refused unread.
MAX_BYTES, MAX_FILES = 64 << 20, 10_000
#: Every file that lists its documents has one of these keys.
_MADE_BY = ("recipe_hash", ORIGINAL, ADAPTED)
#: Errors of `zipfile` for damaged files; its own error type is only one of many.
_BROKEN_ZIP = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    OSError,
    struct.error,
)
_NEXT = "name a picture that cm3 generate or cm3 serve wrote"


@dataclass(frozen=True)
class FileFacts:
    """The metadata read from a file.

    Args:
        texts: how it was made, by key, without the documents.
        credits: the documents that were prepended; files of earlier versions have only their ids.
        is_credited: whether more than the documents' ids is known.
    """

    texts: Mapping[str, str]
    credits: tuple[Credit, ...]
    is_credited: bool

    def again(self, **texts: str) -> PictureFacts:
        """The metadata for another version of the picture; `texts`: additional ones, by key."""
        own = {key: text for key, text in self.texts.items() if key != XMP_KEY}
        return PictureFacts(own | texts, self.credits)


def facts_in(content: bytes, place: str) -> FileFacts:
    """Read the metadata in a picture's bytes: PNG, SVG, JPEG or WebP.

    Raises:
        DataError: not a picture, no metadata, or damaged metadata. `place`: its name in messages.
    """
    texts = _in_svg(content, place) if _is_svg(content) else _in_picture(content, place)
    if not any(key in texts for key in _MADE_BY):
        raise DataError(place, "has no generation metadata", _NEXT)
    return _facts(texts, place)


def facts_in_zip(content: bytes, place: str) -> dict[str, FileFacts]:
    """Read the metadata of the pictures in a zip, by name; pictures without metadata are skipped.

    Raises:
        DataError: not a zip, too large, or no picture in it has metadata.
    """
    found: dict[str, FileFacts] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if len(members) > MAX_FILES or sum(one.file_size for one in members) > MAX_BYTES * 16:
                raise DataError(place, "unpacks to more than a set of pictures", _NEXT)
            for one in members:
                if one.filename.endswith((".png", ".svg", ".jpeg", ".jpg", ".webp")):
                    if one.file_size > MAX_BYTES:
                        raise DataError(f"{place}: {one.filename}", "is too large", _NEXT)
                    with archive.open(one) as file:
                        inner = file.read(MAX_BYTES + 1)
                    try:
                        found[one.filename] = facts_in(inner, f"{place}: {one.filename}")
                    except DataError as error:
                        if error.cause != "has no generation metadata":
                            raise
    except DataError:
        raise
    except _BROKEN_ZIP as error:
        raise DataError(place, f"is a damaged zip ({error})", "download it again") from error
    if not found:
        raise DataError(place, "contains no picture with generation metadata", _NEXT)
    return found


def facts_of_file(path: str | Path) -> FileFacts | None:
    """Read the metadata of a picture file; None: not a picture, or no readable metadata."""
    try:
        check_regular(path, str(path))
        if Path(path).stat().st_size > MAX_FILE_BYTES:
            return None
        return facts_in(Path(path).read_bytes(), str(path))
    except (DataError, OSError):
        return None


def is_zip(content: bytes) -> bool:
    """Whether a file starts like a zip."""
    return content[:4] == b"PK\x03\x04"


def _is_svg(content: bytes) -> bool:
    head = content[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    return head.startswith(b"<") and b"<svg" in head


def _in_svg(content: bytes, place: str) -> dict[str, str]:
    return _in_xml(content, place)


def _in_xml(content: bytes, place: str) -> dict[str, str]:
    """The chunks in the facts element."""
    root = parse_xml(content, place, _NEXT, most_bytes=MAX_BYTES)
    element = next(root.iter(FACTS), None)
    if element is None:
        return {}
    values = _json(element.text or "", place, dict[str, Any])
    return {key: str(value) for key, value in values.items()}


def _in_picture(content: bytes, place: str) -> dict[str, str]:
    open_image(
        content, place
    )  # reports errors in broken files; text chunks may also follow the pixels
    with Pillow.open(io.BytesIO(content), formats=FORMATS) as image:
        image.load()
        if isinstance(image, PngImagePlugin.PngImageFile):
            return {key: str(value) for key, value in image.text.items()}
        packet = image.info.get("xmp")
    if not isinstance(packet, bytes):
        return {}
    return _in_xml(packet.rstrip(b"\0"), place)


def _facts(texts: Mapping[str, str], place: str) -> FileFacts:
    ids = _json(texts.get(RETRIEVED, "[]"), place, list[str])
    others = {key: text for key, text in texts.items() if key not in (RETRIEVED, DOCUMENTS)}
    if DOCUMENTS not in texts:
        return FileFacts(others, tuple(map(Credit, ids)), False)
    documents = _json(texts[DOCUMENTS], place, list[CreditForm])
    return FileFacts(others, tuple(map(credit_in, documents)), True)


def _json(text: str, place: str, form: Any) -> Any:
    try:
        return parse_json(text, place, form=form, most_bytes=MAX_BYTES)
    except DataError as error:
        cause = f"its metadata are damaged ({error.cause})"
        raise DataError(place, cause, "generate the picture again") from error
