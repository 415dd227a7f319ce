"""Bodies of `multipart/form-data`: fields as JSON would have them, and pictures, kept in memory."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from cm3apps.server.errors import APIError, invalid_value
from cm3apps.server.fields import Field
from cm3apps.server.pictures import Upload

if TYPE_CHECKING:
    from cm3apps.server.settings import Limits

#: "sampling[temperature]", as clients send objects; "image[]", as they send lists.
_INSIDE = re.compile(r"(\w+)\[(\w[\w.]*)\]")
MAX_FIELDS = 200


async def form_values(
    headers: Headers, body: bytes, fields: Sequence[Field], limits: Limits
) -> tuple[dict[str, Any], dict[str, list[Upload]]]:
    """The fields of a form, and the pictures among them.

    Raises:
        APIError: it is no form, or holds too many fields or files, or a file where none belongs.
    """

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""

    parser = MultiPartParser(
        headers,
        pieces(),
        max_files=limits.pictures + 1,
        max_fields=MAX_FIELDS,
        max_part_size=limits.body_bytes,
    )
    parser.spool_max_size = limits.body_bytes + 1  # never on disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise APIError(
            400, f"the body is not a form ({reason[:120]})", code="invalid_form"
        ) from None
    known = {field.name: field for field in fields}
    values: dict[str, Any] = {}
    uploads: dict[str, list[Upload]] = {}
    for key, value in form.multi_items():
        name = key.removesuffix("[]")
        field = known.get(name)
        if isinstance(value, UploadFile):
            if field is None or field.sort != "picture":
                raise APIError(
                    400,
                    f"{name[:60]}: no file is taken here",
                    param=name[:60],
                    code="unknown_parameter",
                )
            own = uploads.setdefault(name, [])
            place = name if not own else f"{name}[{len(own)}]"
            own.append(Upload(await value.read(), place))
        elif field is None and (inside := _INSIDE.fullmatch(key)):
            owner = values.setdefault(inside[1], {})
            if isinstance(owner, dict):
                owner[inside[2]] = Field(name=key, sort="object", help="").from_form(value)
        elif field is not None and field.sort == "picture":
            raise invalid_value(name, "is a text, must be a file")
        else:
            values[name] = value if field is None else field.from_form(value)
    await form.close()
    return values, uploads
