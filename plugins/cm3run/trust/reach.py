"""The external resources of a stored model, and which are allowed: hosts, credentials and paths.

The resources in a component's values are those that its class declares, and values that look like resources where it
declares nothing. Allowed are the user's list, everything inside the model's folder, and the resources that the user's
own commands named for it. These are recorded in the user's state folder (`XDG_STATE_HOME`), never in the run's,
because a file in a run could come from anywhere. The record belongs to a folder and lists its resources, so replacing
the folder's files gains nothing. A run that was moved, or came from elsewhere, has no record and needs permission.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from cm3core.config.schema import all_parts, component_field, default, hints, init_fields
from cm3core.errors import CM3Error, TrustError
from cm3core.files import write_text
from cm3core.interfaces.component import ComponentConfig
from cm3core.interfaces.reach import (
    CONNECTS,
    CREDENTIALS,
    READS,
    UNDECLARED,
    WRITES,
    Outside,
    Reach,
)
from cm3core.user_state import is_private, make_records_folder, record_path, remove_old_records

#: s3://bucket/folder, as written or as spelled by a `Path`.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/+(?=[^/])")
#: Parts of a key's name that suggest an external resource.
_NAMES = re.compile(
    r"host|ur[il]|endpoint|server|address|service|socket|port|proxy|path|file|dir|folder|root|bank|"
    r"weights|checkpoint|cache|bucket|database|dsn|token|secret|password|credential|user|jar|command|env"
)
#: Longest text that can be `UNDECLARED`; real paths are shorter.
_LONGEST = 4096
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+):\d{1,5}")
_HOST = re.compile(r"(\d{1,3}(\.\d{1,3}){3}|localhost|([\w-]+\.)+[A-Za-z]{2,24}\.?)")
#: Variables that libpq and others expand in environment or home; they don't occur in ordinary text.
_HOW: Final = (READS, WRITES, CONNECTS, CREDENTIALS)


def reaches_of(config: ComponentConfig) -> list[Reach]:
    """The external resources in a component's config, and in the components in it.

    Default values of its class come from the plugin itself, and are left out.
    """
    found = _own_reaches(config)
    for path, part in all_parts(config):
        found += [
            Reach(one.how, one.target, f"{path}.{one.key}", one.why, one.value)
            for one in _own_reaches(part)
        ]
    return found


def declared(config_class: type[Any]) -> dict[str, Outside]:
    """The declarations of a config class and its bases, by key."""
    found: dict[str, Outside] = {}
    for parent in reversed(config_class.__mro__):
        found |= vars(parent).get("outside", {})
    return found


def undeclared_keys(config_class: type[Any]) -> list[str]:
    """The keys of a config class that take free text and have no declaration."""
    known = declared(config_class)
    return [key for key, _ in _text_fields(config_class, "") if key not in known]


def _text_fields(config_class: type[Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, annotation in hints(config_class).items():
        if component_field(annotation) is not None:
            continue
        for inner in (annotation, *get_args(annotation)):
            if isinstance(inner, type) and is_dataclass(inner):
                yield from _text_fields(inner, f"{prefix}{name}.")
        if holds_text(annotation):
            yield f"{prefix}{name}", annotation


def holds_text(annotation: Any) -> bool:
    """Whether a field with that annotation can hold any text, alone or in a list or mapping."""
    if get_origin(annotation) is Literal:
        return False
    if annotation is str or annotation is Any:
        return True
    arguments = get_args(annotation)
    if get_origin(annotation) is dict and component_field(annotation) is None:
        # keys of a mapping to numbers are names of parts
        return holds_text(arguments[1])
    return any(holds_text(argument) for argument in arguments)


def _own_reaches(config: ComponentConfig) -> list[Reach]:
    known = declared(type(config))
    found: list[Reach] = []
    for key, text in _texts(config, ""):
        one = known.get(key)
        reach = _undeclared(key, text) if one is None else _declared(key, text, one)
        found += [] if reach is None else [reach]
    return found + config.reaches()


def _texts(config: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """(key, text) of all texts in a config's fields, except default values."""
    annotations = hints(type(config))
    for item in init_fields(type(config)):
        value, annotation = getattr(config, item.name), annotations[item.name]
        key = f"{prefix}{item.name}"
        if component_field(annotation) is not None:
            continue
        if is_dataclass(value) and not isinstance(value, type):
            yield from _texts(value, f"{key}.")
        elif holds_text(annotation) and not _equal(value, default(item)):
            yield from ((key, text) for text in _texts_in(value))


