"""A process that describes a plugin as `cm3 plugin list` does, and reports errors. See `worker`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pluggy

from cm3apps.catalog import arguments, docstring, keys_of
from cm3apps.plugin_check.overrides import check_overrides, components_of, config_of, missing_keys
from cm3apps.plugin_check.worker import (
    ANY_ERROR,
    Request,
    Teller,
    import_plugin,
    is_ours,
    kinds_beside,
    shortened,
    started,
)
from cm3core._version import CM3_API
from cm3core.config.schema import (
    WrongTypeError,
    check_config,
    default,
    fit,
    hints,
    init_fields,
    to_plain,
)
from cm3core.errors import CM3Error, PluginError, close_match
from cm3core.interfaces import ComponentConfig
from cm3core.plugins import describe
from cm3core.plugins.kinds import Kind
from cm3core.plugins.registry import PluginInfo, Registry

_NAMES = """
    PIL bm25s cv2 datasets diffusers faiss flashinfer jax keras librosa matplotlib onnxruntime pandas pyarrow resvg_py
    scipy skimage sklearn spacy spandrel tensorboard tensorflow timm tokenizers torch torchaudio torchvision
    transformers triton usearch webdataset xformers
"""
#: Packages whose import takes long or needs much memory; they must not be imported before a component is
#: built.
HEAVY = frozenset(_NAMES.split())


class ImportWatch(MetaPathFinder):
    """Records the first import of each top-level package, without finding modules itself.

    Put it first in `sys.meta_path`.
    """

    def __init__(self) -> None:
        self.chains: dict[str, list[str]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        """Record the lines that import a top-level package outside the standard library."""
        if (
            "." not in fullname
            and fullname not in sys.stdlib_module_names
            and fullname not in self.chains
        ):
            self.chains[fullname] = list(_lines(sys._getframe(1)))

    def heavy(self) -> dict[str, list[str]]:
        """Imported heavy packages -> the lines that led to the import, the importing line first.

        Packages imported by another heavy package are left out.
        """
        found = {
            name: chain
            for name, chain in self.chains.items()
            if name in HEAVY and name in sys.modules
        }
        return {
            name: chain
            for name, chain in found.items()
            if not any(
                line.startswith(f"{other}/") for line in chain for other in found if other != name
            )
        }


def _lines(frame: FrameType | None) -> Iterator[str]:
    """ "file, line N" of each frame that imports, innermost first, up to the check's own."""
    while frame is not None:
        filename = frame.f_code.co_filename
        if Path(filename).parent == Path(__file__).parent:
            return
        if not is_ours(filename):
            yield f"{shortened(filename)}, line {frame.f_lineno}"
        frame = frame.f_back


LOADED = time.perf_counter()


def main() -> None:
    """Report on the request's plugin."""
    request, teller = started()
    watch = ImportWatch()
    sys.meta_path.insert(0, watch)
    begun = time.perf_counter()
    place = request.module or request.file
    teller.begin(f"importing {place}", "import")
    try:
        plugin = import_plugin(request)
    except ANY_ERROR as error:
        teller.error("import", "", error, what=f"{place} can't be imported: ")
        return
    sys.meta_path.remove(watch)  # other plugins don't count as this plugin's imports
    asked = time.perf_counter()
    kinds = kinds_beside(plugin, request.name)
    begun += time.perf_counter() - asked
    sys.meta_path.insert(0, watch)
    registry = _described(plugin, request, teller, kinds)
    seconds = time.perf_counter() - begun
    if registry is None or request.describe_only:
        _report_imports(watch, seconds, teller)
        return
    try:
        check_overrides(request.overrides, registry)
        for kind, name in components_of(registry, request.only):
            _check_component(kind, name, registry, request, teller)
    except CM3Error as error:  # in the command line
        teller.tell(usage=[error.place, error.cause, error.next_step])
        return
    _report_imports(watch, seconds, teller)  # after `check`, which must also be light
    info = registry.plugins[0]
    teller.tell(
        provided=components_of(registry),
        components=components_of(registry, request.only),
        commands=info.commands,
        benchmarks=info.benchmarks,
        models=info.models,
    )


