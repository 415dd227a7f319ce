"""Tools for the development of cm3leon: benchmarks, experiments, and training of the judge and the embedders."""

from __future__ import annotations

from collections.abc import Mapping

from cm3core.hookspecs import hookimpl

CM3_API = 1


@hookimpl
def cm3_commands() -> Mapping[str, str]:
    return {
        "bench": "cm3lab.benchmarks.command:configure",
        "embedder": "cm3lab.embedder_training.command:configure",
        "experiment": "cm3lab.experiments.command:configure",
    }


@hookimpl
def cm3_benchmarks() -> Mapping[str, str]:
    return {"kernels": "cm3lab.benchmarks.ops:add"}
