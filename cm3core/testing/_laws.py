"""`Contract`: the base of all conformance kits; turns laws into tests once for each implementation.

A kit writes its laws as plain methods:

    class SamplerContract(Contract[Sampler]):
        def law_same_seed_same_token(self, data: st.DataObject) -> None:
            sampler = self.subject
            seed = data.draw(st.integers(0, 2**31))
            ...

and an author's test is a subclass with a `make`. Each subclass that has one gets, for every `law_NAME` of its ancestors,
a method `test_NAME` of its own, wrapped in a fresh `hypothesis.given(data=st.data())`. (Inherited `@given` methods are one
function shared by all subclasses, which Hypothesis's `differing_executors` check refuses in the second one.)

A law that draws nothing is written `law_NAME(self)` without `data` and runs once. A class attribute `max_examples` limits
the examples of each law (slow components). A law may be switched off, in the open, by `test_NAME = None` in the subclass.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

T = TypeVar("T")


class Contract(Generic[T]):
    """Base of the kits. Abstract: subclasses of a kit define `make`."""

    #: Examples for each law; None leaves the active Hypothesis profile's number.
    max_examples: ClassVar[int | None] = None
    _subject: ClassVar[Any]  # a T; class variables can't say so

    def make(self) -> T:
        """Return a new instance of the component under test; equal calls give equal components."""
        raise NotImplementedError

    @property
    def subject(self) -> T:
        """The component under test, made once for each test class (examples share it)."""
        cls = type(self)
        if "_subject" not in cls.__dict__:
            cls._subject = self.make()
        subject: T = cls._subject
        return subject

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.make is Contract.make:
            return  # a kit, not an implementation's tests
        for name in dir(cls):
            if name.startswith("law_") and (test := name.replace("law_", "test_", 1)) not in cls.__dict__:
                setattr(cls, test, _test_of(getattr(cls, name), cls))


def _test_of(law: Callable[..., None], cls: type[Contract[Any]]) -> Callable[..., None]:
    """A test function of `law` that no other class shares."""
    if "data" not in inspect.signature(law).parameters:

        def run_once(self: Contract[Any]) -> None:
            law(self)

        test: Callable[..., None] = run_once
    else:

        def run(self: Contract[Any], data: st.DataObject) -> None:
            law(self, data)

        checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
        if cls.max_examples is None:
            limits = settings(deadline=None, suppress_health_check=checks)
        else:
            limits = settings(deadline=None, suppress_health_check=checks, max_examples=cls.max_examples)
        test = run
        test.__qualname__ = f"{cls.__qualname__}.{law.__name__}"
        test = limits(given(data=st.data())(test))
    test.__name__ = law.__name__.replace("law_", "test_", 1)
    test.__qualname__ = f"{cls.__qualname__}.{test.__name__}"
    test.__doc__ = law.__doc__
    test.__module__ = cls.__module__
    return test
