"""The component kinds: the one table from which everything generic follows. Imports no torch.

Recipes, plugins, their checks, commands, completion and the plugin reference know a kind only by
its row; docs/adding-a-kind.md explains what a new one needs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from cm3core import interfaces as base


@dataclass(frozen=True)
class Kind:
    """A component kind. Its name, the recipe's section, is its config's `kind`.

    Args:
        hook: the hook that provides its components, see `cm3core.hookspecs`.
        config: the base of their configs.
        interface: name of the class that they build, in the same module as `config`.
        kit: "module:Class" of its conformance kit (importing it needs torch, pytest and
            hypothesis).
        words: what such a component is called in a sentence.
        key: the key of a recipe that lists such components, "section.key"; "": they have a section of
            their own.
    """

    hook: str
    config: type[base.ComponentConfig]
    interface: str
    kit: str
    words: str
    key: str = ""

    @property
    def name(self) -> str:
        """The recipe's section."""
        return self.config.kind

    @property
    def interface_class(self) -> type[Any]:
        """The class that `interface` names."""
        found: type[Any] = getattr(sys.modules[self.config.__module__], self.interface)
        return found


_ROWS = (
    Kind(
        "cm3_text_tokenizers",
        base.TextTokenizerConfig,
        "TextTokenizer",
        "cm3core.testing.text_tokenizer:TextTokenizerContract",
        "text tokenizer",
    ),
    Kind(
        "cm3_image_tokenizers",
        base.ImageTokenizerConfig,
        "ImageTokenizer",
        "cm3core.testing.image_tokenizer:ImageTokenizerContract",
        "image tokenizer",
    ),
    Kind(
        "cm3_layouts",
        base.LayoutConfig,
        "Layout",
        "cm3core.testing.layout:LayoutContract",
        "layout",
    ),
    Kind(
        "cm3_embedders",
        base.EmbedderConfig,
        "Embedder",
        "cm3core.testing.embedder:EmbedderContract",
        "embedder",
    ),
    Kind(
        "cm3_retrievers",
        base.RetrieverConfig,
        "Retriever",
        "cm3core.testing.retriever:RetrieverContract",
        "retriever",
    ),
    Kind(
        "cm3_objectives",
        base.ObjectiveConfig,
        "MaskingObjective",
        "cm3core.testing.objective:ObjectiveContract",
        "masking objective",
    ),
    Kind(
        "cm3_decoders",
        base.DecoderConfig,
        "Decoder",
        "cm3core.testing.decoder:DecoderContract",
        "decoder",
    ),
    Kind(
        "cm3_attention_backends",
        base.AttentionConfig,
        "AttentionBackend",
        "cm3core.testing.attention:AttentionContract",
        "attention backend",
    ),
    Kind(
        "cm3_samplers",
        base.SamplerConfig,
        "Sampler",
        "cm3core.testing.sampler:SamplerContract",
        "sampler",
    ),
    Kind(
        "cm3_rerankers",
        base.RerankerConfig,
        "Reranker",
        "cm3core.testing.reranker:RerankerContract",
        "reranker",
    ),
    Kind(
        "cm3_upscalers",
        base.UpscalerConfig,
        "Upscaler",
        "cm3core.testing.upscaler:UpscalerContract",
        "upscaler",
    ),
    Kind(
        "cm3_datasets",
        base.DocumentSourceConfig,
        "DocumentSource",
        "cm3core.testing.dataset:DocumentSourceContract",
        "data set",
    ),
    Kind(
        "cm3_extractors",
        base.ExtractorConfig,
        "Extractor",
        "cm3core.testing.extractor:ExtractorContract",
        "extractor",
    ),
    Kind(
        "cm3_metrics",
        base.MetricConfig,
        "Metric",
        "cm3core.testing.metric:MetricContract",
        "metric",
    ),
    Kind(
        "cm3_tasks",
        base.TaskConfig,
        "Task",
        "cm3core.testing.task:TaskContract",
        "task",
    ),
    Kind(
        "cm3_conditions",
        base.ConditionConfig,
        "Condition",
        "cm3core.testing.condition:ConditionContract",
        "condition",
    ),
    Kind(
        "cm3_trackers",
        base.TrackerConfig,
        "Tracker",
        "cm3core.testing.tracker:TrackerContract",
        "tracker",
        key="train.trackers",
    ),
)
#: Name -> kind, in the order in which recipes are shown and built.
KINDS: dict[str, Kind] = {kind.name: kind for kind in _ROWS}
