"""The hooks of the programs, implemented as in a third party's plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cm3core.hookspecs import hookimpl

if TYPE_CHECKING:
    from cm3core.interfaces.extractor import ExtractorConfig
    from cm3core.interfaces.metric import MetricConfig

CM3_API = 1


@hookimpl
def cm3_commands() -> Mapping[str, str]:
    return {
        "eval": "cm3apps.evaluation.command:configure",
        "mcp": "cm3apps.mcp.command:configure",
        "quickstart": "cm3apps.quickstart.command:configure",
        "serve": "cm3apps.server.command:configure",
        "speedrun": "cm3apps.speedrun.command:configure",
        "start": "cm3apps.start.command:configure",
    }


@hookimpl
def cm3_extractors() -> Mapping[str, type[ExtractorConfig]]:
    from cm3apps.judge.extractor import Lite1Config

    return {"lite1": Lite1Config}


@hookimpl
def cm3_metrics() -> Mapping[str, type[MetricConfig]]:
    from cm3apps.evaluation.copy_metric import CopyConfig, TrainingCopyConfig
    from cm3apps.evaluation.icon_style_metric import HandConfig, IconStyleConfig
    from cm3apps.evaluation.usable_metric import ThingConfig, UsableConfig

    return {
        "copy": CopyConfig,
        "copy_of_training": TrainingCopyConfig,
        "hand": HandConfig,
        "icon_style": IconStyleConfig,
        "thing": ThingConfig,
        "usable": UsableConfig,
    }
