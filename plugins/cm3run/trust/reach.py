"""What a stored model reaches outside of its folder, and what of that is allowed: hosts, credentials and paths.

A component's values reach what its class declares, and what looks like it where it declares nothing. Allowed is what
the user's list names, what is inside the model's folder, and what the user's own commands named for it. The record of
these is in the user's state folder (`XDG_STATE_HOME`), never in the run's: a file in a run could come with it from
anywhere. It says of a folder what it may reach, so that other files in its place can reach nothing else. A run that was
moved, or came from elsewhere, has no record, and asks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from cm3core.config.schema import all_parts, component_field, default, hints, init_fields
from cm3core.errors import CM3Error, TrustError
from cm3core.files import state_folder, write_text
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

#: s3://bucket/folder, as it is written and as a `Path` spells it.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/+(?=[^/])")
#: Parts of a key's name that say that its value is outside.
_NAMES = re.compile(
    r"host|ur[il]|endpoint|server|address|service|socket|port|proxy|path|file|dir|folder|root|bank|"
    r"weights|checkpoint|cache|bucket|database|dsn|token|secret|password|credential|user|jar|command|env"
)
#: `UNDECLARED` is said of texts up to this length: nobody's path is longer.
_LONGEST = 4096
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+):\d{1,5}")
_HOST = re.compile(r"(\d{1,3}(\.\d{1,3}){3}|localhost|([\w-]+\.)+[A-Za-z]{2,24}\.?)")
#: What libpq and others take for environment or home: never words of a text.
_HOW: Final = (READS, WRITES, CONNECTS, CREDENTIALS)


def reaches_of(config: ComponentConfig) -> list[Reach]:
    """What the values of a component's config, and of the components in it, reach outside.

    Values that its class has by default are the plugin's own, and are left out.
    """
    found = _own_reaches(config)
    for path, part in all_parts(config):
        found += [
            Reach(one.how, one.target, f"{path}.{one.key}", one.why, one.value)
            for one in _own_reaches(part)
        ]
    return found


def declared(config_class: type[Any]) -> dict[str, Outside]:
    """What a config class, and its bases, declare of each key."""
    found: dict[str, Outside] = {}
    for parent in reversed(config_class.__mro__):
        found |= vars(parent).get("outside", {})
    return found


def undeclared_keys(config_class: type[Any]) -> list[str]:
    """The keys of a config class that hold free texts and declare nothing."""
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
    """Whether a field of that annotation may hold any text, alone or in a list or mapping."""
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
    """(key, text) of what a config's fields hold, but for values that they have by default."""
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
    return Reach(how, address or path_of(text), key, one.why, text)


def _is_shipped(text: str, prefix: str) -> bool:
    name = text.removeprefix(prefix)
    return bool(prefix) and name != text and re.fullmatch(r"[\w.-]+", name) is not None


def _undeclared(key: str, text: str) -> Reach | None:
    named = _NAMES.search(key.rpartition(".")[2].lower()) is not None
    if not text or not (named or looks_outside(text)):
        return None
    why = "its class does not say what for"
    target = address_of(text) or (path_of(text) if looks_like_path(text) else text)
    return Reach(UNDECLARED, target, key, why, text)


def address_of(text: str) -> str | None:
    """An address (s3://bucket/folder) in one spelling; None for any other text.

    >>> address_of("s3:/bucket/a"), address_of("C:relative"), address_of("/folder")
    ('s3://bucket/a', None, None)
    """
    found = _ADDRESS.match(text)
    if found is None:
        return text if "://" in text else None  # a chain of them: simplecache::s3://bucket
    scheme = found[0].partition(":")[0].lower()
    rest = text[found.end() :]
    return f"{scheme}:///{rest}" if found[0].count("/") > 2 else f"{scheme}://{rest}"


def path_of(text: str) -> str:
    """The absolute path that a text means, a `~` replaced; links are not followed."""
    return os.path.abspath(os.path.expanduser(text))  # noqa: PTH100, PTH111  # any text, `~nobody` too


def looks_like_path(text: str) -> bool:
    """Whether a text looks like a path, or names something that lies in the working folder."""
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


#: Records that are kept of folders that are no more.
_MOST = 1024


def record_own(folder: str | Path, reaches: Iterable[Reach]) -> None:
    """Record that this user's command made a folder, and what it may reach.

    Nothing is raised: without a record the folder asks, as one from elsewhere does.
    """
    with contextlib.suppress(OSError, CM3Error):
        real = os.path.realpath(folder)
        targets = sorted({one.target for one in reaches})
        path = _file(real)
        if recorded(folder) == frozenset(targets):
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if targets:
            write_text(path, json.dumps({"path": real, "reaches": targets}) + "\n")
            path.chmod(0o600)
        else:
            path.unlink(missing_ok=True)
        _forget(path.parent)


def own_of(folder: str | Path) -> list[Reach]:
    """What this user's commands named for a folder, or for the run of a checkpoint: for the record of what is
    made of it."""
    targets = recorded(folder)
    # a run's `checkpoints` may be a link to a larger disk
    for spelling in (os.path.realpath(folder), os.path.abspath(folder)):  # noqa: PTH100  # a path as it is spelled
        if (place := Path(spelling)).parent.name == "checkpoints":
            targets |= recorded(place.parent.parent)
    return [Reach("", one, "") for one in sorted(targets)]