def _equal(value: object, usual: object) -> bool:
    return type(value) is type(usual) and value == usual


def _texts_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _texts_in(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts_in(inner)


def _declared(key: str, text: str, one: Outside) -> Reach | None:
    if one.how not in _HOW or _is_shipped(text, one.shipped):
        return None
    if one.how in (CONNECTS, CREDENTIALS):
        return Reach(one.how, text, key, one.why, text)
    address = address_of(text)
    how = one.how if address is None else CONNECTS
    return Reach(how, target_of(text), key, one.why, text)


def _is_shipped(text: str, prefix: str) -> bool:
    name = text.removeprefix(prefix)
    return bool(prefix) and name != text and re.fullmatch(r"[\w.-]+", name) is not None


def _undeclared(key: str, text: str) -> Reach | None:
    named = _NAMES.search(key.rpartition(".")[2].lower()) is not None
    if not text or not (named or looks_outside(text)):
        return None
    why = "its class does not declare its use"
    target = address_of(text) or (path_of(text) if looks_like_path(text) else text)
    return Reach(UNDECLARED, target, key, why, text)


def address_of(text: str) -> str | None:
    """An address (s3://bucket/folder) in normalised form; None for any other text.

    >>> address_of("s3:/bucket/a"), address_of("C:relative"), address_of("/folder")
    ('s3://bucket/a', None, None)
    """
    found = _ADDRESS.match(text)
    if found is None:
        return text if "://" in text else None  # a chained address: simplecache::s3://bucket
    scheme = found[0].partition(":")[0].lower()
    rest = text[found.end() :]
    return f"{scheme}:///{rest}" if found[0].count("/") > 2 else f"{scheme}://{rest}"


def path_of(text: str) -> str:
    """The absolute path for a text, with `~` expanded; links are not followed."""
    return os.path.abspath(os.path.expanduser(text))  # noqa: PTH100, PTH111  # any text, `~nobody` too


def target_of(text: str) -> str:
    """The normalised address in a text, or the absolute path for it."""
    return address_of(text) or path_of(text)


def looks_like_path(text: str) -> bool:
    """Whether a text looks like a path, or names an entry of the working folder."""
    if len(text) > _LONGEST or "\n" in text:
        return False
    if text.startswith(("/", "~", "\\")) or text in (".", ".."):
        return True
    if {"..", "."} & set(re.split(r"[/\\]", text)):
        return True
    if "/" in text and " " not in text and not set("<>|*?()[]{}") & set(text):
        return True
    return "\0" not in text and os.path.lexists(text)


def looks_outside(text: str) -> bool:
    """Whether a text looks like a path, an address or a host.

    >>> [looks_outside(text) for text in ("a red/green bell", "db.example", "10.0.0.1:5432", "s3://a/b")]
    [False, True, True, True]
    """
    return (
        _ADDRESS.match(text) is not None
        or "://" in text
        or "${" in text
        or _HOST_AND_PORT.fullmatch(text) is not None
        or _HOST.fullmatch(text) is not None
        or looks_like_path(text)
    )


def record_own(folder: str | Path, reaches: Iterable[Reach]) -> None:
    """Record that this user's command made a folder, and the resources it may use.

    Raises nothing: without a record the folder needs permission, like one from elsewhere.
    """
    with contextlib.suppress(OSError, CM3Error):
        real = os.path.realpath(folder)
        targets = sorted({one.target for one in reaches})
        path = _file(real)
        if recorded(folder) == frozenset(targets):
            return
        make_records_folder(path)
        if targets:
            write_text(path, json.dumps({"path": real, "reaches": targets}) + "\n")
            path.chmod(0o600)
        else:
            path.unlink(missing_ok=True)
        remove_old_records(path.parent)


def own_of(folder: str | Path) -> list[Reach]:
    """The resources that this user's commands named for a folder, or for the run of a checkpoint, to be recorded for
    a folder made from it."""
    targets = recorded(folder)
    # a run's `checkpoints` may be a link to a larger disk
    for spelling in (os.path.realpath(folder), os.path.abspath(folder)):  # noqa: PTH100  # keeps links in the path
        if (place := Path(spelling)).parent.name == "checkpoints":
            targets |= recorded(place.parent.parent)
    return [Reach("", one, "") for one in sorted(targets)]


def recorded(folder: str | Path) -> frozenset[str]:
    """The targets that this user's commands named for a folder; empty if they didn't make it."""
    try:
        real = os.path.realpath(folder)
        path = _file(real)
        if not is_private(path):
            return frozenset()
        found = json.loads(path.read_text(encoding="utf-8"))
        targets = found["reaches"] if found["path"] == real else []
        return frozenset(one for one in targets if isinstance(one, str))
    except (OSError, ValueError, LookupError, TypeError, RecursionError, CM3Error):
        return frozenset()


def _file(real: str) -> Path:
    return record_path("own", real)


OPTION = "--trust-endpoints"


@dataclass(frozen=True)
class Trust:
    """The resources that a model or a bank may use.

    Args:
        allowed: the user's list: hosts (`HOST` or `HOST:PORT`), addresses ("s3://bucket"), paths, names.
        inside: its folder, whose paths are its own. None: it has none.
        own: targets that the user's own commands named for it.
        everything: it came with an installed plugin, which is trusted as a whole.
    """

    allowed: tuple[str, ...] = ()
    inside: Path | None = None
    own: frozenset[str] = field(default_factory=frozenset)
    everything: bool = False

    def refused(self, reaches: Iterable[Reach]) -> list[Reach]:
        """Those of the resources that are not allowed."""
        return [one for one in reaches if not self._allows(one)]

    def of_folder(self, folder: Path) -> Trust:
        """The same list for another folder, such as a bank."""
        real = Path(os.path.realpath(folder))
        inside = None if _holds_home(real) else real
        return replace(self, inside=inside, own=recorded(real), everything=False)

    def _allows(self, reach: Reach) -> bool:
        if self.everything or reach.target in self.own:
            return True
        if any(entry in (reach.target, reach.value) for entry in self.allowed if entry):
            return True
        if reach.how == CREDENTIALS:
            return False
        if reach.target.startswith("/"):
            inside = () if self.inside is None else (str(self.inside),)
            listed = tuple(map(path_of, filter(is_path, self.allowed)))
            return any(_is_in(reach.target, folder) for folder in (*inside, *listed))
        if address_of(reach.target) is not None:
            return any(_is_below(reach.target, entry) for entry in self.allowed)
        host = reach.target.rpartition(":")[0] or reach.target
        return reach.how != UNDECLARED and any(
            not is_path(entry) and entry.lower() in (host.lower(), reach.target.lower())
            for entry in self.allowed
        )


def trust_of(folder: str | Path, shipped: Iterable[Path], allowed: Sequence[str] = ()) -> Trust:
    """The resources that the model in a folder may use.

    Args:
        folder: the model's, a run's, or a checkpoint of a run, which shares the run's permissions.
        shipped: folders of the models that installed plugins ship.
        allowed: the user's list.

    Raises:
        TrustError: an entry of the list is invalid.
    """
    entries = tuple(map(_checked, allowed))
    real = Path(os.path.realpath(folder))
    if any(real.is_relative_to(os.path.realpath(one)) for one in shipped):
        return Trust(entries, real, everything=True)
    own = frozenset(one.target for one in own_of(folder))
    return Trust(entries, None if _holds_home(real) else real, own)


def _holds_home(folder: Path) -> bool:
    """Whether a folder contains the user's home; a model's files there don't make everything in it the model's."""
    return Path(os.path.realpath(path_of("~"))).is_relative_to(folder)


def refusal(place: str, section: str, refused: Sequence[Reach], hint: str = "") -> TrustError:
    """The error for resources that are not allowed.

    Args:
        place: the file that names them.
        section: the recipe's.
        refused: at least one.
        hint: an alternative, worded as the end of a sentence.
    """
    lines = [
        f"\n    {section}{'.' if section and one.key else ''}{one.key} {one.how} {one.target}"
        + (f" ({one.why})" if one.why else "")
        for one in refused
    ]
    targets = list(dict.fromkeys(one.target for one in refused))
    options = " ".join(f"{OPTION} {shlex.quote(target)}" for target in targets)
    names = ", ".join(map(repr, targets))
    return TrustError(
        place,
        "was not made by you on this machine, and names resources outside its folder, which need your permission:"
        + "".join(lines),
        f"if you trust these, add {options} (in Python trust_endpoints=[{names}])"
        + (f"; {hint}" if hint else ""),
    )


def is_path(entry: str) -> bool:
    """Whether an entry of the list is a path: `/data`, `~/data`, `./data`."""
    return address_of(entry) is None and (
        entry.startswith(("/", "~")) or "/" in entry or entry in (".", "..")
    )


def _checked(entry: str) -> str:
    if not entry.strip() or "*" in entry or entry != entry.strip() or "\0" in entry:
        raise TrustError(
            f"{OPTION} {entry!r}",
            "is not a host, address or path",
            "write HOST, HOST:PORT, s3://BUCKET or /PATH, as shown in the refusal",
        )
    return entry


def _is_in(path: str, folder: str) -> bool:
    """Whether a path, with links resolved, is a folder or lies in it."""
    try:
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    except (OSError, ValueError):  # a null character, a loop of links
        return False


def _is_below(address: str, entry: str) -> bool:
    """Whether an address is an entry of the list, or below one."""
    wanted = address_of(entry)
    if ".." in address.split("/"):
        return False
    if wanted is not None:
        return address == wanted or address.startswith(wanted.rstrip("/") + "/")
    host = address.partition("://")[2].partition("/")[0].rpartition("@")[2]
    return (
        bool(host)
        and not is_path(entry)
        and entry.lower()
        in (
            host.lower(),
            host.lower().rpartition(":")[0],
        )
    )


def check_links(folder: Path, trust: Trust) -> None:
    """Raise `TrustError` if a model's folder has a link that points outside it without permission.

    For a checkpoint, outside its run. Files of a download of the Hugging Face hub client are links from `snapshots` to
    `blobs`, beside it or shared by the whole cache, and count as files of the folder.
    """
    if trust.everything or trust.own:
        return
    searched = trust.inside or folder
    real = Path(os.path.realpath(folder)) if trust.inside is None else trust.inside
    roots = (real, *_stores(real))
    out = [
        Reach(READS, target, str(path.relative_to(searched)), "target of the link")
        for path, target in _links(searched)
        if not any(Path(target).is_relative_to(root) for root in roots)
    ]
    if refused := trust.refused(out):
        raise refusal(str(folder), "", refused[:8], "or copy the file into the folder")


def is_download(path: Path, folder: Path) -> bool:
    """Whether a path is a link in a folder that the Hugging Face hub client made: from a download, in
    `USER--NAME/snapshots/COMMIT` or below, to its `blobs`."""
    real = Path(os.path.realpath(folder))
    link = Path(os.path.realpath(path.parent)) / path.name
    if not link.is_symlink() or not link.is_relative_to(real):
        return False
    target = Path(os.path.realpath(link))
    return any(
        target.is_relative_to(store)
        for parent in (real, *real.parents)
        for store in _stores(parent)
    )


#: In the cache of the hub client, beside the repositories' folders: marks the files that several of them share.
_SHARED = ".huggingface-shared-blobs"


def _stores(real: Path) -> list[Path]:
    """The folders to which links of the hub client lead from a folder; empty: it is not one of its downloads."""
    repo = real.parent.parent
    if real.parent.name != "snapshots" or not (repo / "blobs").is_dir():
        return []
    shared = repo.parent / "blobs"
    return [repo / "blobs", *([shared] if (shared / _SHARED).is_file() else [])]


def _links(folder: Path) -> Iterator[tuple[Path, str]]:
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place) / name
            if path.is_symlink():
                yield path, os.path.realpath(path)
