"""A process with another `PYTHONHASHSEED` that builds a test's component and returns its results.

One server process serves all tests of a process: it imports what every kit needs, and forks for each
request, so requests are cheap and see no modules of other requests. It runs the author's own test
code, like this process.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import os
import pickle
import selectors
import struct
import subprocess
import sys
import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import IO, Any

from cm3core.errors import CM3Error

#: Time limit of a request in seconds.
TIMEOUT = 120.0
_SEED = "PYTHONHASHSEED"


@dataclass
class Request:
    """The component to build, and its location.

    Args:
        kit: module and qualified name of the test class, or of the kit if `config` is given.
        config: pickled config; None: the test class has its own.
        attributes: pickled class attributes of the test.
        modules: module name -> file, for modules that may not be on `path`.
        path, folder, environment: `sys.path`, working directory and variables.
        with_torch: whether to import torch before forking.
    """

    kit: tuple[str, str]
    config: bytes | None
    attributes: bytes
    modules: Mapping[str, str]
    path: list[str] = field(default_factory=lambda: list(sys.path))
    folder: str = field(default_factory=os.getcwd)
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    with_torch: bool = field(default_factory=lambda: "torch" in sys.modules)


@dataclass
class Answer:
    """Results of the other process; `error` is "" if it built the component.

    Args:
        fingerprints, outputs: see `ConfigLaws`.
        seed: its `PYTHONHASHSEED`.
        error: text of the error raised.
        cm3_error: the error itself, if it is a `CM3Error`.
    """

    fingerprints: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    seed: str = ""
    error: str = ""
    cm3_error: CM3Error | None = None


def modules_of(value: Any) -> dict[str, str]:
    """Return module -> file of the classes of a config and its values."""
    found: dict[str, str] = {}
    if is_dataclass(value):
        bases: Any = type(value).__mro__
        for cls in bases:
            file = getattr(sys.modules.get(cls.__module__), "__file__", None)
            if file and not cls.__module__.startswith("cm3core."):
                found[cls.__module__] = str(Path(file).absolute())
        for inner in vars(value).values():
            found |= modules_of(inner)
    elif isinstance(value, Mapping):
        for inner in value.values():
            found |= modules_of(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            found |= modules_of(inner)
    return found


class _Server:
    """The process, started by the first request."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, request: Request) -> Answer:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _send(process.stdin, pickle.dumps(request))
            answer = pickle.loads(_receive(process.stdout, TIMEOUT))
        except (OSError, EOFError, TimeoutError, pickle.UnpicklingError) as error:
            self.end()
            return Answer(error=f"{type(error).__name__}: {error}".rstrip(": "))
        assert isinstance(answer, Answer)
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.process.poll() is not None:
            own = os.environ.get(_SEED, "")
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-c",
                    "from cm3kits import _other_process as o; o.serve()",
                ],
                env={**os.environ, _SEED: "1" if own != "1" else "2"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self.process

    def end(self) -> None:
        """Stop the process."""
        if self.process is not None:
            with suppress(OSError):
                self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
            self.process = None


_SERVER = _Server()
atexit.register(_SERVER.end)


def ask(request: Request) -> Answer:
    """Build a component in the other process, and return its results."""
    return _SERVER.ask(request)


def _send(pipe: IO[bytes], content: bytes) -> None:
    pipe.write(struct.pack("<q", len(content)) + content)
    pipe.flush()


def _receive(pipe: IO[bytes], timeout: float | None = None) -> bytes:
    if timeout is not None:
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            if not selector.select(timeout):
                raise TimeoutError(f"no answer in {timeout:g} s")
    return _exactly(pipe, struct.unpack("<q", _exactly(pipe, 8))[0])


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    content = b""
    while len(content) < size:
        more = pipe.read(size - len(content))
        if not more:
            raise EOFError("the other process ended")
        content += more
    return content


# ---- in the other process


def serve() -> None:
    """Answer requests until standard input ends."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)  # a plugin's output is not an answer
    import cm3kits.strategies  # noqa: F401  # needed by all kits, before the fork

    while True:
        try:
            request: Request = pickle.loads(_receive(requests))
        except EOFError:
            return
        if request.with_torch:
            import torch  # noqa: F401  # takes a second; imported once
        if not hasattr(os, "fork"):
            _send(answers, pickle.dumps(_answer(request)))
            continue
        child = os.fork()
        if child == 0:
            try:
                _send(answers, pickle.dumps(_answer(request)))
                os._exit(0)
            except BaseException:
                os._exit(1)
        if os.waitpid(child, 0)[1] != 0:
            _send(answers, pickle.dumps(Answer(error="the process crashed")))


def _answer(request: Request) -> Answer:
    seed = os.environ.get(_SEED, "")
    os.environ.clear()
    os.environ.update({**request.environment, _SEED: seed})
    os.chdir(request.folder)
    sys.path[:] = request.path
    try:
        for name, file in request.modules.items():
            _import(name, file)
        found: Any = importlib.import_module(request.kit[0])
        for part in request.kit[1].split("."):
            found = getattr(found, part)
        if request.config is not None:
            found = found.for_config(
                pickle.loads(request.config), **pickle.loads(request.attributes)
            )
        fingerprints, outputs = found().observed()
        return Answer(fingerprints, outputs, seed)
    except BaseException as error:
        return Answer(
            error=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
            cm3_error=error if isinstance(error, CM3Error) else None,
        )


def _import(name: str, file: str) -> None:
    """Import a module by name, or from its file if the name is not found."""
    if name in sys.modules:
        return
    with suppress(ImportError):
        if getattr(importlib.import_module(name), "__file__", None):
            return
    _have_parents(name, Path(file))
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)


def _have_parents(name: str, file: Path) -> None:
    """Create the packages above a module in `sys.modules`, as pytest does for tests imported from files: `pickle`
    imports a module's top-level package before the module."""
    parts = name.split(".")[:-1]
    for depth in range(len(parts), 0, -1):
        file = file.parent
        package = types.ModuleType(".".join(parts[:depth]))
        package.__path__ = [str(file)]
        sys.modules.setdefault(package.__name__, package)