def _described(
    plugin: object, request: Request, teller: Teller, kinds: Mapping[str, Kind]
) -> Registry | None:
    """A registry of this plugin alone; None if its hooks can't be called or checked.

    A kind whose hook fails is left out. `kinds` are the kinds other than the plugin's own.
    """
    stated, supported = getattr(plugin, "CM3_API", None), True
    try:
        describe.check_api(request.name, plugin)
        teller.verdict("api", "", "ok", f"CM3_API = {stated}")
    except ANY_ERROR as error:
        supported = False
        teller.error("api", "", error)
    if type(stated) is int and not supported:
        # it was written for other hooks, kinds and keys than this version's
        teller.verdict(
            "hooks",
            "",
            "skip",
            f"its hooks and components are not checked: the rules of plugin API {CM3_API} do not apply",
            "correct the failure above",
        )
        return None
    registry = Registry(kinds)
    info = PluginInfo(request.name, "", "")
    teller.begin(f"calling {describe.KINDS_HOOK}", "hooks", describe.KINDS_HOOK)
    try:
        registry.add_kinds(info, describe.ask_kinds(request.name, plugin, kinds))
    except ANY_ERROR as error:
        teller.error("hooks", describe.KINDS_HOOK, error)
        return None
    pluggy_manager = describe.new_manager(registry.kinds)
    teller.begin("registering its hooks", "hooks")
    refused = False
    try:
        for line in describe.register(request.name, plugin, pluggy_manager):
            if supported:  # "is deprecated" and "is refused" would contradict each other
                teller.verdict("api", "", "warn", line, "see docs/plugins/stability.md")
        describe.check_hooks(request.name, plugin, pluggy_manager, registry.kinds)
    except ANY_ERROR as error:
        refused = True
        teller.error("hooks", "", error)
        if pluggy_manager.get_plugin(request.name) is None:
            return None
    hooks = [
        caller.name for caller in pluggy_manager.get_hookcallers(plugin) or [] if caller.has_spec()
    ]
    if hooks:
        teller.verdict("hooks", "", "ok", ", ".join(sorted(hooks)))
    elif not refused:
        teller.verdict(
            "hooks",
            "",
            "fail",
            "it implements no hooks, so it provides nothing",
            "implement one of the hooks of cm3core.hookspecs, decorated with @hookimpl",
        )
    _ask(plugin, teller, pluggy_manager, registry, info)
    return registry


def _ask(
    plugin: object,
    teller: Teller,
    pluggy_manager: pluggy.PluginManager,
    registry: Registry,
    info: PluginInfo,
) -> None:
    """Add the hooks' results to the registry; a failing hook is reported and left out."""
    configs: dict[str, Mapping[str, type[ComponentConfig]]] = {}
    others: dict[str, Any] = {
        describe.COMMANDS_HOOK: {},
        describe.BENCHMARKS_HOOK: {},
        describe.MODELS_HOOK: {},
    }
    for kind, entry in registry.kinds.items():
        teller.begin(f"calling {entry.hook}", "hooks", entry.hook)
        try:
            configs[kind] = describe.ask(info.name, plugin, entry, pluggy_manager)
        except ANY_ERROR as error:
            teller.error("hooks", entry.hook, error)
    for hook in others:
        teller.begin(f"calling {hook}", "hooks", hook)
        try:
            others[hook] = (
                describe.ask_models(info.name, plugin, pluggy_manager)
                if hook == describe.MODELS_HOOK
                else describe.ask_functions(info.name, plugin, hook, pluggy_manager)
            )
        except ANY_ERROR as error:
            teller.error("hooks", hook, error)
    registry.add(
        info,
        configs,
        others[describe.COMMANDS_HOOK],
        others[describe.MODELS_HOOK],
        others[describe.BENCHMARKS_HOOK],
    )


