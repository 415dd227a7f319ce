"""Classifier-free guidance: configs of `top_p`, `cfg`, `edit_cfg`, `structure_cfg` and `retrieval_cfg`.

A sampler consists of guidance streams with weights, a set of plausible ids, a schedule and filters;
`cm3core.interfaces.sampler` defines the order in which they apply. The formulas are in the classes' docstrings;
`cm3kernels.guided_sample.cfg` adds up the streams' logits with the weights set here. CD-K and contrastive
decoding are in `contrastive.py`. Light: no torch here.

Sources: CM3leon paper sections 3.1 and 4.1; defaults for text from facebookresearch/chameleon.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from cm3core.errors import RecipeError
from cm3core.interfaces.component import check_value
from cm3core.interfaces.reach import TEXT, Outside
from cm3core.interfaces.sampler import (
    Filters,
    GuidanceSchedule,
    GuidanceStream,
    PromptVariant,
    Sampler,
    SamplerConfig,
    SamplingPlan,
)

#: Prompts of the unconditional stream, by name in recipes.
NULL_PROMPTS = {
    "mask": PromptVariant(hide_text="all"),
    "mask_no_retrieved": PromptVariant(hide_text="all", drop_retrieved=True),
}
_FILTERS = ("temperature", "top_k", "top_p", "min_p", "typical_p")
_OFF = "use more than 0 and at most 1 (1 is off)"


@dataclass(kw_only=True)
class TopPSamplerConfig(SamplerConfig):
    """Sampling from one stream: temperature, then top-k, top-p, min-p and typical filters.

    Image codes and text have separate settings.

    Args:
        temperature: for image codes; > 0 divides the logits, 0 takes the most probable code.
        top_k: number of most probable image codes kept; 0 keeps all.
        top_p: smallest set of most probable image codes with at least this probability; 1.0 keeps
            all.
        min_p: keep image codes with at least this multiple of the probability of the most probable
            one, 0..1; 0 keeps all.
        typical_p: smallest set of image codes with at least this probability whose surprise is
            nearest to the entropy (locally typical sampling); 1.0 keeps all.
        text_temperature: the same for text tokens.
        text_top_k: the same for text tokens.
        text_top_p: the same for text tokens.
        text_min_p: the same for text tokens.
        text_typical_p: the same for text tokens.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "temperature": (0, 1e6),
        "text_temperature": (0, 1e6),
        "top_k": (0, 2**31 - 1),
        "text_top_k": (0, 2**31 - 1),
    }

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    typical_p: float = 1.0
    text_temperature: float = 0.7
    text_top_k: int = 0
    text_top_p: float = 0.9
    text_min_p: float = 0.0
    text_typical_p: float = 1.0

    def check(self) -> None:
        """Check the ranges of the filters."""
        super().check()
        for prefix in ("", "text_"):
            for key in ("top_p", "typical_p"):
                require(self, prefix + key, 0 < getattr(self, prefix + key) <= 1, _OFF)
            require(
                self,
                prefix + "min_p",
                0 <= getattr(self, prefix + "min_p") <= 1,
                "use 0 (off) to 1",
            )

    def filters(self, modality: str) -> Filters:
        """Return the filters after mixing, for "text" or "image" positions."""
        prefix = "text_" if modality == "text" else ""
        values: dict[str, Any] = {name: getattr(self, prefix + name) for name in _FILTERS}
        return Filters(**values)

    def plan(self, modality: str) -> SamplingPlan:
        """Return the plan for "text" or "image" positions: one stream that sees everything."""
        return SamplingPlan((GuidanceStream(PromptVariant(), 1.0),), filters=self.filters(modality))

    def build(self) -> Sampler:
        """Return the sampler."""
        from cm3plugins.samplers.planned import PlannedSampler

        return PlannedSampler({modality: self.plan(modality) for modality in ("text", "image")})


