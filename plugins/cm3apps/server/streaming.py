"""Server-sent events."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

#: Closes a stream of chat chunks.
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Event:
    """One event: `name` is also the body's `type`; "" for chat chunks, which have none.

    `optional`: a client that reads slowly can do without it.
    """

    name: str
    body: dict[str, Any]
    optional: bool = False

    def encode(self) -> bytes:
        """The event's lines."""
        body = {"type": self.name, **self.body} if self.name else self.body
        head = f"event: {self.name}\n" if self.name else ""
        return f"{head}data: {json.dumps(body)}\n\n".encode()