def _report_imports(watch: ImportWatch, seconds: float, teller: Teller) -> None:
    heavy = watch.heavy()
    for name, chain in heavy.items():
        lines = [
            f"{'which is ' if index else ''}imported by {step}" for index, step in enumerate(chain)
        ]
        if len(lines) > 5:
            lines[4:-1] = ["..."]
        teller.verdict(
            "import",
            name,
            "fail",
            f"{name} is imported when the plugin is described, which slows down every command",
            "import it in `build`, or in the module that `build` imports",
            "\n".join(lines),
        )
    teller.tell(seconds=seconds, heavy=sorted(heavy), imported=list(watch.chains))


def _check_component(
    kind: str, name: str, registry: Registry, request: Request, teller: Teller
) -> None:
    """Check the documentation, the defaults and `check` of a component's config."""
    subject, config_class = f"{kind}/{name}", registry.config_class(kind, name)
    teller.begin(f"checking the keys of {subject}", "keys", subject)
    _check_documentation(subject, config_class, teller)
    wrong = _wrong_defaults(config_class)
    for key, error in wrong:
        teller.verdict(
            "defaults",
            subject,
            "fail",
            f"the default of {key} is {error.value!r}, expected {error.expected}",
            f"correct the default, or the annotation, in {config_class.__name__}",
        )
    if wrong:
        return
    missing = missing_keys(kind, name, request.overrides, config_class)
    if missing:
        step = f"cm3 plugin check {request.argument} " + " ".join(
            f"{name}.{key}=..." for key in missing
        )
        teller.verdict("defaults", subject, "skip", f"{_listed(missing)} must be given", step)
        return
    config = config_of(kind, name, request.overrides, registry)
    teller.begin(f"calling check() of {config_class.__name__}", "defaults", subject)
    try:
        check_config(config)
    except CM3Error as error:
        teller.verdict(
            "defaults",
            subject,
            "fail",
            f"check() refuses the config: {error.cause}",
            error.next_step,
        )
    except ANY_ERROR as error:
        teller.error(
            "defaults", subject, error, what="check() raises an error that is not a CM3Error: "
        )
    else:
        teller.verdict(
            "defaults",
            subject,
            "ok",
            "check() accepts the given values" if request.overrides else "check() accepts them",
        )


def _wrong_defaults(config_class: type[ComponentConfig]) -> list[tuple[str, WrongTypeError]]:
    wrong, annotations = [], hints(config_class)
    for item in init_fields(config_class):
        value = default(item)
        try:
            if isinstance(value, (bool, int, float, str, list, tuple, dict, type(None))):
                fit(to_plain(value), annotations[item.name])
        except WrongTypeError as error:
            wrong.append((item.name, error))
    return wrong


def _check_documentation(subject: str, config_class: type[ComponentConfig], teller: Teller) -> None:
    """Warn unless the `Args:` section documents every key and nothing else."""
    name, keys = config_class.__name__, keys_of(config_class)
    problems = [f"{name} has no docstring"] if not docstring(config_class) else []
    undocumented = [key.name for key in keys if not key.text]
    if undocumented:
        problems.append(
            f"{_listed(undocumented)} {'is' if len(undocumented) == 1 else 'are'} not documented"
        )
    steps = [
        f"write `{key}: what it means` below `Args:` in the docstring of {name}"
        for key in undocumented[:1]
    ]
    known = {key.name for key in keys}
    stale = [key for key in arguments(config_class) if key not in known]
    if stale:
        problems.append(
            f"its Args: name {_listed(stale)}, which "
            f"{'is not a key' if len(stale) == 1 else 'are not keys'}"
        )
        steps.append(close_match(stale[0], known))
    if problems:
        teller.verdict(
            "keys",
            subject,
            "warn",
            "; ".join(problems),
            "; ".join(steps) or f"describe in one line what {name} builds",
        )
    else:
        teller.verdict("keys", subject, "ok", f"{len(keys)}, documented" if keys else "none")


def _listed(names: list[str], most: int = 8) -> str:
    shown = [f"`{name}`" for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


if __name__ == "__main__":
    try:
        main()
    except PluginError as problem:
        raise SystemExit(str(problem)) from problem
