"""Config of the sampler `chameleon`: Chameleon's guidance with its defaults. Light: no torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cm3core.interfaces.sampler import PromptVariant
from cm3plugins.samplers.config import EditCFGSamplerConfig


@dataclass(kw_only=True)
class ChameleonSamplerConfig(EditCFGSamplerConfig):
    """Chameleon's guidance: u + s_picture (i - u) + s (f - i), i without texts, u without pictures too.

    As `edit_cfg`, but i sees no text of the query at all. Without pictures in the prompt, i and u are
    one stream. Formula and defaults: facebookresearch/chameleon (`guidance_scale_image` 1.2,
    `guidance_scale_text` 3.0, temperature 0.7, top-p 0.9); no set of plausible codes.
    """

    edits: ClassVar[bool] = False
    guidance_scale: float = 3.0
    picture_guidance_scale: float = 1.2
    temperature: float = 0.7
    top_p: float = 0.9
    plausible_top_p: float = 1.0

    def without_edit(self) -> PromptVariant:
        """What i sees: pictures, and `negative_prompt` in place of the texts."""
        return PromptVariant(hide_text="all", replace_text=self.negative_prompt)
