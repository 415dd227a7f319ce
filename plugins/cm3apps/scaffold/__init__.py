"""The project template of `cm3 plugin new`: a small, working plugin of a kind. Imports no torch.

`templates/project` has the files of every project; `templates/KIND` has the package's modules,
`test.py.in` (the test) and `template.toml` (see `Template`); `templates/KIND/FORM` has the same for
another form of the kind. A kind without such a folder has no template. In `.in` files, `<<field>>` is
replaced by a value of `Plan.fields`; an unknown field is a bug in the template.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import dataclass, field
from datetime import date
from importlib.util import find_spec
from pathlib import Path

from cm3core import interfaces
from cm3core._version import CM3_API, __version__
from cm3core.errors import PluginError, close_match
from cm3core.files import check_writable, new_place, not_written
from cm3core.plugins import KINDS, Registry

TEMPLATES = Path(__file__).parent / "templates"
PREFIX = "cm3-"
MAX_LENGTH = 40
NAME = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")
FIELD = re.compile(r"<<(\w+)>>")


@dataclass(frozen=True)
class Template:
    """A kind's template settings, from `templates/KIND/template.toml`.

    Args:
        class_ending: suffix of the plugin's class names.
        use: the override with which the README uses the component; `<<name>>` is its name.
        modules: separate modules that import torch: file -> its description in the README's table.
            Most kinds have a single module.
    """

    class_ending: str
    use: str
    modules: dict[str, str] = field(default_factory=dict)


def template_kinds() -> list[str]:
    """The kinds that have templates."""
    return [kind for kind in KINDS if _template_file(kind).is_file()]


def template_forms(kind: str) -> list[str]:
    """The forms of a kind that have templates, besides the usual one."""
    return sorted(path.parent.name for path in TEMPLATES.glob(f"{kind}/*/template.toml"))


def template(kind: str, form: str = "") -> Template:
    """The template of one of `template_kinds()`."""
    return Template(**tomllib.loads(_template_file(kind, form).read_text(encoding="utf-8")))


def _template_file(kind: str, form: str = "") -> Path:
    return TEMPLATES / kind / form / "template.toml"


@dataclass(frozen=True)
class Plan:
    """A project to write, with checked names and a folder that does not exist yet.

    Args:
        name: the name of the component, entry point and plugin.
        kind: one of `template_kinds()`.
        folder: the project's folder, which does not exist.
        author: the copyright holder, "Name" or "Name <mail>"; "" if not given.
        form: one of `template_forms(kind)`; "": the usual one.
    """

    name: str
    kind: str
    folder: Path
    author: str = ""
    form: str = ""

    @property
    def distribution(self) -> str:
        """The distribution's name, for pip."""
        return PREFIX + self.name.replace("_", "-")

    @property
    def package(self) -> str:
        """The package's name, for import."""
        return self.distribution.replace("-", "_")

    @property
    def class_name(self) -> str:
        """Name of the component's class; its config's adds "Config".

        >>> Plan("my-top_k", "sampler", Path()).class_name, Plan("colour-sampler", "sampler", Path()).class_name
        ('MyTopKSampler', 'ColourSampler')
        """
        stem, ending = (
            "".join(part.capitalize() for part in re.split("[_-]", self.name)),
            template(self.kind, self.form).class_ending,
        )
        return stem if stem.endswith(ending) else stem + ending

    @property
    def fields(self) -> dict[str, str]:
        """The fields that templates may use."""
        kind, written, (major, minor) = (
            KINDS[self.kind],
            template(self.kind, self.form),
            __version__.split(".")[:2],
        )
        words, (module, contract) = kind.words, kind.kit.split(":")
        author, mail = _author(self.author)
        quoted = [
            f'{key} = "{value}"' for key, value in (("name", author), ("email", mail)) if value
        ]
        return {
            "name": self.name,
            "kind": self.kind,
            "words": words,
            "a_words": _a(words),
            "rows": "".join(
                f"| `{self.package}/{name}` | {what} |\n" for name, what in written.modules.items()
            ),
            "distribution": self.distribution,
            "package": self.package,
            "Class": self.class_name,
            "Test": f"Test{self.class_name}",
            "hook": kind.hook,
            "Base": kind.config.__name__,
            "Interface": kind.interface,
            "interface_file": f"cm3core/interfaces/{self.kind}.py",
            "kit": module,
            "Contract": contract,
            "api": str(CM3_API),
            "use": fill(written.use, {"name": self.name}),
            "window": f">={major}.{minor},<{f'0.{int(minor) + 1}' if major == '0' else int(major) + 1}",
            "authors": f"authors = [{{ {', '.join(quoted)} }}]\n" if quoted else "",
            "today": date.today().isoformat(),
            "year": str(date.today().year),
            "holder": author or f"the authors of {self.distribution}",
        }

    def files(self) -> dict[str, str]:
        """Path in the project -> text."""
        fields, found = self.fields, {}
        for path in sorted((TEMPLATES / "project").rglob("*.in")):
            found[
                path.relative_to(TEMPLATES / "project")
                .as_posix()
                .removesuffix(".in")
                .replace("dot_", ".")
            ] = path
        for path in sorted((TEMPLATES / self.kind / self.form).glob("*.in")):
            name = path.name.removesuffix(".in")
            found[
                f"tests/test_{self.package}.py" if name == "test.py" else f"{self.package}/{name}"
            ] = path
        files = {
            name: fill(path.read_text(encoding="utf-8"), fields) for name, path in found.items()
        }
        return {**files, f"{self.package}/py.typed": ""}


