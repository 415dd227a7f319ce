"""Conversations in files, which `cm3 chat` loads, saves and replies to.

    {"messages": [{"role": "user", "content": [{"type": "image", "file": "bell.png"},
                                               {"type": "text", "text": "What is it?"}]},
                  {"role": "assistant", "content": "A bell."}]}

`content` may be a plain text. A picture's `file` is relative to the folder of the conversation's file.
A picture drawn by a model also has `codes`, which the model reads instead of the file's pixels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3core.errors import DataError
from cm3core.files import read_text, write_text
from cm3run.json_text import parse_json

if TYPE_CHECKING:
    from cm3run.model.turns import Part, ReplyPicture, Turn

#: Maximum bytes of a file with one conversation, or of one line.
MOST_BYTES = 2**26
_FORM = 'write {"messages": [{"role": "user", "content": "..."}]}'


def read_conversation(path: Path) -> tuple[list[Turn], dict[int, Path]]:
    """The turns of a saved conversation, and the files of the pictures that a model drew, by `id`.

    Raises:
        DataError: the file can't be read, or is no conversation.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(str(path), "is larger than any conversation", "give a saved one")
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise DataError(str(path), f"can't be read ({error})", "give a file of cm3 chat") from error
    files: dict[int, Path] = {}
    return turns_in(text, str(path), path.parent, files)[0], files


def turns_in(
    text: str, place: str, folder: Path, files: dict[int, Path] | None = None
) -> tuple[list[Turn], str]:
    """The turns of a conversation as JSON, and its id ("": none).

    Args:
        text: JSON.
        place: its name in errors.
        folder: the base of relative picture paths.
        files: filled with the file of each picture that a model drew, by `id`.
    """
    from cm3run.model.turns import ReplyPicture, Turn

    value = parse_json(text, place, _FORM)
    messages = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(messages, list):
        raise DataError(place, "has no list 'messages'", _FORM)
    turns = []
    for number, message in enumerate(messages):
        where = f"{place}, message {number}"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("user", "assistant"):
            raise DataError(where, f"has the role {role!r}", "use 'user' or 'assistant'")
        content = message.get("content")
        parts = [content] if isinstance(content, str) else content
        if not isinstance(parts, list) or not parts:
            raise DataError(where, "has no content", "give a text, or a list of parts")
        made = [(one, _part(one, where, folder)) for one in parts]
        if files is not None:
            files |= {
                id(part): folder / one["file"]
                for one, part in made
                if isinstance(part, ReplyPicture)
            }
        turns.append(Turn(role, tuple(part for _, part in made)))
    name = value.get("id", "")
    return turns, name if isinstance(name, str) else str(name)


def _part(value: object, place: str, folder: Path) -> Part:
    """A text or a picture."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        if value.get("type") == "text" and isinstance(value.get("text"), str):
            return str(value["text"])
        file = value.get("file")
        if value.get("type") == "image" and isinstance(file, str) and "\0" not in file:
            path = folder / file
            return path if value.get("codes") is None else _drawn(value["codes"], path, place)
    raise DataError(
        place,
        "has a part that is neither a text nor a picture",
        'use {"type": "text", "text": "..."} and {"type": "image", "file": "..."}',
    )


def _drawn(codes: object, path: Path, place: str) -> ReplyPicture:
    """A picture that a model drew."""
    import numpy as np

    from cm3core import images
    from cm3core.document import Codes
    from cm3run.model.turns import ReplyPicture

    grid = codes.get("grid") if isinstance(codes, Mapping) else None
    values = codes.get("codes") if isinstance(codes, Mapping) else None
    known = [one for one in (grid, values) if isinstance(one, list)]
    whole = all(type(one) is int and 0 <= one < 2**24 for own in known for one in own)
    if len(known) != 2 or not whole or len(known[0]) != 2 or np.prod(known[0]) != len(known[1]):
        raise DataError(
            place, "has invalid picture codes", "leave 'codes' out, so that the file is read"
        )
    pixels = images.open_image(path)
    return ReplyPicture(
        pixels, Codes(np.array(values, np.int32), (known[0][0], known[0][1])), 0, 0.0
    )


def write_conversation(path: Path, turns: Sequence[Turn], files: Mapping[int, Path]) -> None:
    """Save a conversation.

    Args:
        path: the file, which is replaced.
        turns: the conversation's turns.
        files: the files of the pictures that a model drew, by `id`.
    """
    from cm3run.model.turns import ReplyPicture

    def shown(part: Part) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        if isinstance(part, ReplyPicture):
            codes = {"grid": list(part.codes.grid), "codes": part.codes.codes.tolist()}
            return {"type": "image", "file": _beside(path, files[id(part)]), "codes": codes}
        assert isinstance(part, Path)
        return {"type": "image", "file": _beside(path, part)}

    messages = [
        {"role": turn.role, "content": [shown(part) for part in turn.parts]} for turn in turns
    ]
    write_text(path, json.dumps({"messages": messages}, ensure_ascii=False, indent=1) + "\n")


def _beside(path: Path, file: Path) -> str:
    """A file's path relative to the folder of another."""
    try:
        return os.path.relpath(file.absolute(), path.absolute().parent)
    except ValueError:  # on another drive
        return str(file.absolute())
