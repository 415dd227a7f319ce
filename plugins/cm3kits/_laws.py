"""`Contract`: the base of all conformance kits. It turns laws into tests for each implementation.

A kit defines its laws as plain methods, and builds a component from a config:

    class SamplerContract(Contract[Sampler]):
        kind = "sampler"

        def build(self, config: Any) -> Sampler:
            return config.build()

        def law_same_seed_same_token(self, data: st.DataObject) -> None:
            sampler = self.subject
            seed = data.draw(st.integers(0, 2**31))
            ...

and an author's test is a subclass with a `config` (or a `make`, if the component isn't built in the
usual way of its kind). For every `law_NAME` of its ancestors, each such subclass gets its own method
`test_NAME`, wrapped in a new `hypothesis.given(data=st.data())`. (Inherited `@given` methods are one
function shared by all subclasses, which Hypothesis's `differing_executors` check rejects in the
second one.)

Between equal calls a law sees the global generators in different states: Hypothesis seeds them at the start of each
example, and some components read them without advancing them (`torch.initial_seed`, `fork_rng`), so two consecutive
calls may agree by accident. `subject` and `make_again` perturb them, so laws write `self.subject` for every call, and
`self.make_again()` for a second instance. Each example starts from another state, and a call that changes a
generator's state breaks the law. Building a component may use them: laws then use `with
self.building():`. They are restored after the law.

Causes come before compounds: a law is marked by `presupposes` with the laws without which its failure says nothing;
it is tested after these, and skipped if one of them fails.

Laws compare with `same`, `holds` and `refuses` of `cm3kits._findings`, which report what was done, the expected
and the actual result; a plain `assert` is reported with the law's docstring.

A law that draws nothing is written `law_NAME(self)`, without `data`, and runs once. The class attribute
`max_examples` limits the examples per law (for slow components). A component waives a law that does not
apply to it: a method `waive_NAME` returns the reason, and the test is skipped with that
reason.

Hypothesis shrinks for up to five minutes per failing test, so a kit of a dozen laws could take an hour to fail. After
`SECONDS_PER_LAW`, examples tried only for shrinking end before they draw anything, as Hypothesis ends examples that
draw too much; the smallest failing example so far is then reported as usual. (Hypothesis's own limit can be lowered,
but it then prints that five minutes have passed, and asks for a bug report.)
"""

from __future__ import annotations

import functools
import inspect
import linecache
import random
import sys
import time
from abc import ABC
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.control import current_build_context
from hypothesis.errors import HypothesisException, UnsatisfiedAssumption

from cm3core.config.schema import default, init_fields
from cm3core.errors import CM3Error, PluginError, close_match
from cm3core.interfaces.component import ComponentConfig
from cm3core.plugins.kinds import KINDS
from cm3kits._construction import explained, misfits
from cm3kits._findings import LawBroken, holds, readable, recipe_form
from cm3kits._sources import mentions, own_line


def perturb(number: int) -> None:
    """Put all global generators into a state that depends only on the number."""
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002  # the global generator is intended
    # without torch imported, nothing can depend on it; most kits don't need it
    if (torch := sys.modules.get("torch")) is not None:
        torch.default_generator.manual_seed(number)
        if _uses_cuda():
            torch.cuda.manual_seed_all(number)


def states() -> dict[str, Any]:
    """Return the state of each global generator, by its public name."""
    found: dict[str, Any] = {"random": random.getstate()}
    own: Any = np.random.get_state()  # noqa: NPY002  # the global one is intended
    found["numpy.random"] = (own[0], own[1].tobytes(), *own[2:])
    if (torch := sys.modules.get("torch")) is not None:
        found["torch"] = torch.random.get_rng_state().numpy().tobytes()
    return found


def changed(before: dict[str, Any]) -> list[str]:
    """Return the names of global generators whose state has changed."""
    now = states()
    return [name for name, state in before.items() if now[name] != state]


