"""The plugin API: a plugin is a module that states `CM3_API = 1` and implements some hooks.

Any other object serves as well as a module. A complete plugin, which provides one text tokenizer:

    from cm3core.hookspecs import hookimpl
    from my_package.config import CharacterTokenizerConfig      # light: a dataclass, no torch

    CM3_API = 1

    @hookimpl
    def cm3_text_tokenizers():
        return {"character": CharacterTokenizerConfig}

Its distribution declares it, and after `pip install` the recipe line
`text_tokenizer: {name: character}` works:

    [project.entry-points."cm3core.plugins"]
    my_plugin = "my_package.plugin"

`cm3 plugin list` shows the plugins found; `cm3 --plugin ./my_plugin.py ...` loads the same module
from a file.

Every kind's hook returns recipe name -> config class. The class is a dataclass derived from the
kind's base in `cm3core.interfaces`. Its fields are the keys of the recipe's section, its docstring
documents them, and its typed `build(...)` imports the heavy modules and returns the component.
Hooks are called whenever plugins are described (`cm3 recipe check`), so they must not import heavy
modules. `cm3 plugin list` caches their results until a module's file or the installed
packages change, so they must depend on nothing else. Names are lower-case letters, digits, `_` and `-`.
"""
# mypy: disable-error-code="empty-body"
# (hooks are declarations: pluggy reads their signatures and never calls them)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pluggy

from cm3core.interfaces.attention import AttentionConfig
from cm3core.interfaces.component import Kind
from cm3core.interfaces.condition import ConditionConfig
from cm3core.interfaces.dataset import DocumentSourceConfig
from cm3core.interfaces.decoder import DecoderConfig
from cm3core.interfaces.embedder import EmbedderConfig
from cm3core.interfaces.extractor import ExtractorConfig
from cm3core.interfaces.image_tokenizer import ImageTokenizerConfig
from cm3core.interfaces.layout import LayoutConfig
from cm3core.interfaces.metric import MetricConfig
from cm3core.interfaces.objective import ObjectiveConfig
from cm3core.interfaces.reranker import RerankerConfig
from cm3core.interfaces.retriever import RetrieverConfig
from cm3core.interfaces.sampler import SamplerConfig
from cm3core.interfaces.task import TaskConfig
from cm3core.interfaces.text_tokenizer import TextTokenizerConfig
from cm3core.interfaces.tracker import TrackerConfig
from cm3core.interfaces.upscaler import UpscalerConfig

PROJECT = "cm3core"
hookspec = pluggy.HookspecMarker(PROJECT)
#: Marks a plugin's function as the implementation of the hook of that name.
hookimpl = pluggy.HookimplMarker(PROJECT)
#: The arguments of hooks: hook -> argument -> value. No hook has arguments today; future ones
#: are listed here.
ARGUMENTS: dict[str, dict[str, Any]] = {}


@hookspec
def cm3_text_tokenizers() -> Mapping[str, type[TextTokenizerConfig]]:
    """Text tokenizers: text <-> ids.

    Recipe section `text_tokenizer`; interface `cm3core.interfaces.TextTokenizer`."""


@hookspec
def cm3_image_tokenizers() -> Mapping[str, type[ImageTokenizerConfig]]:
    """Image tokenizers: pixels <-> codes, on a grid or in a sequence.

    Recipe section `image_tokenizer`; interface `ImageTokenizer`."""


@hookspec
def cm3_layouts() -> Mapping[str, type[LayoutConfig]]:
    """Layouts: the sequence protocol by which documents become ids.

    Recipe section `layout`; interface `Layout`."""


@hookspec
def cm3_embedders() -> Mapping[str, type[EmbedderConfig]]:
    """Embedders: text or picture -> a unit vector in a shared space.

    Recipe section `embedder`; interface `Embedder`."""


@hookspec
def cm3_retrievers() -> Mapping[str, type[RetrieverConfig]]:
    """Retrievers: query document -> memory documents.

    Recipe section `retriever`; interface `Retriever`."""