def recorded(folder: str | Path) -> frozenset[str]:
    """The targets that this user's commands named for a folder; none if they didn't make it."""
    try:
        real = os.path.realpath(folder)
        path = _file(real)
        for one in (path.parent, path):
            status = one.lstat()
            if (
                status.st_uid != os.geteuid()
                or status.st_mode & 0o022
                or stat.S_ISLNK(status.st_mode)
            ):
                return frozenset()
        found = json.loads(path.read_text(encoding="utf-8"))
        targets = found["reaches"] if found["path"] == real else []
        return frozenset(one for one in targets if isinstance(one, str))
    except (OSError, ValueError, LookupError, TypeError, RecursionError, CM3Error):
        return frozenset()


def _file(real: str) -> Path:
    name = hashlib.sha256(os.fsencode(real)).hexdigest()[:32]
    return state_folder("own") / f"{name}.json"


def _forget(folder: Path) -> None:
    """Remove the records of folders that are no more, once there are many."""
    records = list(folder.glob("*.json"))
    if len(records) <= _MOST:
        return
    for path in records:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            if not Path(json.loads(path.read_text(encoding="utf-8"))["path"]).exists():
                path.unlink()


OPTION = "--trust-endpoints"


@dataclass(frozen=True)
class Trust:
    """What a model, or a bank, may reach.

    Args:
        allowed: the user's list: hosts (`HOST` or `HOST:PORT`), addresses ("s3://bucket"), paths, names.
        inside: its folder: paths in it are its own. None: it has none.
        own: targets that the user's own commands named for it.
        everything: it came with an installed plugin, which is trusted as a whole.
    """

    allowed: tuple[str, ...] = ()
    inside: Path | None = None
    own: frozenset[str] = field(default_factory=frozenset)
    everything: bool = False

    def refused(self, reaches: Iterable[Reach]) -> list[Reach]:
        """What of these may not be used."""
        return [one for one in reaches if not self._allows(one)]

    def of_folder(self, folder: Path) -> Trust:
        """The same list for what lies in another folder, such as a bank."""
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
    """What the model in a folder may reach.

    Args:
        folder: the model's, a run's, or a checkpoint of a run, which may reach what its run may.
        shipped: folders of the models that installed plugins ship.
        allowed: the user's list.

    Raises:
        TrustError: an entry of the list is nothing that can be allowed.
    """
    entries = tuple(map(_checked, allowed))
    real = Path(os.path.realpath(folder))
    if any(real.is_relative_to(os.path.realpath(one)) for one in shipped):
        return Trust(entries, real, everything=True)
    own = frozenset(one.target for one in own_of(folder))
    return Trust(entries, None if _holds_home(real) else real, own)


def _holds_home(folder: Path) -> bool:
    """Whether a folder holds the user's home: files of a model there make nothing in it the model's."""
    return Path(os.path.realpath(path_of("~"))).is_relative_to(folder)


def refusal(place: str, section: str, refused: Sequence[Reach], hint: str = "") -> TrustError:
    """The error for what may not be used.

    Args:
        place: the file that names it.
        section: the recipe's.
        refused: at least one.
        hint: another way out, the end of a sentence.
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
        "is not your own, or was made elsewhere, and names what is outside of it, which is not used unasked:"
        + "".join(lines),
        f"if you know these and want them used, add {options} (in Python trust_endpoints=[{names}])"
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
            "names no host, address or path",
            "write HOST, HOST:PORT, s3://BUCKET or /PATH, as the refusal shows it",
        )
    return entry


def _is_in(path: str, folder: str) -> bool:
    """Whether a path, its links followed, lies in a folder, or is it."""
    try:
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    except (OSError, ValueError):  # a null character, a loop of links
        return False


def _is_below(address: str, entry: str) -> bool:
    """Whether an address is one of the list, or below it."""
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
    """Raise `TrustError` if a model's folder has a link that leads out of it, and may not.

    Of a checkpoint, out of its run. What the hub's client stores, links from `snapshots` to `blobs` beside
    it, is one folder.
    """
    if trust.everything or trust.own:
        return
    root, searched = _root(folder, trust), trust.inside or folder
    out = [
        Reach(READS, target, str(path.relative_to(searched)), "the link leads there")
        for path, target in _links(searched)
        if not Path(target).is_relative_to(root)
    ]
    if refused := trust.refused(out):
        raise refusal(str(folder), "", refused[:8], "or copy the file into the folder")


def _root(folder: Path, trust: Trust) -> Path:
    real = Path(os.path.realpath(folder)) if trust.inside is None else trust.inside
    hub = real.parent.name == "snapshots" and (real.parent.parent / "blobs").is_dir()
    return real.parent.parent if hub else real


def _links(folder: Path) -> Iterator[tuple[Path, str]]:
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place) / name
            if path.is_symlink():
                yield path, os.path.realpath(path)
