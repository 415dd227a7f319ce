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


class _Parser(MultiPartParser):
    """Knows whether the line came that ends a form; starlette reads one that is cut off as a shorter one."""

    ended = False

    def on_end(self) -> None:
        self.ended = True


async def form_values(
    headers: Headers, body: bytes | bytearray, fields: Sequence[Field], limits: Limits
) -> tuple[dict[str, Any], dict[str, list[Upload]]]:
    """The fields of a form, and the pictures among them.

    Raises:
        APIError: it is no form, or is cut off, or holds too many fields or files, a field twice, or a file
            where none belongs.
    """

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield bytes(body)
        yield b""

    parser = _Parser(
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
    if not parser.ended:
        await form.close()
        raise APIError(
            400,
            "the body is cut off: the line that ends its form is not there. Next: send it whole",
            code="incomplete_body",
        )
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
                if inside[2] in owner:
                    raise _twice(key)
                owner[inside[2]] = Field(name=key, sort="object", help="").from_form(value)
        elif field is not None and field.sort == "picture":
            raise invalid_value(name, "is a text, must be a file")
        elif name in values:
            raise _twice(name)
        else:
            values[name] = value if field is None else field.from_form(value)
    await form.close()
    return values, uploads


def _twice(key: str) -> APIError:
    return APIError(
        400,
        f"{key[:60]}: is given twice. Next: keep one of the two",
        param=key[:60],
        code="invalid_form",
    )
