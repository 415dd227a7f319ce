"""The component kinds: the recipe section, hook and config base of each."""

from __future__ import annotations

from dataclasses import dataclass

from cm3core import interfaces as base


@dataclass(frozen=True)
class Kind:
    """A component kind: the `hook` that brings its components, and the base of their configs."""

    hook: str
    config: type[base.ComponentConfig]


#: Every kind, in the order in which recipes are shown and built.
KINDS: dict[str, Kind] = {
    "text_tokenizer": Kind("cm3_text_tokenizers", base.TextTokenizerConfig),
    "image_tokenizer": Kind("cm3_image_tokenizers", base.ImageTokenizerConfig),
    "embedder": Kind("cm3_embedders", base.EmbedderConfig),
    "retriever": Kind("cm3_retrievers", base.RetrieverConfig),
    "objective": Kind("cm3_objectives", base.ObjectiveConfig),
    "decoder": Kind("cm3_decoders", base.DecoderConfig),
    "attention": Kind("cm3_attention_backends", base.AttentionConfig),
    "sampler": Kind("cm3_samplers", base.SamplerConfig),
    "reranker": Kind("cm3_rerankers", base.RerankerConfig),
    "upscaler": Kind("cm3_upscalers", base.UpscalerConfig),
    "dataset": Kind("cm3_datasets", base.DocumentSourceConfig),
}
