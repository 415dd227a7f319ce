"""Config of the sampler `chameleon`: Chameleon's guidance with its defaults. Light: no torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from cm3core.interfaces.sampler import PromptVariant, SamplingPlan
from cm3plugins.samplers.cfg import EditCFGSamplerConfig


@dataclass(kw_only=True)
class ChameleonSamplerConfig(EditCFGSamplerConfig):
    """Chameleon's guidance: u + s_picture (i - u) + s (f - i), i without texts, u without pictures too.

    Like `edit_cfg`, but i sees no text of the query at all. Without pictures in the prompt, i and u are
    one stream. Formula and defaults: facebookresearch/chameleon (`guidance_scale_image` 1.2,
    `guidance_scale_text` 3.0, temperature 0.7, top-p 0.9, a repetition penalty of 1.2 for texts); no set
    of plausible codes.

    Args:
        repetition_penalty: penalty for texts: logits of tokens already read or written are divided by it if
            positive and multiplied if negative (CTRL, arXiv:1909.05858); 1 is off.
    """

    edits: ClassVar[bool] = False
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"repetition_penalty": (1e-3, 1e3)}
    guidance_scale: float = 3.0
    picture_guidance_scale: float = 1.2
    temperature: float = 0.7
    top_p: float = 0.9
    plausible_top_p: float = 1.0
    repetition_penalty: float = 1.2

    def plan(self, modality: str) -> SamplingPlan:
        """Return the plan for "text" or "image" positions."""
        penalty = self.repetition_penalty if modality == "text" else 1.0
        return replace(super().plan(modality), repetition_penalty=penalty)

    def without_edit(self) -> PromptVariant:
        """Return the prompt of stream i: pictures, and `negative_prompt` instead of the texts."""
        return PromptVariant(hide_text="all", replace_text=self.negative_prompt)
