"""Tools for the development of cm3leon: benchmarks, experiments, and training of the judge and the embedders; the embedder
`bi_encoder`, and the icon model before its tuning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cm3core.hookspecs import hookimpl

if TYPE_CHECKING:
    from cm3core.interfaces.embedder import EmbedderConfig

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
    return {"kernels": "cm3lab.benchmarks.kernels.ops:add"}


@hookimpl
def cm3_embedders() -> Mapping[str, type[EmbedderConfig]]:
    from cm3lab.bi_encoder import BiEncoderConfig

    return {"bi_encoder": BiEncoderConfig}


@hookimpl
def cm3_models() -> Mapping[str, Path]:
    return {"icons64": Path(__file__).parent / "models" / "icons64"}