@contextmanager
def preserved() -> Iterator[None]:
    """Restore the global generators afterwards."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  # the global one is intended
    torch = sys.modules.get("torch")
    state = None if torch is None else torch.random.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch is not None and _uses_cuda() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002  # the global one is intended
        if torch is not None:
            torch.random.set_rng_state(state)
            if devices is not None:
                torch.cuda.set_rng_state_all(devices)


def _uses_cuda() -> bool:
    torch = sys.modules["torch"]
    return bool(torch.cuda.is_available() and torch.cuda.is_initialized())


#: Seconds for one law, and for all laws of a test class.
SECONDS_PER_LAW, SECONDS_PER_CLASS = 5.0, 20.0
#: Seconds for each further law once the class's seconds are used up.
LEAST_SECONDS = 0.5


class Shrinking:
    """Measures how long a run of a law's test has been shrinking.

    Args:
        used: seconds used by other laws of the test class.
    """

    def __init__(self, used: float) -> None:
        self.limit = max(LEAST_SECONDS, min(SECONDS_PER_LAW, SECONDS_PER_CLASS - used))
        self._begun: float | None = None

    def begin(self) -> None:
        """Record a failure; the first one starts the clock."""
        if self._begun is None:
            self._begun = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the first failure; 0 before it."""
        return 0.0 if self._begun is None else time.perf_counter() - self._begun

    def check(self, data: st.DataObject) -> None:
        """End the current example if it would only shrink another one, and time is up."""
        # the last run of the failing example is reported
        if self.seconds > self.limit and not current_build_context().is_final:
            data.conjecture_data.mark_overrun()


def presupposes(*laws: str) -> Callable[[F], F]:
    """Mark a law whose failure says nothing where one of these laws fails: it comes after them, and is then skipped.

    Every law presupposes `it_can_be_built`."""

    def mark(law: F) -> F:
        law.presupposed = laws  # type: ignore[attr-defined]  # read by `Contract.laws`
        return law

    return mark


F = TypeVar("F", bound=Callable[..., None])
T = TypeVar("T")
#: The laws that others fail by: of building, and of the global generators.
_BUILT, _GENERATORS = "it_can_be_built", "global_generators_are_left_alone"
#: States of the global generators at the start of a law's examples.
_STARTS = st.integers(0, 2**31 - 1)


