"""Writes docs/plugins/reference.md from the code: `python docs/_generate.py`.
tests/docs/test_plugin_reference.py compares."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, ForwardRef

from cm3core import hookspecs, interfaces
from cm3core.interfaces.component import ComponentConfig
from cm3core.plugins import KINDS, Kind
from cm3core.testing._laws import Contract

COMMAND = "python docs/_generate.py"
PAGE = Path(__file__).parent / "plugins" / "reference.md"
WIDTH = 100
SECTION = re.compile(r"^(Args|Returns|Raises|Yields):\n((?:    .*\n|\n)+)", re.MULTILINE)
ENTRY = re.compile(r"^    (\S[^\n:]*?): ", re.MULTILINE)

HEAD = f"""\
<!-- Written by `{COMMAND}` from cm3core; what is edited here is overwritten. -->

# Plugin reference

All that a plugin can implement: the hooks, and for each kind of component the config to derive from, the interface to fill in,
and the laws that its conformance kit holds an implementation to. It is made from the code, so it says what this version does.
Which components are bundled stands in [reference.md](../reference.md#component-kinds), how to begin in
[tutorial.md](tutorial.md), which of this stays as it is in [stability.md](stability.md).

Letters at the end of a tensor's name are its axes; each interface has its legend. *Yours* marks what an implementation must
define; the rest has a default.
"""


def page() -> str:
    """The whole page."""
    parts = [
        HEAD,
        "## Hooks\n",
        "Each kind has a hook, below, that returns recipe name -> config class. Three bring "
        "something else:\n",
    ]
    of_kinds = {kind.hook for kind in KINDS.values()}
    for name, hook in vars(hookspecs).items():
        if name.startswith("cm3_") and name not in of_kinds:
            parts += [f"### `{name}`\n", signature(name, hook), prose(hook)]
    parts += ["## Every config\n", *class_text(ComponentConfig, "ComponentConfig", level=3)]
    parts += ["## Every kit\n", *kit_text(Contract)]
    for kind in KINDS:
        parts += kind_text(kind, KINDS[kind])
    return "\n".join(parts).rstrip() + "\n"


def kind_text(name: str, kind: Kind) -> Iterator[str]:
    """A kind's part: hook, config, interface, the values it speaks in, kit."""
    interface = kind.interface_class
    module = importlib.import_module(interface.__module__)
    yield f"## `{name}`\n"
    about = (module.__doc__ or "").strip().partition(": ")[2]
    yield as_markdown(about[:1].upper() + about[1:])
    yield signature(kind.hook, getattr(hookspecs, kind.hook))
    yield prose(getattr(hookspecs, kind.hook))
    yield from class_text(
        kind.config, f"Config: `{kind.config.__name__}`", level=3, base=ComponentConfig
    )
    yield from class_text(interface, f"Interface: `{kind.interface}`", level=3)
    for other in interfaces.__all__:
        value = getattr(interfaces, other)
        if (
            inspect.isclass(value)
            and value.__module__ == interface.__module__
            and value not in (interface, kind.config)
        ):
            yield from class_text(value, f"`{other}`", level=4)
    module_name, _, kit_name = kind.kit.partition(":")
    yield f"### Kit: `{kit_name}`\n"
    yield f"Module `{module_name}`.\n"
    yield from kit_text(getattr(importlib.import_module(module_name), kit_name))


def class_text(
    cls: type[Any], title: str, *, level: int, base: type[Any] | None = None
) -> Iterator[str]:
    """A class: its docstring, fields or attributes, and methods (those of `base` are told
    elsewhere)."""
    yield f"{'#' * level} {title}\n"
    yield prose(cls)
    known = set(dir(base)) if base is not None else set()
    if is_dataclass(cls):
        rows = [field_row(item) for item in fields(cls) if item.name not in known]
        if rows:
            yield "\n".join(["Fields:\n", *rows]) + "\n"
    own = [entry for entry in attributes(cls) if entry.split("`")[1].split(":")[0] not in known]
    if own:
        yield "\n".join(["Class attributes:\n", *own]) + "\n"
    for name, member in vars(cls).items():
        if is_told(name, member):
            yield signature(name, member)
            text = prose(function_of(member))
            yield f"*Yours.* {text}" if must_define(member, base) else text


def is_told(name: str, member: object) -> bool:
    """Public methods and properties, and those with an underscore that an implementation must
    define."""
    if isinstance(member, property):
        return not name.startswith("_")
    function = function_of(member)
    return inspect.isfunction(function) and (
        not name.startswith("_") or getattr(function, "__isabstractmethod__", False)
    )


def function_of(member: Any) -> Any:
    """What a property, class method or static method calls."""
    return member.fget if isinstance(member, property) else getattr(member, "__func__", member)


def must_define(member: object, base: type[Any] | None) -> bool:
    """Abstract methods; of a config, what does nothing but refuse (a docstring and a bare
    `raise NotImplementedError`)."""
    function = function_of(member)
    if getattr(function, "__isabstractmethod__", False):
        return True
    return base is ComponentConfig and inspect.getsource(function).rstrip().endswith(
        "raise NotImplementedError"
    )


def attributes(cls: type[Any]) -> list[str]:
    """Annotated class attributes that are no fields, with the `#:` comment in front of each."""
    names = {item.name for item in fields(cls)} if is_dataclass(cls) else set()
    lines, rows = inspect.getsource(cls).splitlines(), []
    for name, annotation in inspect.get_annotations(cls).items():
        if name in names or name.startswith("_"):
            continue
        at = next(
            (index for index, line in enumerate(lines) if re.match(rf"    {name}: ", line)), 0
        )
        first = at
        while first > 0 and lines[first - 1].startswith("    #"):
            first -= 1
        comment = " ".join(line.strip().lstrip("#:").strip() for line in lines[first:at])
        value = (
            f" = {default!r}"
            if isinstance(default := vars(cls).get(name), (str, int, bool, tuple, type(None)))
            else ""
        )
        value = value if name in vars(cls) else ""
        # a named tuple's annotations are wrapped
        kind = annotation.__forward_arg__ if isinstance(annotation, ForwardRef) else annotation
        rows.append(f"- `{name}: {kind}{value}`" + (f": {escaped(comment)}" if comment else ""))
    return rows


def field_row(item: Field[Any]) -> str:
    """A dataclass's field, its type and default."""
    if item.default is not MISSING:
        return f"- `{item.name}: {item.type} = {item.default!r}`"
    factory = item.default_factory
    value = "" if factory is MISSING else f" = {factory()!r}"
    return f"- `{item.name}: {item.type}{value}`"


def kit_text(kit: type[Contract[Any]]) -> Iterator[str]:
    """A kit: what an author sets, and its laws."""
    yield prose(kit)
    settings = [row for row in attributes(kit) if kit is Contract or not row.startswith("- `kind:")]
    if settings:
        yield "\n".join(["Class attributes:\n", *settings]) + "\n"
    for name, member in vars(kit).items():
        if is_told(name, member) and not name.startswith("law_"):
            yield signature(name, member)
            yield prose(function_of(member))
    if laws := kit.laws():
        rows = [f"| `{name}` | {cell(getattr(kit, f'law_{name}'))} |" for name in laws]
        yield "\n".join(["| law | says |", "| --- | --- |", *rows]) + "\n"


def cell(function: object) -> str:
    """A docstring's first paragraph, as a table's cell."""
    first = (inspect.getdoc(function) or "").partition("\n\n")[0]
    return escaped(" ".join(first.split())).replace("|", "\\|")


def signature(name: str, member: object) -> str:
    """A signature as a fenced block, one parameter a line where it is long."""
    shown = inspect.signature(function_of(member))
    arrow = (
        f" -> {shown.return_annotation}"
        if shown.return_annotation is not inspect.Signature.empty
        else ""
    )
    if isinstance(member, property):
        return f"```py\n{name}{arrow.replace(' -> ', ': ')}  # property\n```\n"
    start = "def"
    if isinstance(member, classmethod):
        start = "@classmethod\ndef"
        shown = shown.replace(parameters=list(shown.parameters.values())[1:])
    one_line = f"{start} {unquoted(name + str(shown))}"
    if len(one_line) > WIDTH:
        inside, parameters = [], list(shown.parameters.values())
        for index, parameter in enumerate(parameters):
            before = parameters[index - 1].kind if index else None
            if parameter.kind is parameter.KEYWORD_ONLY and before not in (
                parameter.KEYWORD_ONLY,
                parameter.VAR_POSITIONAL,
            ):
                inside.append("    *,")
            inside.append(f"    {unquoted(str(parameter))},")
        one_line = "\n".join([f"{start} {name}(", *inside, f"){arrow}"])
    return f"```py\n{one_line}\n```\n"


def unquoted(text: str) -> str:
    """Annotations are texts (`from __future__ import annotations`): without their quotes they read
    as they were written."""
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)


