"""The core's component kinds. Imports no torch.

Recipes, plugins, their checks, commands and completion know a kind only by its row. Those of a registry,
`Registry.kinds`, are these and the ones that its plugins bring (docs/adding-a-kind.md).
"""

from __future__ import annotations

from cm3core import interfaces as base
from cm3core.interfaces.kind import Kind

__all__ = ["KINDS", "Kind"]

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
#: Name -> kind of the core, in the order in which recipes are shown and built.
KINDS: dict[str, Kind] = {kind.name: kind for kind in _ROWS}