class Contract(Generic[T]):
    """Base of the kits. Abstract: tests are subclasses of a kit with a `config` or a `make`.

    Raises:
        PluginError: on creating a subclass: `config` is of another kind or lacks values, a waiver is for an
            unknown law or gives no reason, or a law's test is replaced.
    """

    #: Kind of the tested components, see `cm3core.plugins.kinds`; set by each kit.
    kind: ClassVar[str] = ""
    #: Config that `make` builds: an instance of the component's config. None: the test defines `make`.
    # a ComponentConfig; Any, so that a test may use its own fields
    config: ClassVar[Any] = None
    #: Laws that all others of the kit presuppose, see `presupposes`.
    causes: ClassVar[tuple[str, ...]] = ()
    #: Examples per law; None: the active Hypothesis profile's number.
    max_examples: ClassVar[int | None] = None
    _subject: ClassVar[Any]  # a T, which class variables can't express
    #: Seconds spent on shrinking failing examples of this class's laws.
    _shrinking_seconds: ClassVar[float] = 0.0
    _shrinking: Shrinking
    _perturbations: int = 0
    _first_state: int = 0
    _generators_left: dict[str, Any] | None = None
    _is_new: bool = False

    def make(self) -> T:
        """Return a new instance of the component under test; equal calls return equal components.

        By default, checks `config` and builds it with `build`.
        """
        self.config.check()
        return self.build(self.config)

    def build(self, config: Any) -> T:
        """Build the component of a config in the usual way of its kind."""
        raise NotImplementedError

    @property
    def subject(self) -> T:
        """The component under test, created once per test class (examples share it).

        Each access puts the global generators of `random`, numpy and torch into another state.
        """
        cls = type(self)
        if "_subject" not in cls.__dict__:
            with self.building():
                cls._subject = self._made()
        subject: T = cls._subject
        self._perturb_generators()
        return subject

    def make_again(self) -> T:
        """Return another instance, equal to the subject, created with perturbed global generators."""
        self._perturb_generators()
        with self.building():
            return self._made()

    def _made(self) -> T:
        """Return a new component; an error of building it says what to write."""
        try:
            return self.make()
        except Exception as error:  # from a component
            if isinstance(error, (CM3Error, AssertionError, HypothesisException)):
                raise
            kind = KINDS.get(self.kind)
            raise explained(error, object if kind is None else kind.interface_class) from error

    @contextmanager
    def building(self) -> Iterator[None]:
        """Context in which global generators may be used: networks start with random weights, which a file's
        weights then replace."""
        self._check_generators()
        self._generators_left = None
        yield
        self._generators_left, self._is_new = states(), True

    def _perturb_generators(self) -> None:
        """Put the global generators of `random`, numpy and torch into a new state.

        Called before each use of the component, so that a law detects a component that depends on them.
        They are restored after the law.
        """
        self._check_generators()
        self._perturbations += 1
        perturb((self._first_state + 7919 * self._perturbations) % 2**32)
        self._generators_left = states()

    def _check_generators(self) -> None:
        """Raise `LawBroken` if a call since the last check changed the state of a global generator."""
        left, self._generators_left = self._generators_left, None
        used = [] if left is None else changed(left)
        is_new, self._is_new = self._is_new, False
        if used == ["torch"] and is_new:
            return  # a network that is built on first use
        if used:
            raise LawBroken(
                "called it, and looked at the global random generators before and after",
                "their states unchanged",
                f"the state of {' and '.join(used)} was changed",
                next_step="draw from its own generator, seeded or passed to the call: other "
                "components, and reproducible runs, share the global ones",
                law=_GENERATORS,
            )

    @classmethod
    def laws(cls) -> dict[str, str]:
        """Return law (without `law_`) -> its docstring's first paragraph on one line.

        Causes come first: a law comes after those that it presupposes, otherwise by its name."""
        names = [name.removeprefix("law_") for name in dir(cls) if name.startswith("law_")]
        names.sort(key=cls._place)
        return {law: _meaning(getattr(cls, f"law_{law}")) for law in names}

    @classmethod
    def _place(cls, law: str) -> tuple[int, int, str]:
        """Return what the laws are sorted by: those of every kind come first."""
        first = f"law_{law}" in vars(Contract)
        return (
            0 if first else 1,
            list(vars(Contract)).index(f"law_{law}") if first else cls._depth(law),
            law,
        )

    @classmethod
    def _presupposed(cls, law: str) -> tuple[str, ...]:
        """Return the laws that a law presupposes itself, as far as the kit has them."""
        own = getattr(getattr(cls, f"law_{law}"), "presupposed", ())
        of_kit = () if law in cls.causes or f"law_{law}" in vars(Contract) else cls.causes
        every = (*own, *of_kit, _BUILT)
        return tuple(one for one in every if one != law and hasattr(cls, f"law_{one}"))

    @classmethod
    def _depth(cls, law: str) -> int:
        return max((1 + cls._depth(one) for one in cls._presupposed(law)), default=0)

    @classmethod
    def _causes(cls, law: str) -> set[str]:
        """Return all laws that a law presupposes, also by others."""
        found = set(cls._presupposed(law))
        return found.union(*(cls._causes(one) for one in found))

    @classmethod
    def _failed(cls) -> set[str]:
        """Laws of this class that have failed so far."""
        if "_failures" not in cls.__dict__:
            cls._failures = set()  # type: ignore[attr-defined]  # as `_subject`
        found: set[str] = cls._failures  # type: ignore[attr-defined]  # set on each class
        return found

    # ---- laws of every kind

    def use(self, component: T) -> None:
        """Call what the component does, for laws that watch it at work."""

    def members(self, component: T) -> Iterator[type[Any]]:
        """Yield the classes whose members the framework calls."""
        yield type(component)
        if self.config is not None:
            yield type(self.config)

    def law_it_can_be_built(self) -> None:
        """Building gives an instance of the kind's interface, whose abstract members it all has."""
        subject = self.subject
        if (kind := KINDS.get(self.kind)) is not None:
            holds(
                isinstance(subject, kind.interface_class),
                "built the component",
                f"a {kind.interface_class.__name__}",
                f"a {type(subject).__name__}",
                next_step=f"derive {type(subject).__name__} from {kind.interface_class.__name__}",
            )

    def law_members_fit_the_interface(self) -> None:
        """Methods take what the interface's callers give, properties are properties, and no name is an interface's with
        a typing error, which nobody would call."""
        for cls in self.members(self.subject):
            for name, cause, advice in misfits(cls, mentions(cls)):  # type: ignore[arg-type]  # classes are hashable
                raise LawBroken(
                    f"compared {cls.__name__}.{name} with its interface",
                    "a member as the interface has it",
                    f"{name} {cause}",
                    next_step=advice,
                )

    def law_global_generators_are_left_alone(self) -> None:
        """Calls change the state of no global generator of `random`, numpy and torch."""
        component = self.make_again()
        for _ in range(2):  # a network may be built on first use
            try:
                self.use(component)
            except LawBroken:
                raise
            except Exception:  # other laws report what can't be called
                pass
            self._perturb_generators()

    @classmethod
    def for_config(
        cls, config: ComponentConfig | type[ComponentConfig], **attributes: Any
    ) -> type[Contract[T]]:
        """Return this kit's tests for a config, as a class that pytest collects.

        Args:
            config: an instance, or a class whose fields all have defaults.
            attributes: further class attributes of the tests, e.g. `max_examples=5`.

        Raises:
            PluginError: see the class.
        """
        name = f"Test{config.__name__ if isinstance(config, type) else type(config).__name__}"
        return type(
            name,
            (cls,),
            {"config": config, "__module__": cls.__module__, "__doc__": cls.__doc__, **attributes},
        )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        laws = cls.laws()
        if isinstance(cls.config, type):
            cls.config = _with_defaults(cls.config)
        if cls.config is not None and cls.kind != cls.config.kind:
            raise PluginError(
                cls.__qualname__,
                f"its config {type(cls.config).__name__} has the kind {cls.config.kind!r}, "
                f"but the kit is for {cls.kind!r}",
                f"inherit the kit of {cls.config.kind!r}",
            )
        waivers = _waivers(cls, laws)
        if cls.make is Contract.make and cls.config is None:
            return  # a kit, not an implementation's tests
        for law in laws:
            if f"test_{law}" in cls.__dict__:
                raise PluginError(
                    f"{cls.__qualname__}.test_{law}",
                    f"would replace the test of the law {law!r}",
                    f"to waive the law, define waive_{law}(self), which returns the reason",
                )
            test = (
                _skip(waivers[law]) if law in waivers else _test_of(getattr(cls, f"law_{law}"), cls)
            )
            if law not in waivers:
                test = _after_causes(test, law, cls)
            test.__name__ = f"test_{law}"
            test.__qualname__ = f"{cls.__qualname__}.{test.__name__}"
            test.__doc__ = getattr(cls, f"law_{law}").__doc__
            test.__module__ = cls.__module__
            setattr(cls, test.__name__, test)


