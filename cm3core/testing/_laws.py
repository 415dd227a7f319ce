"""`Contract`: the base of all conformance kits; turns laws into tests for each implementation.

A kit defines its laws as plain methods, and how to build a component from a config:

    class SamplerContract(Contract[Sampler]):
        kind = "sampler"

        def build(self, config: Any) -> Sampler:
            return config.build()

        def law_same_seed_same_token(self, data: st.DataObject) -> None:
            sampler = self.subject
            seed = data.draw(st.integers(0, 2**31))
            ...

and an author's test is a subclass with a `config` (or a `make`, where the component isn't built the
kind's usual way). For every `law_NAME` of its ancestors, each such subclass gets its own method
`test_NAME`, wrapped in a new `hypothesis.given(data=st.data())`. (Inherited `@given` methods are
one function shared by all subclasses, which Hypothesis's `differing_executors` check refuses in the
second one.)

Between equal calls a law finds the global generators in other states: `subject` and `make_again`
perturb them, so laws write `self.subject` for every call, and `self.make_again()` for a second
instance. They are restored after the law.

A law that draws nothing is written `law_NAME(self)`, without `data`, and runs once. A class
attribute `max_examples` limits the examples per law (for slow components). A component that a law
does not apply to waives it: a method `waive_NAME` returns the reason, with which the test is
skipped.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, is_dataclass
from typing import Any, ClassVar, Generic, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import UnsatisfiedAssumption

from cm3core.config.schema import default, init_fields
from cm3core.errors import PluginError, close_match
from cm3core.interfaces.component import ComponentConfig
from cm3core.testing import _generators
from cm3core.testing._shrinking import Shrinking

T = TypeVar("T")


class Contract(Generic[T]):
    """Base of the kits. Abstract: tests are subclasses of a kit with a `config` or a `make`.

    Raises:
        PluginError: on creating a subclass: `config` is of another kind or lacks values, a waiver
            names no law or gives no reason, or a test of a law is replaced.
    """

    #: The kind whose components are tested, see `cm3core.plugins.kinds`; set by each kit.
    kind: ClassVar[str] = ""
    #: What `make` builds: an instance of the component's config. None: the test defines `make`.
    # a ComponentConfig; Any, so that a test may use its own fields
    config: ClassVar[Any] = None
    #: Examples per law; None: the active Hypothesis profile's number.
    max_examples: ClassVar[int | None] = None
    _subject: ClassVar[Any]  # a T; class variables can't say so
    #: Seconds spent on shrinking failing examples of this class's laws.
    _shrinking_seconds: ClassVar[float] = 0.0
    _shrinking: Shrinking
    _perturbations: int = 0

    def make(self) -> T:
        """Return a new instance of the component under test; equal calls give equal components.

        By default, checks `config` and builds it with `build`.
        """
        self.config.check()
        return self.build(self.config)

    def build(self, config: Any) -> T:
        """Build the component of a config in the kind's usual way."""
        raise NotImplementedError

    @property
    def subject(self) -> T:
        """The component under test, made once per test class (examples share it).

        Each access puts the global generators of `random`, numpy and torch into another state.
        """
        cls = type(self)
        if "_subject" not in cls.__dict__:
            cls._subject = self.make()
        subject: T = cls._subject
        self._perturb_generators()
        return subject

    def make_again(self) -> T:
        """Another instance, equal to the subject, made with the global generators perturbed."""
        self._perturb_generators()
        return self.make()

    def _perturb_generators(self) -> None:
        """Put the global generators of `random`, numpy and torch into a state not seen before.

        Called before each use of the component, so that a law finds one that depends on them.
        They are restored after the law.
        """
        self._perturbations += 1
        _generators.perturb(self._perturbations)

    @classmethod
    def laws(cls) -> dict[str, str]:
        """Law (without `law_`, sorted) -> its docstring's first paragraph, on one line."""
        return {
            name.removeprefix("law_"): " ".join(
                (inspect.getdoc(getattr(cls, name)) or "").partition("\n\n")[0].split()
            )
            for name in dir(cls)
            if name.startswith("law_")
        }

    @classmethod
    def for_config(
        cls, config: ComponentConfig | type[ComponentConfig], **attributes: Any
    ) -> type[Contract[T]]:
        """This kit's tests for a config, as a class that pytest collects.

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
                f"its config {type(cls.config).__name__} is of kind {cls.config.kind!r}, "
                f"the kit is for {cls.kind!r}",
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
            test.__name__ = f"test_{law}"
            test.__qualname__ = f"{cls.__qualname__}.{test.__name__}"
            test.__doc__ = getattr(cls, f"law_{law}").__doc__
            test.__module__ = cls.__module__
            setattr(cls, test.__name__, test)


def _with_defaults(config_class: type[ComponentConfig]) -> ComponentConfig:
    """A config of defaults only."""
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
    """Law -> the reason why it is waived."""
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
                "return a sentence on why the law does not apply",
            )
        waivers[law] = reason
    return waivers


def _skip(reason: str) -> Callable[..., None]:
    def skipped(self: Contract[Any]) -> None:
        pytest.skip(f"waived: {reason}")

    return skipped


def _test_of(law: Callable[..., None], cls: type[Contract[Any]]) -> Callable[..., None]:
    """A test function of `law` that no other class shares."""
    if "data" not in inspect.signature(law).parameters:

        def run_once(self: Contract[Any]) -> None:
            with _generators.preserved():
                law(self)

        return run_once

    def run(self: Contract[Any], data: st.DataObject) -> None:
        self._shrinking.check(data)
        # from the same state in each example, so that it can be repeated
        self._perturbations = 0
        try:
            with _generators.preserved():
                law(self, data)
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

    @functools.wraps(test)  # with the attributes that Hypothesis's pytest plugin reads
    def run_limited(self: Contract[Any]) -> None:
        self._shrinking = Shrinking(cls._shrinking_seconds)
        try:
            test(self)
        finally:
            cls._shrinking_seconds += self._shrinking.seconds

    return run_limited
