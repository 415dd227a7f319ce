"""XML without declarations, in whatever encoding it is."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import DataError
from cm3plugins.datasets.svg_folder.reading import parsed
from cm3run.xml_text import MOST_LEVELS, parse_xml

BODY = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path d="M0 0h9v9z"/></svg>'
SVG = "{http://www.w3.org/2000/svg}svg"
PUBLIC = '"-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd"'
#: Each is ten times the one before.
_LAUGHS = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))


def with_entity(declaration: str, use: str = "&a;") -> str:
    return f"<!DOCTYPE svg [{declaration}]>{BODY.replace('M0', f'{use}M0')}"


#: Name -> a document, and the words of its refusal.
REFUSED = {
    "internal entity": with_entity('<!ENTITY a "b">'),
    "entity that nothing uses": with_entity('<!ENTITY a "b">', ""),
    "external entity": with_entity('<!ENTITY a SYSTEM "file:///etc/passwd">'),
    "parameter entity": with_entity("<!ENTITY % p \"<!ENTITY a 'b'>\"> %p;"),
    "external parameter entity": with_entity(
        '<!ENTITY % p SYSTEM "http://127.0.0.1/x.dtd"> %p;', ""
    ),
    "billion laughs": with_entity(f'<!ENTITY a0 "ha">{_LAUGHS}', "&a11;"),
    "quadratic": with_entity(f'<!ENTITY a "{"M0 0h1 " * 2800}">', "&a;" * 3000),
    "attributes": with_entity('<!ATTLIST svg width CDATA "9">', ""),
    "entity behind a long comment": f"<!--{'x' * 5000}-->" + with_entity('<!ENTITY a "b">'),
}


def encoded(text: str, encoding: str) -> bytes:
    """As a program would write it that knows the encoding, with the mark or the declaration that it needs."""
    if encoding in ("utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        return text.encode(encoding)
    if encoding == "utf-16 with a declaration":
        return f'<?xml version="1.0" encoding="UTF-16"?>{text}'.encode("utf-16")
    return f'<?xml version="1.0" encoding="{encoding}"?>{text}'.encode(encoding)


READ = ("utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-16 with a declaration", "cp1252")
ENCODINGS = (*READ, "utf-32", "utf-7", "latin-1", "cp037", "shift_jis")


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("public_type", [False, True])
def test_declarations_are_refused_in_any_encoding(
    name: str, encoding: str, public_type: bool
) -> None:
    begin = time.monotonic()
    with pytest.raises(DataError) as caught:
        parse_xml(
            encoded(REFUSED[name], encoding), "a.svg", "leave it out", public_type=public_type
        )
    assert time.monotonic() - begin < 1
    assert (caught.value.place, caught.value.next_step) == ("a.svg", "leave it out")
    if encoding in READ:
        assert caught.value.cause in (
            "has a document type declaration, which is refused",
            "declares entities or attributes, which is refused",
        )


@pytest.mark.parametrize("encoding", READ)
@pytest.mark.parametrize("kind", ["svg", f"svg PUBLIC {PUBLIC}", 'svg SYSTEM "file:///etc/passwd"'])
def test_a_document_type_that_declares_nothing(encoding: str, kind: str) -> None:
    """Inkscape and Illustrator write one; nothing is fetched for it."""
    content = encoded(f"<!DOCTYPE {kind}>{BODY}", encoding)
    with pytest.raises(DataError, match="has a document type declaration, which is refused"):
        parse_xml(content)
    assert parse_xml(content, public_type=True).tag == SVG


@pytest.mark.parametrize("encoding", READ)
def test_other_documents_are_read(encoding: str) -> None:
    assert parse_xml(encoded(BODY, encoding)).tag == SVG
    assert parse_xml(BODY).tag == SVG
    assert parsed(encoded(BODY, encoding)).svg.count("<path") == 1


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "is not well-formed XML (no element found"),
        ("\ud800", "is not well-formed XML ("),
        (b"<svg>\xff</svg>", "is not well-formed XML (not well-formed"),
        (b"<svg>&b;</svg>", "is not well-formed XML (undefined entity"),
        (b"<svg><!DOCTYPE a></svg>", "is not well-formed XML ("),
        ("<g>" * 300 + "</g>" * 300, f"has elements nested deeper than {MOST_LEVELS} levels"),
        (b"<svg>" + b" " * 100 + b"</svg>", "has more than 99 bytes"),
    ],
)
def test_what_is_wrong_is_named(content: bytes | str, cause: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_xml(content, most_bytes=99 if "99" in cause else 10_000)
    assert caught.value.cause.startswith(cause)


@given(st.binary(max_size=200), st.integers(0, len(BODY)))
def test_any_bytes_are_read_or_refused(noise: bytes, place: int) -> None:
    content = BODY.encode()
    for one in (noise, content[:place] + noise + content[place:]):
        with contextlib.suppress(DataError):
            parse_xml(one)
