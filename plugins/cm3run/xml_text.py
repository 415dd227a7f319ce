"""XML from a file, a row or a person: read without declarations, and within bounds.

A document type declaration is the only place of entities, by which a small file becomes a large one or names files of the
reader's. A parser finds it, in whatever encoding the file is, and refuses it before anything behind it is read.
"""

from __future__ import annotations

from typing import Any, Final
from xml.etree import ElementTree
from xml.parsers import expat

from cm3core.errors import DataError

#: Most elements inside each other: those that walk the tree may call themselves for each.
MOST_LEVELS: Final = 200
#: Bytes that a parser gets at once: what it does before a declaration is refused is bounded by them.
_PIECE: Final = 1024


class _RefusedError(ValueError):
    """A declaration that the reader refuses."""


#: Most bytes of a document, unless its reader states another number.
MOST_BYTES: Final = 1 << 24


def parse_xml(
    content: bytes | str,
    place: str = "SVG",
    next_step: str = "use another drawing",
    *,
    most_bytes: int = MOST_BYTES,
    public_type: bool = False,
) -> ElementTree.Element:
    """The root of an XML document.

    Args:
        content: the document.
        place: its name in errors.
        next_step: what to do about a document that is refused.
        most_bytes: limit of its length.
        public_type: accept a document type that only names a definition published elsewhere, as drawing programs write
            it; it is never fetched. One with declarations of its own is refused anyway.

    Raises:
        DataError: it is too large, no well-formed XML, nested too deeply, or has a document type declaration.
    """
    if len(content) > most_bytes:
        raise DataError(place, f"has more than {most_bytes:,} bytes", next_step)
    try:
        _check_declarations(content, public_type)
        root = ElementTree.fromstring(content)
    except _RefusedError as error:
        raise DataError(place, str(error), next_step) from None
    # encodings that the parser doesn't know are a ValueError or a LookupError
    except (ElementTree.ParseError, expat.ExpatError, ValueError, LookupError) as error:
        raise DataError(place, f"is not well-formed XML ({error})", next_step) from error
    level = [root]
    for _ in range(MOST_LEVELS):
        level = [child for element in level for child in element]
        if not level:
            return root
    raise DataError(place, f"has elements nested deeper than {MOST_LEVELS} levels", next_step)


def _check_declarations(content: bytes | str, public_type: bool) -> None:
    """Read a document up to its first element, before which all declarations are.

    Raises:
        _RefusedError: there is one that is refused.
    """
    parser = expat.ParserCreate()
    begun = False

    def begin(name: str, attributes: Any) -> None:
        nonlocal begun
        begun = True

    def refuse(*declaration: Any) -> None:
        raise _RefusedError("declares entities or attributes, which is refused")

    def refuse_type(name: str, system: str | None, public: str | None, has_own: int) -> None:
        if not public_type:
            raise _RefusedError("has a document type declaration, which is refused")
        if has_own:
            refuse()

    parser.StartElementHandler = begin
    parser.StartDoctypeDeclHandler = refuse_type
    parser.EntityDeclHandler = parser.AttlistDeclHandler = refuse
    for start in range(0, len(content), _PIECE):
        parser.Parse(content[start : start + _PIECE])
        if begun:
            return
    parser.Parse(content[:0], True)
