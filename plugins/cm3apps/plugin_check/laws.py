"""A process that builds one component and runs its kind's conformance kit. See `worker`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from cm3apps.catalog import interface_name
from cm3apps.plugin_check.overrides import config_of
from cm3apps.plugin_check.worker import ANY_ERROR, Request, Teller, registry_of, started
from cm3core.errors import DeviceError, MissingPackageError
from cm3core.interfaces import ComponentConfig
from cm3core.plugins.kinds import Kind

#: The module that pytest collects. pytest must be the first to import the kits, so that it rewrites
#: their assertions to show values.
TEST_FILE = "from cm3apps.plugin_check import laws\n\nTestComponent = laws.prepared()\n"
_asked: list[tuple[Request, Teller]] = []


def main() -> None:
    """Report whether the request's component can be built, and which laws it obeys."""
    request, teller = started()
    subject = "/".join(request.component)
    try:
        import hypothesis
        import pytest
    except ImportError as error:
        teller.verdict(
            "law", subject, "warn", f"no laws are tested: {error}", "pip install 'cm3leon[test]'"
        )
        return
    from cm3apps.plugin_check.reporter import Reporter

    profile = hypothesis.settings(
        deadline=None,
        max_examples=request.max_examples,
        derandomize=True,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
    )
    hypothesis.settings.register_profile("cm3-plugin-check", profile)
    hypothesis.settings.load_profile("cm3-plugin-check")
    _asked.append((request, teller))
    # Run in the working directory, a temporary folder, without the user's settings and plugins.
    path, settings = Path("test_component.py").absolute(), Path("pytest.ini").absolute()
    path.write_text(TEST_FILE, encoding="utf-8")
    settings.write_text("[pytest]\n", encoding="utf-8")
    pytest.main(
        [str(path), "-c", str(settings), "-q", "-p", "no:cacheprovider"],
        plugins=[Reporter(subject, teller)],
    )


def prepared() -> Any:
    """The component's tests, for pytest; None if it can't be built, which is reported."""
    ((request, teller),) = _asked
    kind, name = request.component
    subject = f"{kind}/{name}"
    teller.begin("building it", "build", subject)
    try:
        registry = registry_of(request)
        entry = registry.kinds[kind]
        config = config_of(kind, name, request.overrides, registry)
        if not entry.kit:
            teller.verdict("law", subject, "skip", f"the kind {kind} has no conformance kit")
            return None
        module, _, kit_name = entry.kit.partition(":")
        kit = getattr(importlib.import_module(module), kit_name)
        teller.tell(laws=list(kit.laws()))
        tests = _tests(kit, config, name, request)
    except ANY_ERROR as error:
        teller.error("build", subject, error)
        return None
    return tests if _check_build(tests, entry, subject, teller) else None


def _tests(kit: Any, config: ComponentConfig, name: str, request: Request) -> Any:
    """The kit's tests of the config, without the waived laws."""
    laws = kit.laws()
    attributes: dict[str, Any] = {
        f"waive_{law}": _reason(reason)
        for component, law, reason in request.waived
        if component in ("", name) and law in laws
    }
    if kit.max_examples is not None:
        attributes["max_examples"] = min(kit.max_examples, request.max_examples)
    return kit.for_config(config, **attributes)


def _reason(reason: str) -> Any:
    def waived(self: object) -> str:
        return reason

    return waived


def _check_build(tests: Any, kind: Kind, subject: str, teller: Teller) -> bool:
    """Whether the kit builds the component from its config."""
    import pytest

    try:
        component = tests().subject
    except (MissingPackageError, DeviceError) as error:
        teller.verdict(
            "build", subject, "skip", f"can't be built here: {error.cause}", error.next_step
        )
        return False
    except pytest.skip.Exception as error:
        teller.verdict("build", subject, "skip", f"can't be built here: {error}")
        return False
    except ANY_ERROR as error:
        teller.error("build", subject, error)
        return False
    interface = kind.interface_class
    if not isinstance(component, interface):
        teller.verdict(
            "build",
            subject,
            "fail",
            f"build returned a {type(component).__name__}, not a subclass of {interface.__name__}",
            f"derive it from {interface_name(kind)}",
        )
        return False
    teller.verdict("build", subject, "ok", f"a {type(component).__name__}")
    return True


if __name__ == "__main__":  # import the module under its own name: `__main__` is another copy
    from cm3apps.plugin_check import laws

    laws.main()