@dataclass(kw_only=True)
class GuidedSamplerConfig(TopPSamplerConfig):
    """Base of the samplers with more than one stream: null stream and guidance schedule.

    Each sampler has a rule for the ids that the conditional stream finds plausible, and samples only
    those; otherwise guidance boosts ids that all streams find absurd. The rule does not apply where the
    other streams have no weight.

    Args:
        null_prompt: prompt of the null stream: "mask" (a mask sentinel in place of each text,
            retrieved documents kept) or "mask_no_retrieved" (retrieved documents dropped too).
        negative_prompt: text that the null stream sees in place of each text, instead of the mask
            sentinel; describes what the picture should not show. null: none.
        guidance_start: guidance starts at this fraction of a picture, or of a run of missing codes;
            0..1. Text is guided throughout, since its length is not known in advance.
        guidance_stop: guidance ends at this fraction; 0..1. Elsewhere, codes are sampled from the
            conditional stream alone, among its plausible ones.
        guidance_ramp: strength in between: "constant" (full), "up" (from none to full) or "down".
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "negative_prompt": TEXT,
    }

    top_p: float = 1.0
    null_prompt: Literal["mask", "mask_no_retrieved"] = "mask"
    negative_prompt: str | None = None
    guidance_start: float = 0.0
    guidance_stop: float = 1.0
    guidance_ramp: Literal["constant", "up", "down"] = "constant"

    def check(self) -> None:
        """Check the ranges of the filters and the schedule."""
        super().check()
        if self.negative_prompt == "":
            raise RecipeError(
                "sampler.negative_prompt",
                "is an empty text",
                "describe what the picture should not show, or use null",
            )
        require(self, "guidance_stop", 0 <= self.guidance_stop <= 1, "use 0 to 1")
        require(
            self,
            "guidance_start",
            0 <= self.guidance_start <= self.guidance_stop,
            f"use 0 to sampler.guidance_stop ({self.guidance_stop})",
        )

    def null(self) -> PromptVariant:
        """Return the prompt of the null stream."""
        hidden = NULL_PROMPTS[self.null_prompt]
        if self.negative_prompt is None:
            return hidden
        return replace(hidden, replace_text=self.negative_prompt)

    def schedule(self) -> GuidanceSchedule | None:
        """Return the guidance over the positions of a picture; None: the same everywhere."""
        schedule = GuidanceSchedule(self.guidance_start, self.guidance_stop, self.guidance_ramp)
        return None if schedule == GuidanceSchedule() else schedule

    def guided(self, modality: str, *streams: GuidanceStream, **plausible: Any) -> SamplingPlan:
        """Return the plan of these streams, the conditional one first; `plausible` are fields of
        `Filters`."""
        filters = self.filters(modality)
        if not any(stream.weight for stream in streams[1:]):
            return SamplingPlan(streams, filters=filters)
        schedule = self.schedule() if modality == "image" else None
        return SamplingPlan(streams, filters=replace(filters, **plausible), schedule=schedule)


@dataclass(kw_only=True)
class CFGSamplerConfig(GuidedSamplerConfig):
    """Classifier-free guidance: logits u + s (c - u); stream c sees the text, stream u doesn't.

    A scale of 1 means no guidance; if both scales are 1 the second stream isn't run at all.

    Args:
        guidance_scale: s for image codes; 1 is off.
        text_guidance_scale: s for text tokens; 1 is off.
        plausible_top_p: smallest set of the conditional stream's most probable ids with at least
            this probability, at temperature 1, before mixing; 1.0 keeps all.
        plausible_top_k: number of the conditional stream's most probable ids; 0 keeps all.
        plausible_alpha: ids with at least alpha times the conditional stream's k-th largest
            probability (CD-K's set); 0 is off.
        plausible_k: k of that set.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "guidance_scale": (0, 1e6),
        "text_guidance_scale": (0, 1e6),
        "plausible_top_k": (0, 2**31 - 1),
        "plausible_k": (1, 2**31 - 1),
    }

    guidance_scale: float = 1.5
    text_guidance_scale: float = 1.0
    plausible_top_p: float = 0.95
    plausible_top_k: int = 0
    plausible_alpha: float = 0.0
    plausible_k: int = 1

    def check(self) -> None:
        """Check the ranges of the scales, filters, the plausibility set and the schedule."""
        super().check()
        require(self, "plausible_top_p", 0 < self.plausible_top_p <= 1, _OFF)
        require(self, "plausible_alpha", 0 <= self.plausible_alpha <= 1, "use 0 (off) to 1")

    def plan(self, modality: str) -> SamplingPlan:
        """Return the plan for "text" or "image" positions: the same streams, the conditional one first."""
        return self.all_streams(modality) if self.is_guided() else super().plan(modality)

    def is_guided(self) -> bool:
        """Whether any position needs a stream other than the conditional one."""
        return self.guidance_scale != 1 or self.text_guidance_scale != 1

    def all_streams(self, modality: str) -> SamplingPlan:
        """Return the plan with both streams, even if one has no weight."""
        scale = self.guidance_scale if modality == "image" else self.text_guidance_scale
        return self.guided(
            modality,
            GuidanceStream(PromptVariant(), scale),
            GuidanceStream(self.null(), 1 - scale),
            **self.plausible(),
        )

    def plausible(self) -> dict[str, Any]:
        """Return the plausibility set as fields of `Filters`."""
        return {
            name: getattr(self, name)
            for name in ("plausible_top_p", "plausible_top_k", "plausible_alpha", "plausible_k")
        }


