"""What `cm3 plugin new` writes: a whole small plugin project of a kind, which works as it stands.
Imports no torch.

`templates/project` holds the files that every project gets, `templates/KIND` the package's modules,
`test.py.in` (the test) and `template.toml` (see `Template`); a kind without such a folder can't be
written. In the files `.in`, `<<field>>` stands for a value of `Plan.fields`; one that names
another field is an error of ours.
"""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
import tomllib
from dataclasses import dataclass, field
from datetime import date
from importlib.util import find_spec
from pathlib import Path

from cm3core import interfaces
from cm3core._version import CM3_API, __version__
from cm3core.errors import PluginError, close_match
from cm3core.files import check_writable, make_folder, not_written
from cm3core.plugins import KINDS, Registry

TEMPLATES = Path(__file__).parent / "templates"
PREFIX = "cm3-"
MAX_LENGTH = 40
NAME = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")
FIELD = re.compile(r"<<(\w+)>>")


@dataclass(frozen=True)
class Template:
    """What a kind's project is written with: `templates/KIND/template.toml`.

    Args:
        class_ending: put after a plugin's name in its classes' names.
        use: how a project's README uses the component, by one changed value; `<<name>>` is its
            name.
        modules: what imports torch, in a module of its own: file -> what the README's table says
            of it. Most kinds are one module.
    """

    class_ending: str
    use: str
    modules: dict[str, str] = field(default_factory=dict)


def template_kinds() -> list[str]:
    """The kinds that there are templates for."""
    return [kind for kind in KINDS if _template_file(kind).is_file()]


def template(kind: str) -> Template:
    """The template of one of `template_kinds()`."""
    return Template(**tomllib.loads(_template_file(kind).read_text(encoding="utf-8")))


def _template_file(kind: str) -> Path:
    return TEMPLATES / kind / "template.toml"


@dataclass(frozen=True)
class Plan:
    """A project that can be written: its names are checked, and nothing is at its place.

    Args:
        name: of component, entry point and plugin.
        kind: one of `template_kinds()`.
        folder: where the project will lie; does not exist.
        author: who holds the copyright, "Name" or "Name <mail>"; "" for not told.
    """

    name: str
    kind: str
    folder: Path
    author: str = ""

    @property
    def distribution(self) -> str:
        """What pip calls it."""
        return PREFIX + self.name.replace("_", "-")

    @property
    def package(self) -> str:
        """What Python imports."""
        return self.distribution.replace("-", "_")

    @property
    def class_name(self) -> str:
        """The component's class; its config's is this and "Config".

        >>> Plan("my-top_k", "sampler", Path()).class_name, Plan("colour-sampler", "sampler", Path()).class_name
        ('MyTopKSampler', 'ColourSampler')
        """
        stem, ending = (
            "".join(part.capitalize() for part in re.split("[_-]", self.name)),
            template(self.kind).class_ending,
        )
        return stem if stem.endswith(ending) else stem + ending

    @property
    def fields(self) -> dict[str, str]:
        """What the templates may name."""
        kind, written, (major, minor) = (
            KINDS[self.kind],
            template(self.kind),
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
        for path in sorted((TEMPLATES / self.kind).glob("*.in")):
            name = path.name.removesuffix(".in")
            found[
                f"tests/test_{self.package}.py" if name == "test.py" else f"{self.package}/{name}"
            ] = path
        files = {
            name: fill(path.read_text(encoding="utf-8"), fields) for name, path in found.items()
        }
        return {**files, f"{self.package}/py.typed": ""}


def fill(text: str, fields: dict[str, str]) -> str:
    """The text with every `<<field>>` replaced; a field that is not there is a KeyError.

    >>> fill("a <<thing>>", {"thing": "plugin"})
    'a plugin'
    """
    return FIELD.sub(lambda match: fields[match[1]], text)


def _a(words: str) -> str:
    """The words with their article."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _author(author: str) -> tuple[str, str]:
    """Name and mail address of "Name <mail>"; either may be ""."""
    match = re.fullmatch(r"\s*([^<>]*?)\s*(?:<([^<>\s]+@[^<>\s]+)>)?\s*", author)
    if match is None or any(char in author for char in '"\\') or not author.isprintable():
        raise PluginError(
            f"--author {author!r}",
            "is no author",
            "write --author 'Name', or --author 'Name <mail@example.org>'",
        )
    return match[1], match[2] or ""


def plan_project(
    name: str, kind: str, registry: Registry, *, folder: Path | None = None, author: str = ""
) -> Plan:
    """Check what was asked for, before anything is written.

    Args:
        name: what the component will be called in recipes.
        kind: one of `KINDS`.
        registry: the plugins that are installed; their names are taken.
        folder: where the project goes; None: `cm3-NAME` in the working folder.
        author: see `Plan`.

    Raises:
        PluginError: a name that can't be, or is taken; a kind that does not exist, or has no
            template; a folder that is there already.
        FileError: the folder can't be written.
    """
    if kind not in KINDS:
        raise PluginError(f"--kind {kind}", f"there is no kind {kind!r}", close_match(kind, KINDS))
    if kind not in template_kinds():
        raise PluginError(
            f"--kind {kind}",
            f"there is no template for {_a(KINDS[kind].words)} yet",
            f"write one by hand (`cm3 describe {kind}` says what it needs), or take another kind: "
            f"{', '.join(template_kinds())}",
        )
    _check_name(name)
    plan = Plan(name, kind, folder or Path(PREFIX + name.replace("_", "-")), author)
    _author(author)
    _check_not_taken(plan, registry)
    if plan.folder.exists() or plan.folder.is_symlink():
        raise PluginError(
            str(plan.folder),
            "is there already, and nothing is written over",
            "name another folder with -o, or remove this one",
        )
    check_writable(plan.folder, folder=True)
    return plan


def _check_name(name: str) -> None:
    place = f"cm3 plugin new {shlex.quote(name)}"
    if name.lower().replace("_", "-").startswith(PREFIX):
        raise PluginError(
            place,
            f"the name begins with {name[: len(PREFIX)]!r}, which the project's name gets anyway",
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
            f"the plugin {owners[0]!r} brings {plan.fields['a_words']} {plan.name!r} already",
            "choose another name",
        )
    for info in registry.plugins:
        if info.name == plan.name:
            raise PluginError(
                place,
                f"a plugin {plan.name!r} is installed already ({info.origin})",
                "choose another name",
            )
    if find_spec(plan.package) is not None:
        raise PluginError(
            place, f"a package {plan.package!r} is installed already", "choose another name"
        )
    known = {*interfaces.__all__, KINDS[plan.kind].kit.split(":")[1]}
    for class_name in (plan.class_name, f"{plan.class_name}Config"):
        if class_name in known:
            raise PluginError(
                place,
                f"its class would be called {class_name}, as one of cm3core's is",
                "choose another name",
            )


def write_project(plan: Plan) -> list[str]:
    """Write the project and return its files' names. It appears whole or not at all.

    Raises:
        FileError: the disk is full, or nothing can be written there.
    """
    files = plan.files()
    target = plan.folder.absolute()
    make_folder(target.parent)
    temporary = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        for name, text in files.items():
            path = temporary / "project" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        # mkdtemp makes private folders; one inside it is an ordinary one
        (temporary / "project").rename(target)
    except OSError as error:
        raise not_written(plan.folder, error) from error
    finally:
        if temporary is not None:
            # what went wrong before is the error to tell
            shutil.rmtree(temporary, ignore_errors=True)
    return list(files)
