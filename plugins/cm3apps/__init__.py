"""Programs built on the framework: quickstart, benchmarks, experiments, the judge, the server, training of
the bundled embedders, conversion of public weights.

They register their commands as a third party's plugin does. Nothing else in the repository imports
them.
"""

from __future__ import annotations

from collections.abc import Mapping

from cm3core.hookspecs import hookimpl

CM3_API = 1


@hookimpl
def cm3_commands() -> Mapping[str, str]:
    return {
        "bench": "cm3apps.benchmarks.command:configure",
        "convert": "cm3apps.convert.command:configure",
        "embedder": "cm3apps.embedder_training.command:configure",
        "experiment": "cm3apps.experiments.command:configure",
        "quickstart": "cm3apps.quickstart.command:configure",
        "serve": "cm3apps.server.command:configure",
    }


@hookimpl
def cm3_benchmarks() -> Mapping[str, str]:
    return {"kernels": "cm3apps.benchmarks.ops:add"}
