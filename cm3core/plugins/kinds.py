"""The core's component kinds. Imports no torch.

Recipes, plugins, their checks, commands and completion know a kind only by its row. A registry's
`Registry.kinds` are these and the kinds that its plugins define (docs/adding-a-kind.md).

A new kind for training or generation needs

- an interface in cm3core/interfaces/KIND.py, exported by cm3core.interfaces; a kit in plugins/cm3kits/KIND.py, with at
  least three laws; a hook in cm3core/hookspecs.py; a row below, in the order of `cm3 recipe show`;
- a property of `Components` in plugins/cm3run/build.py if it is a part of a model, and its name in `NEEDED` there if
  nothing works without it; a line in `KindSections` of cm3core/recipe/recipe.py, for mypy;
- checks for forbidden combinations in `check` of its config (one section) or of `Recipe` (several).

Tests fail until it is documented and tested like the others: test_kits.py (a test of the kit with a mutant for each law),
test_public_api.py (docs/plugins/public-names.md; `python tests/core/test_public_api.py`), test_reference.py (a row in
docs/reference.md), test_plugin_reference.py (`python docs/_generate.py`), test_scaffold.py (a template, or a name in
`WITHOUT_TEMPLATE`), test_imports.py (nothing heavy), test_architecture_page.py (the import contract in pyproject.toml).
"""

from __future__ import annotations

from cm3core import interfaces as base
from cm3core.interfaces.component import Kind

__all__ = ["KINDS", "Kind"]

_ROWS = (
    Kind(
        "cm3_text_tokenizers",
        base.TextTokenizerConfig,
        "TextTokenizer",
        "cm3kits.text_tokenizer:TextTokenizerContract",
        "text tokenizer",
    ),
    Kind(
        "cm3_image_tokenizers",
        base.ImageTokenizerConfig,
        "ImageTokenizer",
        "cm3kits.image_tokenizer:ImageTokenizerContract",
        "image tokenizer",
    ),
    Kind(
        "cm3_layouts",
        base.LayoutConfig,
        "Layout",
        "cm3kits.layout:LayoutContract",
        "layout",
    ),
    Kind(
        "cm3_embedders",
        base.EmbedderConfig,
        "Embedder",
        "cm3kits.embedder:EmbedderContract",
        "embedder",
    ),
    Kind(
        "cm3_retrievers",
        base.RetrieverConfig,
        "Retriever",
        "cm3kits.retriever:RetrieverContract",
        "retriever",
    ),
    Kind(
        "cm3_objectives",
        base.ObjectiveConfig,
        "MaskingObjective",
        "cm3kits.objective:ObjectiveContract",
        "masking objective",
    ),
    Kind(
        "cm3_decoders",
        base.DecoderConfig,
        "Decoder",
        "cm3kits.decoder:DecoderContract",
        "decoder",
    ),
    Kind(
        "cm3_attention_backends",
        base.AttentionConfig,
        "AttentionBackend",
        "cm3kits.attention:AttentionContract",
        "attention backend",
    ),
    Kind(
        "cm3_samplers",
        base.SamplerConfig,
        "Sampler",
        "cm3kits.sampler:SamplerContract",
        "sampler",
    ),
    Kind(
        "cm3_rerankers",
        base.RerankerConfig,
        "Reranker",
        "cm3kits.reranker:RerankerContract",
        "reranker",
    ),
    Kind(
        "cm3_upscalers",
        base.UpscalerConfig,
        "Upscaler",
        "cm3kits.upscaler:UpscalerContract",
        "upscaler",
    ),
    Kind(
        "cm3_datasets",
        base.DocumentSourceConfig,
        "DocumentSource",
        "cm3kits.dataset:DocumentSourceContract",
        "data set",
    ),
    Kind(
        "cm3_extractors",
        base.ExtractorConfig,
        "Extractor",
        "cm3kits.extractor:ExtractorContract",
        "extractor",
    ),
    Kind(
        "cm3_metrics",
        base.MetricConfig,
        "Metric",
        "cm3kits.metric:MetricContract",
        "metric",
    ),
    Kind(
        "cm3_tasks",
        base.TaskConfig,
        "Task",
        "cm3kits.task:TaskContract",
        "task",
    ),
    Kind(
        "cm3_conditions",
        base.ConditionConfig,
        "Condition",
        "cm3kits.condition:ConditionContract",
        "condition",
    ),
    Kind(
        "cm3_trackers",
        base.TrackerConfig,
        "Tracker",
        "cm3kits.tracker:TrackerContract",
        "tracker",
        key="train.trackers",
    ),
)
#: Name -> kind of the core, in the order in which recipes are shown and built.
KINDS: dict[str, Kind] = {kind.name: kind for kind in _ROWS}
