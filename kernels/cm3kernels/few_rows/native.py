"""The library of `few_rows`: compiled once for this machine by its C++ compiler, and stored in a folder.

If that fails (no compiler, other instructions), callers get a reason and use something else. Files that will be executed
as code must belong to this user, and nobody else may be able to write them.
"""

from __future__ import annotations

import ctypes
import functools
import grp
import hashlib
import logging
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from ctypes import c_int, c_int64, c_void_p
from pathlib import Path

import torch

_log = logging.getLogger("cm3kernels")
SOURCES = Path(__file__).parent
ENTRY = "few_rows.cpp"
FLAGS = (
    *("-std=c++17", "-O3", "-shared", "-fPIC", "-fopenmp", "-fno-math-errno"),
    *("-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"),
    *("-mavx512bf16", "-mavx512vnni"),
)
#: Beside `FLAGS` on a CPU with AMX.
TILES = ("-mamx-tile", "-mamx-bf16", "-mamx-int8")
#: Time limit of the compiler in seconds; about five are usual.
LONGEST_COMPILATION = 300
#: "0": don't compile and don't use this library.
SWITCH = "CM3_NATIVE"


#: This process's library, once loaded; it is the same in every folder.
_in_use: list[ctypes.CDLL] = []


class Unavailable(Exception):
    """The library can't be used; the message gives the reason."""


def refusal() -> str | None:
    """Return why the library is not even tried: the switch, the system or the CPU. None if it can be tried."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    if not sys.platform.startswith("linux"):
        return f"it needs Linux, not {sys.platform}"
    if not (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.cpu._is_avx512_bf16_supported()
        and torch.cpu._is_vnni_supported()
    ):
        return "it needs a CPU with AVX512, including its bfloat16 and byte products (VNNI)"
    return None


def flags() -> tuple[str, ...]:
    """The compiler's options: `FLAGS`, and with tiles those of AMX."""
    return (*FLAGS, *(TILES if torch.cpu._is_amx_tile_supported() else ()))


def library(folder: Path) -> ctypes.CDLL:
    """Return the library; compiles it if `folder` doesn't have it.

    A process tries this once per folder, until it has the library.

    Raises:
        Unavailable: it can't be compiled or loaded; states the reason.
    """
    if (reason := refusal()) is not None:
        raise Unavailable(reason)
    if not _in_use:
        found = _tried(folder)
        if isinstance(found, str):
            raise Unavailable(found)
        _in_use.append(found)
    return _in_use[0]


def is_compiled(folder: Path) -> bool:
    """Return whether `library` has nothing to compile: it is in the folder, or in use already.

    Raises:
        Unavailable: it can't be used here; states the reason.
    """
    if (reason := refusal()) is not None:
        raise Unavailable(reason)
    return bool(_in_use) or _fault(_path(folder, _compiler())) is None


@functools.cache
def _tried(folder: Path) -> ctypes.CDLL | str:
    """Return the library, or the reason why there is none."""
    try:
        return _loaded(folder)
    except Unavailable as reason:
        return str(reason)


def _loaded(folder: Path) -> ctypes.CDLL:
    compiler = _compiler()
    path = _path(folder, compiler)
    try:
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (fault := folder_fault(folder)) is not None:
            # others with write access could insert code that would run as this user
            reason = (
                f"{fault}; compiled code is stored only where nobody else can write: set CM3_CACHE"
            )
            _log.warning("few_rows: %s", reason)
            raise Unavailable(reason)
        if (fault := _fault(path)) is not None:
            if path.is_symlink() or path.exists():
                _log.warning("few_rows: %s; compiling it again", fault)
            _compile(compiler, path)
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"{path} can't be written or loaded: {error}") from error
    loaded.cm3_large_pages.argtypes = [c_void_p, c_int64]
    loaded.cm3_product.argtypes = [c_void_p, c_void_p, c_int64, c_int, c_int, c_void_p, c_int]
    shape = (c_void_p, c_int64, c_void_p, c_int64, c_int, c_void_p, c_void_p, c_int)
    loaded.cm3_step.argtypes = list(shape)
    loaded.cm3_tiles(1)
    return loaded


