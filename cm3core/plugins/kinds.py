"""The component kinds: the recipe section, hook, config base, interface and conformance kit of
each. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from cm3core import interfaces as base


@dataclass(frozen=True)
class Kind:
    """A component kind.

    Args:
        hook: the hook that brings its components, see `cm3core.hookspecs`.
        config: the base of their configs.
        interface: name of what they build, in `cm3core.interfaces`.
        kit: "module:Class" of its conformance kit (importing it needs torch, pytest and
            hypothesis).
    """

    hook: str
    config: type[base.ComponentConfig]
    interface: str
    kit: str


#: Every kind, in the order in which recipes are shown and built.
KINDS: dict[str, Kind] = {
    "text_tokenizer": Kind(
        "cm3_text_tokenizers",
        base.TextTokenizerConfig,
        "TextTokenizer",
        "cm3core.testing.text_tokenizer:TextTokenizerContract",
    ),
    "image_tokenizer": Kind(
        "cm3_image_tokenizers",
        base.ImageTokenizerConfig,
        "ImageTokenizer",
        "cm3core.testing.image_tokenizer:ImageTokenizerContract",
    ),
    "embedder": Kind(
        "cm3_embedders",
        base.EmbedderConfig,
        "Embedder",
        "cm3core.testing.embedder:EmbedderContract",
    ),
    "retriever": Kind(
        "cm3_retrievers",
        base.RetrieverConfig,
        "Retriever",
        "cm3core.testing.retriever:RetrieverContract",
    ),
    "objective": Kind(
        "cm3_objectives",
        base.ObjectiveConfig,
        "MaskingObjective",
        "cm3core.testing.objective:ObjectiveContract",
    ),
    "decoder": Kind(
        "cm3_decoders", base.DecoderConfig, "Decoder", "cm3core.testing.decoder:DecoderContract"
    ),
    "attention": Kind(
        "cm3_attention_backends",
        base.AttentionConfig,
        "AttentionBackend",
        "cm3core.testing.attention:AttentionContract",
    ),
    "sampler": Kind(
        "cm3_samplers", base.SamplerConfig, "Sampler", "cm3core.testing.sampler:SamplerContract"
    ),
    "reranker": Kind(
        "cm3_rerankers",
        base.RerankerConfig,
        "Reranker",
        "cm3core.testing.reranker:RerankerContract",
    ),
    "upscaler": Kind(
        "cm3_upscalers",
        base.UpscalerConfig,
        "Upscaler",
        "cm3core.testing.upscaler:UpscalerContract",
    ),
    "dataset": Kind(
        "cm3_datasets",
        base.DocumentSourceConfig,
        "DocumentSource",
        "cm3core.testing.dataset:DocumentSourceContract",
    ),
}