def _with_defaults(config_class: type[ComponentConfig]) -> ComponentConfig:
    """Return a config with defaults only."""
    if is_dataclass(config_class) and (
        missing := [item.name for item in init_fields(config_class) if default(item) is MISSING]
    ):
        values = ", ".join(f"{name}=..." for name in missing)
        raise PluginError(
            f"{config_class.__name__}.{missing[0]}",
            "has neither a default nor a value",
            f"test an instance: config = {config_class.__name__}({values})",
        )
    return config_class()


def _waivers(cls: type[Contract[Any]], laws: dict[str, str]) -> dict[str, str]:
    """Return law -> reason for waiving it."""
    waivers = {}
    for name in dir(cls):
        if not name.startswith("waive_"):
            continue
        law = name.removeprefix("waive_")
        if law not in laws:
            raise PluginError(
                f"{cls.__qualname__}.{name}", f"there is no law {law!r}", close_match(law, laws)
            )
        reason = getattr(cls(), name)()
        if not isinstance(reason, str) or not reason.strip():
            raise PluginError(
                f"{cls.__qualname__}.{name}",
                f"returns {reason!r}, not a reason",
                "return a sentence that says why the law does not apply",
            )
        waivers[law] = reason
    return waivers


def _skip(reason: str) -> Callable[..., None]:
    def skipped(self: Contract[Any]) -> None:
        pytest.skip(f"waived: {reason}")

    return skipped


def _after_causes(
    test: Callable[..., None], law: str, cls: type[Contract[Any]]
) -> Callable[..., None]:
    """Skip the test of a law where one that it presupposes has failed, and note whether this one does."""
    causes = cls._causes(law)

    @functools.wraps(test)  # keeps the attributes that Hypothesis's pytest plugin reads
    def run(self: Contract[Any]) -> None:
        failed = cls._failed()
        if first := sorted(causes & failed, key=cls._depth):
            pytest.skip(f"not tested: it presupposes {first[0]!r}, which does not hold")
        try:
            test(self)
        except (Exception, pytest.fail.Exception) as error:
            found = error.law if isinstance(error, LawBroken) else ""
            if found.partition(":")[0] == _GENERATORS != law and _GENERATORS in failed:
                pytest.skip(f"not tested: it presupposes {_GENERATORS!r}, which does not hold")
            failed.add(law)
            raise

    return run


