"""The hooks of the server."""

from __future__ import annotations

from collections.abc import Mapping

from cm3core.hookspecs import hookimpl

CM3_API = 1


@hookimpl
def cm3_commands() -> Mapping[str, str]:
    return {"mcp": "cm3serve.mcp.command:configure", "serve": "cm3serve.command:configure"}
