"""The hooks of icons."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cm3core.hookspecs import hookimpl

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import DocumentSourceConfig
    from cm3core.interfaces.image_tokenizer import ImageTokenizerConfig
    from cm3core.interfaces.metric import MetricConfig
    from cm3core.interfaces.retriever import RetrieverConfig
    from cm3core.interfaces.upscaler import UpscalerConfig
    from cm3run.prompting import FinisherConfig

CM3_API = 1

#: The model that is opened if none is named, before the framework's own.
CM3_DEFAULT_MODELS = {"icons64-tuned": 10}


@hookimpl
def cm3_commands() -> Mapping[str, str]:
    return {
        "complete": "cm3icons.complete.command:configure",
        "icons": "cm3icons.data.command:configure",
    }


@hookimpl
def cm3_datasets() -> Mapping[str, type[DocumentSourceConfig]]:
    from cm3icons.data import IconSourceConfig
    from cm3icons.tasks import IconTasksConfig

    return {"icon_tasks": IconTasksConfig, "icons": IconSourceConfig}


@hookimpl
def cm3_image_tokenizers() -> Mapping[str, type[ImageTokenizerConfig]]:
    from cm3icons.outlines import OutlinesConfig
    from cm3icons.svg_codes import SvgConfig

    return {"outlines": OutlinesConfig, "svg": SvgConfig}


@hookimpl
def cm3_retrievers() -> Mapping[str, type[RetrieverConfig]]:
    from cm3icons.facets import FacetsRetrieverConfig

    return {"facets": FacetsRetrieverConfig}


@hookimpl
def cm3_upscalers() -> Mapping[str, type[UpscalerConfig]]:
    from cm3icons.config import InkUpscalerConfig

    return {"ink": InkUpscalerConfig}


# The kind is of the bundled plugin, which may be left out.
@hookimpl(optionalhook=True)
def cm3_finishers() -> Mapping[str, type[FinisherConfig]]:
    from cm3icons.config import IconFinisherConfig

    return {"icon": IconFinisherConfig}


@hookimpl
def cm3_metrics() -> Mapping[str, type[MetricConfig]]:
    from cm3icons.evaluation.icon_style_metric import HandConfig, IconStyleConfig
    from cm3icons.evaluation.usable_metric import ThingConfig, UsableConfig

    return {
        "hand": HandConfig,
        "icon_style": IconStyleConfig,
        "thing": ThingConfig,
        "usable": UsableConfig,
    }


@hookimpl
def cm3_models() -> Mapping[str, Path]:
    folder = Path(__file__).parent / "models"
    return {model.parent.name: model.parent for model in sorted(folder.glob("*/state.json"))}