@hookspec
def cm3_objectives() -> Mapping[str, type[ObjectiveConfig]]:
    """Masking objectives: sequence -> the masked sequence to train on.

    Recipe section `objective`; interface `MaskingObjective`."""


@hookspec
def cm3_decoders() -> Mapping[str, type[DecoderConfig]]:
    """Decoder-only transformers: tokens -> hidden states -> logits.

    Recipe section `decoder`; interface `Decoder`."""


@hookspec
def cm3_attention_backends() -> Mapping[str, type[AttentionConfig]]:
    """Attention functions that decoders call.

    Recipe section `attention`; interface `AttentionBackend`."""


@hookspec
def cm3_samplers() -> Mapping[str, type[SamplerConfig]]:
    """Samplers: logits of the guidance streams -> next token.

    Recipe section `sampler`; interface `Sampler`."""


@hookspec
def cm3_rerankers() -> Mapping[str, type[RerankerConfig]]:
    """Rerankers: completions of one request -> a score each.

    Recipe section `reranker`; interface `Reranker`."""


@hookspec
def cm3_upscalers() -> Mapping[str, type[UpscalerConfig]]:
    """Upscalers: a picture -> the same, several times as large.

    Recipe section `upscaler`; interface `Upscaler`."""


@hookspec
def cm3_datasets() -> Mapping[str, type[DocumentSourceConfig]]:
    """Document sources: where documents come from.

    Recipe section `dataset`; interface `DocumentSource`."""


@hookspec
def cm3_extractors() -> Mapping[str, type[ExtractorConfig]]:
    """Extractors: a picture or a text -> the features that metrics compare.

    Recipe section `extractor`; interface `Extractor`."""


@hookspec
def cm3_metrics() -> Mapping[str, type[MetricConfig]]:
    """Metrics: samples of an evaluation -> scores.

    Recipe section `metric`; interface `Metric`."""


@hookspec
def cm3_tasks() -> Mapping[str, type[TaskConfig]]:
    """Tasks: fields of a record -> the document to train on, and the prompt.

    Recipe section `task`; interface `Task`."""


@hookspec
def cm3_conditions() -> Mapping[str, type[ConditionConfig]]:
    """Conditions: a picture or a text -> a picture of its structure.

    Recipe section `condition`; interface `Condition`."""


@hookspec
def cm3_trackers() -> Mapping[str, type[TrackerConfig]]:
    """Trackers: the events of a training run -> a record elsewhere.

    Recipe key `train.trackers`; interface `Tracker`."""


@hookspec
def cm3_kinds() -> Sequence[Kind]:
    """New kinds of components that the plugin defines, one row each.

    A row names the kind's own hook, through which this and other plugins provide components of it.
    Recipes may then have a section of the kind, and configs of other components may have fields of it.
    """


@hookspec
def cm3_commands() -> Mapping[str, str]:
    """Sub-commands of `cm3`: name -> "module:function".

    The function is imported only when its command is called. It receives an
    `argparse.ArgumentParser`, adds its arguments and sets `run`: `parser.set_defaults(run=run)`,
    where `run(args) -> int` returns the exit code.
    """


@hookspec
def cm3_benchmarks() -> Mapping[str, str]:
    """Ops and providers for `cm3 bench kernels`: a name of your choice -> "module:function".

    The function is imported only when benchmarks run. It receives a
    `cm3run.benchmarks.BenchmarkRegistry` and adds to it: `registry.add_op(op)`, or
    `registry.add_provider("attention", provider)` for an existing op.
    """


@hookspec
def cm3_models() -> Mapping[str, Path]:
    """Trained models that the plugin ships: name -> folder.

    The folder is one that `cm3run.checkpoint.export_model` wrote. `cm3 generate --model
    PLUGIN:NAME` and `cm3core.load("PLUGIN:NAME")` open it.
    """
