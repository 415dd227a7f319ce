"""Which hosts, credentials and paths may be used: those on the user's list, inside the model's folder, and
what the user's own commands named for it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cm3core.errors import TrustError
from cm3core.interfaces.reach import CREDENTIALS, UNDECLARED, Reach
from cm3run.trust.fields import address_of, path_of
from cm3run.trust.own import own_of, recorded

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
