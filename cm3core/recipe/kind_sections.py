"""The sections of a recipe that hold components: a field for each kind."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from typing import TYPE_CHECKING

from cm3core.plugins.kinds import KINDS

if TYPE_CHECKING:
    from cm3core import interfaces as base

    @dataclass(kw_only=True)
    class KindSections:
        """The types of a recipe's components, for type checkers.

        A kind without a line here works too; only the type of `recipe.KIND` is then unknown."""

        text_tokenizer: base.TextTokenizerConfig | None = None
        image_tokenizer: base.ImageTokenizerConfig | None = None
        layout: base.LayoutConfig | None = None
        embedder: base.EmbedderConfig | None = None
        retriever: base.RetrieverConfig | None = None
        objective: base.ObjectiveConfig | None = None
        decoder: base.DecoderConfig | None = None
        attention: base.AttentionConfig | None = None
        sampler: base.SamplerConfig | None = None
        reranker: base.RerankerConfig | None = None
        upscaler: base.UpscalerConfig | None = None
        dataset: base.DocumentSourceConfig | None = None
        extractor: base.ExtractorConfig | None = None
        metric: base.MetricConfig | None = None
        task: base.TaskConfig | None = None
        condition: base.ConditionConfig | None = None
        tracker: base.TrackerConfig | None = None

else:
    KindSections = make_dataclass(
        "KindSections",
        [
            (kind, f"base.{entry.config.__name__} | None", field(default=None))
            for kind, entry in KINDS.items()
        ],
        kw_only=True,
        namespace={"__module__": __name__, "__doc__": "A field for each kind in `KINDS`."},
    )