@dataclass(kw_only=True)
class EditCFGSamplerConfig(CFGSamplerConfig):
    """Guidance for editing, with three streams: u + s_picture (i - u) + s (f - i).

    InstructPix2Pix's formula. f sees everything; i everything but the last text, which is the edit; u nothing
    of the document: `<eos> <sentinel:0> <break>`. Intended for `instruction, picture, edit, hole`,
    but works with any document. The plausible ids are f's. At text positions only f and i are used.
    Scales: paper section 4.1 (Chameleon's defaults: 3.0, 1.2). Formula: facebookresearch/chameleon,
    `logits_processor.py`.

    Args:
        guidance_scale: s for image codes, from not seeing the edit to seeing it; 1 is off.
        text_guidance_scale: the same for text tokens.
        picture_guidance_scale: s_picture for image codes, from seeing nothing to seeing pictures
            and other texts; 1 is off.
        null_prompt: whether u sees the retrieved documents: "mask" (yes) or "mask_no_retrieved" (no). i
            always does.
        negative_prompt: text that i sees in place of the edit, instead of a mask sentinel. null: none.
    """

    edits: ClassVar[bool] = True
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"picture_guidance_scale": (0, 1e6)}
    guidance_scale: float = 7.5
    picture_guidance_scale: float = 1.5

    def is_guided(self) -> bool:
        """Whether any position needs a stream other than f."""
        return super().is_guided() or self.picture_guidance_scale != 1

    def without_edit(self) -> PromptVariant:
        """Return the prompt of stream i."""
        return PromptVariant(hide_text="last", replace_text=self.negative_prompt)

    def all_streams(self, modality: str) -> SamplingPlan:
        """Return the plan with streams f, i and u, even if some have no weight."""
        scale, picture_scale = (
            (self.guidance_scale, self.picture_guidance_scale)
            if modality == "image"
            else (self.text_guidance_scale, 1.0)
        )
        nothing = replace(NULL_PROMPTS[self.null_prompt], hide_images=True)
        return self.guided(
            modality,
            GuidanceStream(PromptVariant(), scale),
            GuidanceStream(self.without_edit(), picture_scale - scale),
            GuidanceStream(nothing, 1 - picture_scale),
            **self.plausible(),
        )


@dataclass(kw_only=True)
class StructureCFGSamplerConfig(EditCFGSamplerConfig):
    """`edit_cfg` for pictures that follow a structure: edges, boxes, a pose.

    The picture in the prompt shows where things are, so it counts more than the text after it. Results follow
    the structure much better than with `cfg`, whose second stream also sees the structure. The default scales
    worked best for the tuned icon model: docs/decisions.md, "Guidance by the structure".
    """

    edits: ClassVar[bool] = False
    structures: ClassVar[bool] = True
    guidance_scale: float = 1.5
    picture_guidance_scale: float = 3.0


def require(config: SamplerConfig, key: str, holds: bool, rule: str) -> None:
    """Raise a `RecipeError` unless `holds` (False for nan); `rule` is the next step."""
    check_value(f"sampler.{key}", getattr(config, key), holds, rule)


@dataclass(kw_only=True)
class RetrievalCFGSamplerConfig(CFGSamplerConfig):
    """Guidance with three streams: n + s (t - n) + s_retrieved (f - t).

    f sees everything; t the text but no retrieved documents; n neither. InstructPix2Pix's formula
    (arXiv:2211.09800, section 3.2.1), with the retrieved documents in place of the edit. With equal scales it is
    `cfg` with a null stream that sees no retrieved documents; without any documents it is `cfg`. The plausible
    ids are f's. At text positions only f and n are used.

    Args:
        guidance_scale: s for image codes, from seeing nothing to seeing the text; 1 is off.
        text_guidance_scale: s for text tokens, from seeing nothing to seeing everything; 1 is off.
        retrieved_guidance_scale: s_retrieved for image codes, from not seeing the retrieved documents to
            seeing them; 1 is off. Higher values stay closer to the retrieved documents.
        null_prompt: "mask_no_retrieved": n sees no retrieved documents.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"retrieved_guidance_scale": (0, 1e6)}
    guidance_scale: float = 2.0
    retrieved_guidance_scale: float = 2.0
    null_prompt: Literal["mask_no_retrieved"] = "mask_no_retrieved"

    def is_guided(self) -> bool:
        """Whether any position needs a stream other than f."""
        return super().is_guided() or self.retrieved_guidance_scale != 1

    def all_streams(self, modality: str) -> SamplingPlan:
        """Return the plan with streams f, t and n, even if some have no weight."""
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
