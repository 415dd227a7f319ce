"""A process that compares a plugin's names with those of the other installed plugins. See `worker`.

The other plugins are imported only here, because their output and failures say nothing about the checked
plugin.
"""

from __future__ import annotations

from cm3apps.plugin_check.worker import Request, Teller, started
from cm3core.plugins.discovery import GROUP, load_registry
from cm3core.plugins.registry import DISABLE_VARIABLE


def main() -> None:
    """Report the names of the request's plugin that another plugin also has."""
    request, teller = started()
    teller.begin("the other installed plugins were imported", "names")
    check_names(request, teller)


def check_names(request: Request, teller: Teller) -> None:
    """Whether another installed plugin has the same name, or components with the same names."""
    # the checked plugin is known; disabled plugins with its name are listed but not imported
    installed = load_registry(environ={DISABLE_VARIABLE: request.name})
    clashes = 0
    for other in (info for info in installed.plugins if info.name == request.name):
        if request.module and other.origin.endswith(f", {request.module}"):
            continue  # this plugin itself
        clashes += 1
        teller.verdict(
            "names",
            "",
            "fail",
            f"another plugin is called {request.name!r}: {other.origin}",
            f"rename the entry point in the group {GROUP!r}, or the file",
        )
    for kind, name in request.provided:
        if owners := installed.owners(kind, name):
            clashes += 1
            teller.verdict(
                "names",
                f"{kind}/{name}",
                "warn",
                f"is also provided by {', '.join(owners)}",
                f"recipes must write {request.name}/{name}; rename it to avoid that",
            )
    if not clashes:
        teller.verdict("names", "", "ok", "no other plugin uses the same names")


if __name__ == "__main__":
    main()