def fill(text: str, fields: dict[str, str]) -> str:
    """The text with every `<<field>>` replaced; an unknown field is a KeyError.

    >>> fill("a <<thing>>", {"thing": "plugin"})
    'a plugin'
    """
    return FIELD.sub(lambda match: fields[match[1]], text)


def _a(words: str) -> str:
    """The words with their article."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _author(author: str) -> tuple[str, str]:
    """Name and address from "Name <mail>"; either may be ""."""
    match = re.fullmatch(r"\s*([^<>]*?)\s*(?:<([^<>\s]+@[^<>\s]+)>)?\s*", author)
    if match is None or any(char in author for char in '"\\') or not author.isprintable():
        raise PluginError(
            f"--author {author!r}",
            "is not an author",
            "write --author 'Name', or --author 'Name <mail@example.org>'",
        )
    return match[1], match[2] or ""


def plan_project(
    name: str,
    kind: str | tuple[str, str],
    registry: Registry,
    *,
    folder: Path | None = None,
    author: str = "",
) -> Plan:
    """Check the request before anything is written.

    Args:
        name: the component's name in recipes.
        kind: one of `KINDS`, or the kind and a form of it.
        registry: the installed plugins, whose names can't be used.
        folder: the project's folder; None: `cm3-NAME` in the working folder.
        author: see `Plan`.

    Raises:
        PluginError: the name is invalid or in use, the kind does not exist or has no template, or the
            folder already exists.
        FileError: the folder can't be written.
    """
    kind, form = (kind, "") if isinstance(kind, str) else kind
    kinds = registry.kinds
    if kind not in kinds:
        raise PluginError(f"--kind {kind}", f"there is no kind {kind!r}", close_match(kind, kinds))
    if kind not in template_kinds():
        raise PluginError(
            f"--kind {kind}",
            f"there is no template for {_a(kinds[kind].words)} yet",
            f"write one by hand (`cm3 describe {kind}` shows what it needs), or choose another kind: "
            f"{', '.join(template_kinds())}",
        )
    if form and form not in template_forms(kind):
        forms = template_forms(kind)
        raise PluginError(
            f"--form {form}",
            f"there is no template for {_a(kinds[kind].words)} of that form",
            f"use {' or '.join(forms)}, or leave --form out" if forms else "leave --form out",
        )
    _check_name(name)
    plan = Plan(name, kind, folder or Path(PREFIX + name.replace("_", "-")), author, form)
    _author(author)
    _check_not_taken(plan, registry)
    if plan.folder.exists() or plan.folder.is_symlink():
        raise PluginError(
            str(plan.folder),
            "already exists and is not overwritten",
            "name another folder with -o, or remove this one",
        )
    check_writable(plan.folder, folder=True)
    return plan


def _check_name(name: str) -> None:
    place = f"cm3 plugin new {shlex.quote(name)}"
    if name.lower().replace("_", "-").startswith(PREFIX):
        raise PluginError(
            place,
            f"the name begins with {name[: len(PREFIX)]!r}, which the project's name adds anyway",
            f"write cm3 plugin new {name[len(PREFIX) :] or 'NAME'}",
        )
    if len(name) > MAX_LENGTH:
        raise PluginError(place, f"the name has {len(name)} letters", f"use {MAX_LENGTH} or fewer")
    if not NAME.fullmatch(name):
        near = re.sub(
            r"[^a-z0-9]+", "-", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
        ).strip("-")
        step = "use lower-case letters and digits, with single '-' or '_' between, a letter first"
        raise PluginError(
            place,
            f"{name!r} can't be a component's name",
            f"{step}: {near}" if NAME.fullmatch(near) else step,
        )


def _check_not_taken(plan: Plan, registry: Registry) -> None:
    place = f"cm3 plugin new {plan.name}"
    if owners := registry.owners(plan.kind, plan.name):
        raise PluginError(
            place,
            f"the plugin {owners[0]!r} already provides {plan.fields['a_words']} {plan.name!r}",
            "choose another name",
        )
    for info in registry.plugins:
        if info.name == plan.name:
            raise PluginError(
                place,
                f"a plugin {plan.name!r} is already installed ({info.origin})",
                "choose another name",
            )
    if find_spec(plan.package) is not None:
        raise PluginError(
            place, f"a package {plan.package!r} is already installed", "choose another name"
        )
    known = {*interfaces.__all__, KINDS[plan.kind].kit.split(":")[1]}
    for class_name in (plan.class_name, f"{plan.class_name}Config"):
        if class_name in known:
            raise PluginError(
                place,
                f"its class would be named {class_name}, like one of cm3core's",
                "choose another name",
            )


def write_project(plan: Plan) -> list[str]:
    """Write the project atomically, and return the names of its files.

    Raises:
        FileError: the disk is full, or the folder can't be written.
    """
    files = plan.files()
    target = plan.folder.absolute()
    try:
        with new_place(target) as temporary:
            for name, text in files.items():
                path = temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            temporary.rename(target)
    except OSError as error:
        raise not_written(plan.folder, error) from error
    return list(files)
