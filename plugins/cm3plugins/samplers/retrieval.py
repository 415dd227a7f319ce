"""Config of the sampler `retrieval_cfg`: guidance by the text and by the retrieved documents, each with a scale of
its own. Light: no torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from cm3core.interfaces.sampler import GuidanceStream, PromptVariant, SamplingPlan
from cm3plugins.samplers.config import CFGSamplerConfig, require


@dataclass(kw_only=True)
class RetrievalCFGSamplerConfig(CFGSamplerConfig):
    """Guidance with three streams: n + s (t - n) + s_retrieved (f - t).

    f sees everything; t the text without the retrieved documents; n neither. InstructPix2Pix's formula
    (arXiv:2211.09800, section 3.2.1), with the retrieved documents in place of the edit. With equal scales it is
    `cfg` with a null stream that sees no retrieved documents; without any documents it is `cfg`. The plausible
    ids are f's. At text positions only f and n count.

    Args:
        guidance_scale: s for image codes, from seeing nothing to seeing the text; 1 is off.
        text_guidance_scale: of text tokens, from seeing nothing to seeing everything; 1 is off.
        retrieved_guidance_scale: s_retrieved for image codes, from not seeing the retrieved documents to
            seeing them; 1 is off. Higher values stay closer to the retrieved documents.
        null_prompt: "mask_no_retrieved": n sees no retrieved documents.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"retrieved_guidance_scale": (0, 1e6)}
    guidance_scale: float = 2.0
    retrieved_guidance_scale: float = 2.0
    null_prompt: Literal["mask", "mask_no_retrieved"] = "mask_no_retrieved"

    def check(self) -> None:
        """Ranges of all keys."""
        super().check()
        require(
            self,
            "null_prompt",
            self.null_prompt == "mask_no_retrieved",
            "use mask_no_retrieved, or the sampler cfg",
        )

    def is_guided(self) -> bool:
        """Whether any position needs a stream other than f."""
        return super().is_guided() or self.retrieved_guidance_scale != 1

    def all_streams(self, modality: str) -> SamplingPlan:
        """The plan with streams f, t and n, even if some have no weight."""
        scale, retrieved_scale = (
            (self.guidance_scale, self.retrieved_guidance_scale)
            if modality == "image"
            else (self.text_guidance_scale, self.text_guidance_scale)
        )
        return self.guided(
            modality,
            GuidanceStream(PromptVariant(), retrieved_scale),
            GuidanceStream(PromptVariant(drop_retrieved=True), scale - retrieved_scale),
            GuidanceStream(replace(self.null(), drop_retrieved=True), 1 - scale),
            **self.plausible(),
        )
