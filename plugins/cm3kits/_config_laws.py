"""Laws of configs, for every kind: every key matters and is in the fingerprint; a config can be sent to another
process, which builds the same component.

A kit returns a component's results for a few fixed inputs (`observe`). The laws build the component with
other values of each key and compare.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml

from cm3core.config.schema import (
    component_field,
    hints,
    init_fields,
    make,
    nested_dataclass,
    to_plain,
)
from cm3core.errors import CM3Error, DeviceError, MissingPackageError, RecipeError
from cm3core.interfaces.component import BrokenLawError, ComponentConfig, keys_not_in_outputs
from cm3core.interfaces.reach import READS, Outside, Reach
from cm3core.plugins.kinds import KINDS
from cm3kits import _laws, _other_process
from cm3kits._findings import (
    Difference,
    LawBroken,
    difference,
    doing,
    holds,
    readable,
    same,
    shown,
)
from cm3kits._laws import Contract
from cm3kits._module_laws import ModuleLaws, Outputs
from cm3kits._sources import NO_USE, is_mentioned

#: Files of the framework that read all keys.
_MACHINERY = {
    "dataclasses.py",
    "copy.py",
    "schema.py",
    "component.py",
    "_config_laws.py",
    "_findings.py",
}


class UnusedKeyWarning(UserWarning):
    """A key that is read seems to change nothing."""


@contextmanager
def keys_read(config_class: type[Any], found: set[str]) -> Iterator[None]:
    """Context that adds the names of keys read from a config to `found`, except reads by its own `check` and by
    functions that copy and print configs."""
    before: Any = config_class.__getattribute__
    own = "__getattribute__" in config_class.__dict__

    def noting(self: Any, name: str) -> Any:
        if not name.startswith("__"):
            code = sys._getframe(1).f_code
            if code.co_name not in NO_USE and Path(code.co_filename).name not in _MACHINERY:
                found.add(name)
        return before(self, name)

    type.__setattr__(config_class, "__getattribute__", noting)
    try:
        yield
    finally:
        if own:
            type.__setattr__(config_class, "__getattribute__", before)
        else:
            type.__delattr__(config_class, "__getattribute__")


T = TypeVar("T")
#: Seconds for trying values of keys, and the same again for all keys that seem to have no effect.
_SECONDS = 3.0


@dataclass
class _Trial:
    """A component built with another value of a key."""

    key: str
    value: Any
    fingerprints: dict[str, Any] = field(default_factory=dict)
    outputs: Outputs = field(default_factory=dict)
    error: str = ""
    broken: BrokenLawError | None = None


class ConfigLaws(ModuleLaws[T]):
    """Base of the kits of kinds with configs."""

    #: The config, and its values before building anything.
    _keys_before: ClassVar[Any] = (None, None)
    #: Whether components can be built in other folders when trying values of keys.
    _moves: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "config" in cls.__dict__ and cls.config is not None:
            cls._keys_before = (cls.config, copy.deepcopy(to_plain(cls.config)))

    @classmethod
    def _place(cls, law: str) -> tuple[int, int, str]:
        """The laws of configs, which look at the component as a whole, come last."""
        of_configs = getattr(cls, f"law_{law}").__module__ == __name__
        _, depth, name = super()._place(law)
        return (2, depth, name) if of_configs else super()._place(law)

    def use(self, component: T) -> None:
        """Call what `observe` calls."""
        self.observe(component)

    def observe(self, component: T) -> Outputs:
        """Return the component's results for a few fixed inputs: name -> arrays, numbers, texts, lists and dicts
        of them. Leave out its fingerprint."""
        return {}

    def fingerprints(self, component: T) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Return each fingerprint: name -> value, and the outputs it identifies; (): all outputs."""
        value = getattr(component, "fingerprint", None)
        return {} if value is None else {"fingerprint": (value, ())}

    def observed(self) -> tuple[dict[str, Any], Outputs]:
        """Return the fingerprints and outputs of a new component; called in another process."""
        component = self.make_again()
        return self.fingerprints(component), self.observe(component)

    def abilities(self, component: T) -> Mapping[str, bool]:
        """Return what a built component shows of the abilities that its config states (`ComponentConfig.offers`)."""
        return {}

    def works_without(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Yield abilities that a component of this kind may require, each with a function that uses a new component
        where they are missing: it raises an error if they are required (`ComponentConfig.requires`, `needs`)."""
        yield from ()

    def results(self, component: T) -> Outputs:
        """Return what `observe` returns."""
        return self.observe(component)

    # ---- laws

    def declared(self, component: T) -> Iterator[tuple[str, bool, str, Any]]:
        """Yield (what was looked at, whether it is right, what it must be, what it is) of what the component or its config
        declares and no other law tries."""
        yield from ()

    def law_what_it_declares_is_well_formed(self) -> None:
        """The config's declarations name its keys and give ranges, texts and packages of the stated types; sizes and
        names that are known before building are those of the built component."""
        if self.config is not None:
            self._check_declarations(self.config)
        for did, good, expected, got in self.declared(self.subject):
            holds(good, f"looked at {did}", expected, got)

    def _check_declarations(self, config: ComponentConfig) -> None:
        """Raise unless what a config declares has the stated form."""
        cls, keys = type(config), set(hints(type(config)))
        kinds = KINDS.get(config.kind)
        own = keys | (set(hints(kinds.config)) if kinds is not None else set())
        named = {
            "not_in_outputs": cls.not_in_outputs,
            "later_keys": cls.later_keys,
            "ranges": tuple(cls.ranges),
            "earlier": tuple(cls.earlier),
            "renamed": tuple(cls.renamed.values()),
            "outside": tuple(cls.outside),
        }
        for name, given in named.items():
            for key in given:
                did = f"looked at {name} of {cls.__name__}"
                known = key.partition(".")[0].partition("[")[0] in own
                holds(known, did, f"keys: {', '.join(sorted(keys))}", key)
        for key, (least, most) in cls.ranges.items():
            did = f"looked at ranges[{key!r}] of {cls.__name__}"
            holds(least <= most, did, "the smallest value, then the largest", (least, most))
        for name, call in (("in_short", config.in_short), ("needed", config.needed)):
            with doing(f"called {name}() of {cls.__name__}"):
                texts = list(call())
            good = all(isinstance(text, str) and text for text in texts)
            holds(good, f"called {name}() of {cls.__name__}", "texts", texts)
        did = f"called reaches() of {cls.__name__}"
        holds(
            all(isinstance(one, Reach) for one in config.reaches()),
            did,
            "a list of Reach",
            "others",
        )
        for package, install in cls.packages.items():
            good = package.isidentifier() and bool(install)
            did = f"looked at packages of {cls.__name__}"
            holds(
                good,
                did,
                "an import name, and the line that installs it",
                f"{package!r}: {install!r}",
            )
        with suppress(CM3Error), doing(f'called check_machine("cpu") of {cls.__name__}'):
            config.check_machine("cpu")
        holds(
            isinstance(cls.is_default, bool),
            "looked at is_default",
            "True or False",
            cls.is_default,
        )

    def law_what_it_offers_is_true(self) -> None:
        """`offers` of the config, by which recipes are checked before anything is built, states what the built component
        shows."""
        if self.config is None:
            return
        stated = self.config.offers()
        did = "compared the config's offers() with the component that it builds: "
        for ability, found in self.abilities(self.subject).items():
            same(
                stated.get(ability, found),
                found,
                f"{did}{ability!r}",
                next_step="state what the component does: otherwise `cm3 recipe check` calls recipes valid that fail later",
            )

    def law_what_it_requires_is_stated(self) -> None:
        """What a component can't work without is in `requires` or `needs` of its config, and nothing else is."""
        if self.config is None:
            return
        stated = {*self.config.requires(), *self.config.needs}
        for ability, use in self.works_without():
            error = ""
            with self.building():
                try:
                    use()
                except Exception as raised:  # from a component: an error is a result, too
                    error = shown(raised)
            holds(
                (ability in stated) == bool(error),
                f"used it where {ability!r} is missing",
                f"an error: requires() or needs names {ability!r}"
                if ability in stated
                else "no error",
                error or "no error",
                next_step=f"name {ability!r} in requires() or needs of the config if the component can't work without, "
                "and only then",
            )

    def law_what_build_needs_is_stated(self) -> None:
        """`check_ready` accepts a config that can be built, and refuses it with any key of `outside` null or naming a file
        that doesn't exist if `build` does."""
        if self.config is None:
            return
        advice = "declare it in `outside` (`needed`: what to do where the key is null), or override check_ready"
        ready = _is_ready(self.config)
        holds(
            ready or self._fails(self.config),
            "called check_ready of a config that build accepts",
            "no error",
            "" if ready else "an error",
            next_step=advice,
        )
        for key, declared in _read_keys_of(type(self.config)).items():
            optional = type(None) in get_args(hints(type(self.config))[key])
            for value in (*((None,) if optional else ()), "no/such/file"):
                changed = _with(self.config, key, value)
                if changed is None or _is_ready(changed):
                    holds(
                        changed is None or not self._fails(changed),
                        f"set {key} = {value!r}, which {declared.why or 'names a file'}",
                        "an error of check_ready, as of build",
                        "none",
                        next_step=advice,
                    )

    def _fails(self, config: ComponentConfig) -> bool:
        """Whether the component of another config can't be built, as its own errors say."""
        try:
            with self.building(), _laws.preserved():
                _built(self, config)
        except (DeviceError, MissingPackageError):
            return False
        except CM3Error:
            return True
        except Exception:  # a defect that another law reports
            return False
        return False

    def law_a_config_can_be_sent(self) -> None:
        """A config is the same after pickling, copying, or writing and reading it as a recipe; building changes
        nothing in it."""
        config = self.config
        if config is None:
            return
        of, before = type(self)._keys_before
        before = copy.deepcopy(before if of is config else to_plain(config))
        advice = "keep only values that a recipe can hold in its fields, everything else in the component"
        self._check_unchanged(before)  # after building for other laws
        try:
            again = pickle.loads(pickle.dumps(config))
        except Exception as error:  # from a class's own pickling
            raise LawBroken(
                "pickled the config, as data loader processes do",
                "an equal config",
                shown(error),
                next_step=f"define the class at the top level of a module, and {advice}",
            ) from error
        same(to_plain(again), before, "pickled the config and read it again", next_step=advice)
        same(to_plain(copy.deepcopy(config)), before, "copied the config", next_step=advice)
        text = yaml.safe_dump(before)
        values = {name: value for name, value in yaml.safe_load(text).items() if name != "name"}
        if not any(component_field(one) is not None for one in hints(type(config)).values()):
            read = make(type(config), values)
            same(
                to_plain(read),
                before,
                "wrote the config as a recipe, and read it",
                next_step=advice,
            )
        with self.building(), suppress(Exception):  # other laws report that it can't be built
            _built(self, config)
        self._check_unchanged(before)

    def _check_unchanged(self, before: Any) -> None:
        """Raise `LawBroken` if building changed the config's values."""
        same(
            to_plain(self.config),
            before,
            "built the component, and looked at the config's keys before and after",
            next_step="change a copy: one config may build several components, and is saved with a model",
        )

    def law_every_key_counts(self) -> None:
        """With another value of any key the component still works, and its fingerprint or its outputs change, unless
        the config lists the key in `not_in_outputs`."""
        config = self.config
        if config is None:
            return
        base, trials = self._trials()
        if base is None:
            return
        for trial in trials:
            holds(
                trial.broken is None,
                f"built it with {trial.key} = {shown(trial.value)} instead of "
                f"{shown(getattr(config, trial.key))}, and called it",
                "results as stated by the interface",
                trial.broken.cause if trial.broken is not None else "",
                next_step="correct the component for this value, or reject it in the config's check()",
            )
        end = time.monotonic() + _SECONDS
        for key in _own_keys(config):
            own = [trial for trial in trials if trial.key == key]
            if not own or any(_effect(self, base, trial) for trial in own):
                continue
            self._tell_of_no_effect(key, own, base, end)

    def _tell_of_no_effect(self, key: str, own: list[_Trial], base: _Trial, end: float) -> None:
        """Raise for a key that nothing reads; warn about a key that is read but has no visible effect."""
        name = type(self.config).__name__
        found = LawBroken(
            f"built it with other values of the key {key!r}: "
            + ", ".join(shown(trial.value) for trial in own[:6]),
            f"another fingerprint, or other {', '.join(base.outputs)}",
            f"the same as with {key} = {shown(getattr(self.config, key))}",
            next_step=f"use the key, or remove it; if it affects only speed, memory, devices or training, "
            f"write not_in_outputs = ({key!r},) in {name}",
        )
        if key not in self._keys_read() and not is_mentioned(key, type(self.config), self.subject):
            raise found
        with _own_folder() if self._moves else nullcontext():
            if self._counts_beside_others(key, own, end):
                return
        message = f"{name}.{key} seems to change nothing: {readable(str(found))}"
        warnings.warn(message, UnusedKeyWarning, stacklevel=2)

    @classmethod
    def _keys_read(cls) -> set[str]:
        """Keys read while building and calling components."""
        if "_keys_found" not in cls.__dict__:
            cls._keys_found = set()  # type: ignore[attr-defined]  # as `_subject`
        found: set[str] = cls._keys_found  # type: ignore[attr-defined]  # set on each class
        return found

    def law_the_fingerprint_covers_every_key(self) -> None:
        """If another value of a key changes the outputs, the fingerprint changes, too."""
        if self.config is None:
            return
        base, trials = self._trials()
        if base is None:
            return
        for trial in trials:
            if trial.error:
                continue
            for name, (value, labels) in trial.fingerprints.items():
                found = _change(self, base, trial, labels)
                holds(
                    found is None or value != base.fingerprints[name][0],
                    f"built it with {trial.key} = {shown(trial.value)} instead of "
                    f"{shown(getattr(self.config, trial.key))}"
                    + (f", which changes {found.where}" if found else ""),
                    f"another {name}",
                    f"the same {name}: {value!r}",
                    next_step=f"include every key that affects the outputs in `{name}`: otherwise results of one "
                    "component would be reused for the other",
                )

    def law_another_process_agrees(self) -> None:
        """In a process with another `PYTHONHASHSEED`, fingerprint and outputs are the same."""
        request = _request(self)
        if request is None:
            return
        fingerprints, outputs = self.observed()
        if not fingerprints and not outputs:
            return
        answer = _other_process.ask(request)
        if isinstance(answer.cm3_error, (MissingPackageError, DeviceError)):
            raise answer.cm3_error
        if answer.error:
            raise LawBroken(
                "built the component of the same config in another process",
                "an equal component",
                answer.error,
            )
        did = f"made it in this process, and in one with PYTHONHASHSEED={answer.seed}: its "
        advice = (
            "use hashlib instead of hash(), sort sets where their order matters, and keep time, process "
            "and address out of it"
        )
        for name, (value, _) in fingerprints.items():
            same(answer.fingerprints[name][0], value, f"{did}{name}", next_step=advice)
        for name, value in outputs.items():
            same(
                answer.outputs[name],
                value,
                f"{did}{name}",
                tolerance=self.output_tolerance,
                next_step=advice,
            )

    # ---- other values of keys

    def _trials(self) -> tuple[_Trial | None, list[_Trial]]:
        """Return the component as configured (None if its config alone can't build it), and with other values."""
        cls = type(self)
        if "_tried" not in cls.__dict__:
            cls._tried = self._try_all()  # type: ignore[attr-defined]  # as `_subject`
        found: tuple[_Trial | None, list[_Trial]] = cls._tried  # type: ignore[attr-defined]  # set on each class
        return found

    def _try_all(self) -> tuple[_Trial | None, list[_Trial]]:
        base = self._try(self.config, "", None)
        if base.error or not (base.outputs or base.fingerprints):
            return None, []
        # where files created by a value, such as a folder's name, do no harm, unless paths of the config
        # need the current folder
        with _own_folder():
            type(self)._moves = not self._try(self.config, "", None).error
        with _own_folder() if self._moves else nullcontext():
            return base, self._tried_values(base)

    def _tried_values(self, base: _Trial) -> list[_Trial]:
        """Return the component with other values of each key, until one has an effect."""
        trials: list[_Trial] = []
        end = time.monotonic() + _SECONDS
        for key in _own_keys(self.config):
            for value in _other_values(self.config, key):
                if time.monotonic() > end:
                    return trials
                changed = _with(self.config, key, value)
                if changed is None:
                    continue
                trial = self._try(changed, key, value)
                trials.append(trial)
                if not trial.error and _change(self, base, trial) is not None:
                    break
        return trials

    def _try(self, config: ComponentConfig, key: str, value: Any) -> _Trial:
        try:
            with (
                self.building(),
                _laws.preserved(),
                keys_read(type(config), self._keys_read()),
            ):
                _laws.perturb(0)
                component = _built(self, config)
                of_config = copy.copy(self)
                of_config.config = config  # type: ignore[misc]  # of this instance alone
                return _Trial(
                    key, value, self.fingerprints(component), of_config.observe(component)
                )
        except BrokenLawError as error:
            return _Trial(key, value, error=shown(error), broken=error)
        except Exception as error:  # from a component: an error is a result, too
            return _Trial(key, value, error=shown(error))

    def _counts_beside_others(self, key: str, own: list[_Trial], end: float) -> bool:
        """Whether a key has an effect together with another value of another key; True if time is up."""
        for other in _own_keys(self.config):
            for value in itertools.islice(_other_values(self.config, other), 4):
                changed = _with(self.config, other, value) if other != key else None
                if changed is None:
                    continue
                beside = self._try(changed, other, value)
                for trial in own[:4]:
                    both = _with(changed, key, trial.value)
                    if time.monotonic() > end:
                        return True
                    if both is not None and _effect(
                        self, beside, self._try(both, key, trial.value)
                    ):
                        return True
        return False


def of_small_batches(contract: ConfigLaws[Any], size: int = 3) -> Any:
    """Return the component with batches of this size if its config has a key `batch_size`, otherwise as it is."""
    config = contract.config
    if config is None or "batch_size" not in hints(type(config)):
        return contract.subject
    changed = _with(config, "batch_size", size)
    if changed is None:
        return contract.subject
    with contract.building():
        return _built(contract, changed)


@contextmanager
def _own_folder() -> Iterator[None]:
    """Context with a new folder as the current one."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, chdir(folder):
        yield


def _built(contract: Contract[Any], config: ComponentConfig) -> Any:
    """Build the component of a config in the usual way of its kind."""
    own = copy.copy(contract)
    own.config = config  # type: ignore[misc]  # of this instance alone
    config.check()
    return own.build(config)


def _read_keys_of(config_class: type[ComponentConfig]) -> dict[str, Outside]:
    """The keys of a config class itself, not of nested ones, that name files to read."""
    found: dict[str, Outside] = {}
    for parent in reversed(config_class.__mro__):
        found |= vars(parent).get("outside", {})
    return {key: one for key, one in found.items() if one.how == READS and "." not in key}


def _is_ready(config: ComponentConfig) -> bool:
    try:
        config.check_ready()
    except RecipeError:
        return False
    return True


def _effect(contract: ConfigLaws[Any], base: _Trial, trial: _Trial) -> bool:
    """Whether anything visible differs: an error, a fingerprint, an output."""
    if trial.error or base.error:
        return trial.error != base.error
    return trial.fingerprints != base.fingerprints or _change(contract, base, trial) is not None


def _change(
    contract: ConfigLaws[Any], base: _Trial, trial: _Trial, labels: tuple[str, ...] = ()
) -> Difference | None:
    """Return the first of these outputs that differs."""
    for label in labels or base.outputs:
        found = difference(trial.outputs[label], base.outputs[label], contract.output_tolerance)
        if found is not None:
            between = "" if found.where.startswith(("[", ".")) else " "
            return dataclasses.replace(found, where=f"{label}{between}{found.where}".strip())
    return None


def _own_keys(config: ComponentConfig) -> list[str]:
    """Return a config's keys, except those of its kind's base, nested components, and `not_in_outputs`."""
    kind = KINDS.get(config.kind)
    of_base = set(hints(kind.config)) if kind is not None else set()
    left_out = of_base | keys_not_in_outputs(type(config))
    return [
        name
        for name, annotation in hints(type(config)).items()
        if name not in left_out and component_field(annotation) is None
    ]


def _with(config: ComponentConfig, key: str, value: Any) -> ComponentConfig | None:
    """Return the config with another value of a key; None if it rejects the value."""
    try:
        changed = dataclasses.replace(config, **{key: value})
        changed.check()
    except Exception:  # rejected by any error
        return None
    return changed


def _other_values(config: ComponentConfig, key: str) -> Iterator[Any]:
    """Yield other values of a key, the nearest first."""
    now, annotation = getattr(config, key), hints(type(config))[key]
    seen: list[Any] = [now]
    for value in _values(now, annotation):
        if not any(type(value) is type(one) and value == one for one in seen):
            seen.append(value)
            yield value


def _values(now: Any, annotation: Any) -> Iterator[Any]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        for member in arguments:
            fits = member is not types.NoneType and now is not None
            yield from _values(now if fits else None, member)
    elif origin is Literal:
        yield from arguments
    elif annotation is types.NoneType:
        yield None
    elif annotation is bool:
        yield from (not now, now)
    elif annotation is int:
        yield from _integers(now if isinstance(now, int) else 3)
    elif annotation is float:
        yield from _floats(float(now) if isinstance(now, (int, float)) else 0.5)
    elif annotation is str:
        yield from (f"{now}x" if now else "x", "other", "")
    elif origin in (list, tuple):
        yield from _lists(now, annotation, arguments)
    elif origin is dict:
        yield from _dicts(now or {}, arguments[1])
    elif nested_dataclass(annotation) is not None and now is not None:
        yield from _nested(now)


def _integers(now: int) -> Iterator[int]:
    yield from (now - 1, now + 1, now // 2, 2 * now, 1, 0, 2, 10 * now, now + 100)


def _floats(now: float) -> Iterator[float]:
    yield from (now / 2, 2 * now, now + 0.25, 0.0, 1.0, 0.5, 0.1, 0.9, -now, 10 * now + 1)


def _lists(now: Any, annotation: Any, arguments: tuple[Any, ...]) -> Iterator[Any]:
    kind = get_origin(annotation)
    held = list(now or ())
    inner = arguments[0] if arguments else Any
    if held:
        for place, one in enumerate(held[:2]):
            for value in itertools.islice(_values(one, inner), 3):
                yield kind([*held[:place], value, *held[place + 1 :]])
        yield kind(held[::-1])
        yield kind(held[:-1])
        yield kind([*held, held[-1]])
        yield kind()
    else:
        for value in itertools.islice(_values(None, inner), 3):
            yield kind([value])


def _dicts(now: Mapping[str, Any], inner: Any) -> Iterator[dict[str, Any]]:
    for name, one in list(now.items())[:2]:
        for value in itertools.islice(_values(one, inner), 3):
            yield {**now, name: value}
        yield {key: value for key, value in now.items() if key != name}
    for value in itertools.islice(_values(None, inner), 2):
        yield {**now, "other": value}


def _nested(now: Any) -> Iterator[Any]:
    annotations = hints(type(now))
    for item in init_fields(type(now)):
        held = getattr(now, item.name)
        for value in itertools.islice(_values(held, annotations[item.name]), 3):
            if value != held:
                yield dataclasses.replace(now, **{item.name: value})


# ---- in another process


def _request(contract: Contract[Any]) -> _other_process.Request | None:
    """Return the request that builds the component of its config in another process; None if the test has its own
    inputs or `make`, whose files or fixtures belong to this process."""
    cls = type(contract)
    kit = next((base for base in cls.__mro__ if _is_kit(base)), None)
    if kit is None or contract.config is None:
        return None
    attributes: dict[str, Any] = {}
    for base in cls.__mro__[: cls.__mro__.index(kit)]:
        for name, value in vars(base).items():
            if name.startswith(("_", "test_", "waive_")) or name in ("config", "pytestmark"):
                continue
            if callable(value) or isinstance(value, (property, classmethod, staticmethod)):
                return None
            attributes.setdefault(name, value)
    try:
        config, kept = pickle.dumps(contract.config), pickle.dumps(attributes)
    except Exception:  # from a class's own pickling
        return None  # reported by another law
    return _other_process.Request(
        (kit.__module__, kit.__qualname__), config, kept, _other_process.modules_of(contract.config)
    )


def _is_kit(cls: type[Any]) -> bool:
    """Whether a class is a kit, not a test: it builds from a config but has none."""
    return (
        issubclass(cls, Contract) and cls.__dict__.get("config") is None and "kind" in cls.__dict__
    )
