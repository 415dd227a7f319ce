"""The hooks of the programs, implemented as in a third party's plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cm3core.hookspecs import hookimpl

if TYPE_CHECKING:
    from cm3core.interfaces.metric import MetricConfig

CM3_API = 1


@hookimpl
def cm3_commands() -> Mapping[str, str]:
    return {
        "eval": "cm3apps.evaluation.command:configure",
        "quickstart": "cm3apps.quickstart.command:configure",
        "start": "cm3apps.start.command:configure",
    }


@hookimpl
def cm3_metrics() -> Mapping[str, type[MetricConfig]]:
    from cm3apps.evaluation.copy_metric import CopyConfig, TrainingCopyConfig

    return {"copy": CopyConfig, "copy_of_training": TrainingCopyConfig}