def _path(folder: Path, compiler: list[str]) -> Path:
    """Return the library's path."""
    return folder / f"few_rows-{_fingerprint(compiler)}.so"


def _record(path: Path) -> Path:
    """Return the path of a library's stored hash."""
    return path.with_suffix(".so.sha256")


def _fault(path: Path) -> str | None:
    """Return why a library can't be used; None if it belongs to this user and has its recorded hash."""
    if not path.is_symlink() and not path.exists():
        return f"{path} does not exist"
    if (fault := file_fault(path)) is not None:
        return fault
    record = _record(path)
    if not record.is_file() or file_fault(record) is not None:
        return f"{path} has no record of its hash"
    if record.read_text(encoding="ascii", errors="replace").strip() != sha256_of(path):
        return f"{path} does not have its recorded hash"
    return None


def _compiler() -> list[str]:
    """Return the C++ compiler's command: `CXX`, or the first one found."""
    if named := os.environ.get("CXX"):
        return named.split()
    for name in ("c++", "g++", "clang++"):
        if (path := shutil.which(name)) is not None:
            return [path]
    raise Unavailable("there is no C++ compiler (c++, g++, clang++, or CXX)")


def _fingerprint(compiler: list[str]) -> str:
    """Hash everything that the library depends on."""
    found = _run([*compiler, "--version"])
    digest = hashlib.sha256(repr((found, flags())).encode())
    for source in sorted([*SOURCES.glob("*.h"), SOURCES / ENTRY]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _compile(compiler: list[str], path: Path) -> None:
    """Compile to a temporary file first, so that other processes see all of it or nothing."""
    _log.info("few_rows: compiling for this CPU, once (takes a few seconds)")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        _run([*compiler, *flags(), str(SOURCES / ENTRY), "-o", str(made)])
        made.chmod(0o700)
        hashed = _record(made)
        hashed.write_text(f"{sha256_of(made)}\n", encoding="ascii")
        hashed.chmod(0o600)
        # another compiler run gives the same library, or one that fails its hash and is then compiled again
        hashed.replace(_record(path))
        made.replace(path)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LONGEST_COMPILATION, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the compiler {command[0]} doesn't run: {error}") from error
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
        raise Unavailable(f"the compiler {command[0]} failed: {said.strip()}")
    return done.stdout


_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def folder_fault(folder: Path) -> str | None:
    """Return why a folder's contents can't be trusted to be this user's; None if they can.

    The folder must belong to this user, and must not be writable for others. So must each of its parent folders, with links
    followed or not; these may also belong to root, and be writable for others if the sticky bit keeps them from replacing
    other users' files (`/tmp`). Access control lists are not checked.
    """
    # Path.resolve would lose the unresolved path
    for spelling in dict.fromkeys((Path(os.path.abspath(folder)), Path(os.path.realpath(folder)))):  # noqa: PTH100
        for place in (spelling, *spelling.parents):
            try:
                found = place.stat()
            except OSError as error:
                return f"{place} can't be checked ({error.strerror})"
            own = found.st_uid == os.geteuid()
            if not own and (place == spelling or found.st_uid != 0):
                return f"{place} belongs to another user"
            sticky = place != spelling and found.st_mode & stat.S_ISVTX
            if _others_write(found) and not sticky:
                return f"{place} is writable by other users"
    return None


def file_fault(path: Path) -> str | None:
    """Return the same for a file in such a folder."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        return f"{path} is not a regular file"
    if found.st_uid != os.geteuid():
        return f"{path} belongs to another user"
    if _others_write(found):
        return f"{path} is writable by other users"
    return None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _others_write(found: os.stat_result) -> bool:
    """Whether anybody but the owner may write; a group without other members counts as the owner."""
    mode = found.st_mode & _OTHERS_WRITE
    return bool(mode) and not (mode == stat.S_IWGRP and _is_private(found.st_gid))


def _is_private(group: int) -> bool:
    try:
        user, named = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    alone = set(named.gr_mem) <= {user.pw_name}
    return group == user.pw_gid and named.gr_name == user.pw_name and alone