def prose(documented: object) -> str:
    """A docstring as Markdown."""
    return as_markdown(inspect.getdoc(documented) or "")


def as_markdown(text: str) -> str:
    """A docstring's text as Markdown: sections become lists, examples blocks."""
    text = SECTION.sub(as_list, text + "\n")
    parts, code = [], False
    for line in text.splitlines():
        if line.startswith(">>>") and not code:
            parts.append("```pycon")
            code = True
        elif code and not line.strip():
            parts.append("```")
            code = False
        follows = (
            bool(parts) and bool(parts[-1]) and not parts[-1].startswith(("    ", "- ", "```"))
        )
        if code or line.startswith("    "):
            parts.append(line)
        elif line and follows and not line.startswith("- "):
            # in one line: what begins with + or -> would begin a list or a quotation
            parts[-1] += f" {escaped(line)}"
        else:
            parts.append(escaped(line))
    if code:
        parts.append("```")
    return "\n".join(parts).strip() + "\n"


def as_list(match: re.Match[str]) -> str:
    """`Args:` and its entries as a list."""
    body = re.sub(r"\n {8,}", " ", match[2].rstrip("\n"))
    entries = (
        ENTRY.sub(r"- `\1`: ", body)
        if match[1] in ("Args", "Raises")
        else re.sub("(?m)^    ", "- ", body)
    )
    return f"{match[1]}:\n\n{entries}\n\n"


def escaped(text: str) -> str:
    """`<` outside of code would begin a tag."""
    return "`".join(
        part if index % 2 else part.replace("<", "&lt;")
        for index, part in enumerate(text.split("`"))
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
