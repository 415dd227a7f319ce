"""Configs of the bundled samplers. Light: no torch here.

Order of what happens to the logits: mix -> legal ids -> plausible ids -> temperature -> top-k -> top-p -> draw.
Sources: CM3leon paper section 3.1 (guidance, eq. 1-3); defaults for text from facebookresearch/chameleon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cm3core.errors import RecipeError
from cm3core.interfaces.sampler import Filters, GuidanceStream, PromptVariant, Sampler, SamplerConfig, SamplingPlan

#: What the unconditional stream sees, by the recipe's name for it.
NULL_PROMPTS = {
    "mask": PromptVariant(hide_text="all"),
    "mask_no_retrieved": PromptVariant(hide_text="all", drop_retrieved=True),
}


@dataclass(kw_only=True)
class TopPSamplerConfig(SamplerConfig):
    """Sampling from one stream: temperature, then top-k, then top-p, apart for image codes and for text.

    Args:
        temperature: of image codes; > 0 divides the logits, 0 takes the most probable code.
        top_k: image codes kept, the most probable; 0 keeps all.
        top_p: smallest set of most probable image codes with at least this probability; 1.0 keeps all.
        text_temperature: the same of text tokens.
        text_top_k: the same of text tokens.
        text_top_p: the same of text tokens.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.95
    text_temperature: float = 0.7
    text_top_k: int = 0
    text_top_p: float = 0.9

    def check(self) -> None:
        """Ranges of the filters."""
        for key in ("temperature", "text_temperature", "top_k", "text_top_k"):
            _at_least(self, key, 0)
        for key in ("top_p", "text_top_p"):
            _probability(self, key)

    def filters(self, modality: str) -> Filters:
        """Filters after mixing, for "text" or "image" positions."""
        if modality == "image":
            return Filters(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        return Filters(temperature=self.text_temperature, top_k=self.text_top_k, top_p=self.text_top_p)

    def plan(self, modality: str) -> SamplingPlan:
        """The plan for "text" or "image" positions."""
        return SamplingPlan((GuidanceStream(PromptVariant(), 1.0),), filters=self.filters(modality))

    def build(self) -> Sampler:
        """Return the sampler."""
        from cm3plugins.samplers.planned import PlannedSampler

        return PlannedSampler({modality: self.plan(modality) for modality in ("text", "image")})


@dataclass(kw_only=True)
class CFGSamplerConfig(TopPSamplerConfig):
    """Classifier-free guidance: logits u + s (c - u) of a stream c that sees the text and a stream u that doesn't.

    Only codes that the conditional stream finds plausible are drawn (`plausible_*`, at temperature 1, before mixing);
    without such a set, guidance lifts codes that both streams find absurd. Where a scale is 1 there is no guidance and no
    plausibility set; when both scales are 1 the second stream isn't run at all.

    Args:
        guidance_scale: s of image codes; 1 is off.
        text_guidance_scale: s of text tokens; 1 is off.
        null_prompt: what the unconditional stream sees: "mask" (a mask sentinel in place of the text, retrieved documents kept)
            or "mask_no_retrieved" (retrieved documents left out too).
        plausible_top_p: smallest set of the conditional stream's most probable ids with at least this probability; 1.0 keeps all.
        plausible_top_k: the conditional stream's most probable ids; 0 keeps all.
        plausible_alpha: ids with at least alpha times the conditional stream's k-th largest probability (CD-K's set); 0 is off.
        plausible_k: that k.
    """

    guidance_scale: float = 1.5
    text_guidance_scale: float = 1.0
    null_prompt: Literal["mask", "mask_no_retrieved"] = "mask"
    plausible_top_p: float = 0.95
    plausible_top_k: int = 0
    plausible_alpha: float = 0.0
    plausible_k: int = 1
    top_p: float = 1.0

    def check(self) -> None:
        """Ranges of the scales, filters and the plausibility set."""
        super().check()
        for key, low in (("guidance_scale", 0), ("text_guidance_scale", 0), ("plausible_top_k", 0), ("plausible_k", 1)):
            _at_least(self, key, low)
        _probability(self, "plausible_top_p")
        if not 0 <= self.plausible_alpha <= 1:
            raise RecipeError("sampler.plausible_alpha", f"is {self.plausible_alpha}", "use 0 (off) to 1")

    def plan(self, modality: str) -> SamplingPlan:
        """The plan for "text" or "image" positions: the conditional stream first, then the unconditional one."""
        scale = self.guidance_scale if modality == "image" else self.text_guidance_scale
        plain = self.filters(modality)
        conditional = PromptVariant()
        if self.guidance_scale == 1 and self.text_guidance_scale == 1:
            return SamplingPlan((GuidanceStream(conditional, 1.0),), filters=plain)
        streams = (GuidanceStream(conditional, scale), GuidanceStream(NULL_PROMPTS[self.null_prompt], 1 - scale))
        if scale == 1:
            return SamplingPlan(streams, filters=plain)
        guided = Filters(temperature=plain.temperature, top_k=plain.top_k, top_p=plain.top_p,
                         plausible_top_k=self.plausible_top_k, plausible_top_p=self.plausible_top_p,
                         plausible_alpha=self.plausible_alpha, plausible_k=self.plausible_k)
        return SamplingPlan(streams, filters=guided)


def _at_least(config: SamplerConfig, key: str, low: float) -> None:
    value = getattr(config, key)
    if not low <= value < float("inf"):
        raise RecipeError(f"sampler.{key}", f"is {value}", f"use {low} or more")


def _probability(config: SamplerConfig, key: str) -> None:
    value = getattr(config, key)
    if not 0 < value <= 1:
        raise RecipeError(f"sampler.{key}", f"is {value}", "use more than 0 and at most 1 (1 is off)")