def _test_of(law: Callable[..., None], cls: type[Contract[Any]]) -> Callable[..., None]:
    """Return a test function of `law` for this class alone."""
    if "data" not in inspect.signature(law).parameters:

        def run_once(self: Contract[Any]) -> None:
            self._perturbations, self._generators_left = 0, None
            _run(self, law)

        return run_once

    def run(self: Contract[Any], data: st.DataObject) -> None:
        self._shrinking.check(data)
        # from a state determined by the example, so that it can be repeated; not one of its draws
        self._first_state = data.conjecture_data.draw(_STARTS)
        self._perturbations, self._generators_left = 0, None
        try:
            _run(self, law, data)
        except (Exception, pytest.fail.Exception) as error:
            if not isinstance(error, UnsatisfiedAssumption):
                self._shrinking.begin()
            raise

    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    limits = settings(deadline=None, suppress_health_check=checks, report_multiple_bugs=False)
    if cls.max_examples is not None:
        limits = settings(limits, max_examples=cls.max_examples)
    run.__qualname__ = f"{cls.__qualname__}.{law.__name__}"
    test = limits(given(data=st.data())(run))

    @functools.wraps(test)  # keeps the attributes that Hypothesis's pytest plugin reads
    def run_limited(self: Contract[Any]) -> None:
        self._shrinking = Shrinking(cls._shrinking_seconds)
        try:
            test(self)
        except BaseExceptionGroup as group:
            # Hypothesis's error for flaky failures, e.g. if a component remembers calls
            found = next((one for one in group.exceptions if isinstance(one, LawBroken)), None)
            if found is None:
                raise
            raise found from None
        except BaseException as error:
            if notes := getattr(error, "__notes__", None):
                error.__notes__ = [readable(note) for note in notes]
            raise
        finally:
            cls._shrinking_seconds += self._shrinking.seconds

    return run_limited


def _run(contract: Contract[Any], law: Callable[..., None], *drawn: st.DataObject) -> None:
    """Run a law once; findings are reported with the law and the component."""
    name, meaning = law.__name__.removeprefix("law_"), _meaning(law)
    try:
        with preserved():
            law(contract, *drawn)
            contract._check_generators()
    except LawBroken as error:
        if error.law:  # of another law, that every call shows
            name, meaning = error.law, _meaning(getattr(contract, f"law_{error.law}"))
        raise error.framed(name, meaning, _tested(contract)) from error.__cause__
    except AssertionError as error:
        place = _innermost(error.__traceback__)
        if not _is_of_kits(place):
            raise  # the component's own assertion
        got = str(error) or _source(place)
        found = LawBroken(f"tested the law {name!r}", meaning, got, _line(place))
        raise found.framed(name, "", _tested(contract)) from None
    except (CM3Error, HypothesisException):
        raise
    except Exception as error:  # from a component
        text, step = (
            f"{type(error).__name__}: {error}".rstrip(": "),
            "correct the call that raised it",
        )
        if isinstance(error, TypeError) and "abstract class" in text:  # a part, such as a cache
            told = explained(error, ABC)
            text, step = f"{told.place}: {told.cause}", told.next_step
        found = LawBroken(
            f"tested the law {name!r}",
            meaning,
            f"an error: {text}",
            own_line(error),
            step,
        )
        raise found.framed(name, "", _tested(contract)) from error


def _meaning(law: Callable[..., None]) -> str:
    return " ".join((inspect.getdoc(law) or "").partition("\n\n")[0].split())


def _tested(contract: Contract[Any]) -> str:
    """Describe the tested component: its config as in a recipe, or its class."""
    if contract.config is not None:
        try:
            return recipe_form(contract.config)
        except (TypeError, ValueError, AttributeError):  # tests of the kits have unusual configs
            return type(contract.config).__name__
    subject = type(contract).__dict__.get("_subject")
    return f"{type(subject).__name__}, made by {type(contract).__qualname__}.make"


def _innermost(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback


def _is_of_kits(place: TracebackType | None) -> bool:
    """Whether an assertion belongs to a law, in this folder or in a third party's kit."""
    if place is None:
        return True
    code = place.tb_frame.f_code
    return code.co_name.startswith("law_") or (
        Path(code.co_filename).parent == Path(__file__).parent
    )


def _line(place: TracebackType | None) -> str:
    if place is None:
        return ""
    return f"{Path(place.tb_frame.f_code.co_filename).name}, line {place.tb_lineno}"


def _source(place: TracebackType | None) -> str:
    if place is None:
        return ""
    return linecache.getline(place.tb_frame.f_code.co_filename, place.tb_lineno).strip()
