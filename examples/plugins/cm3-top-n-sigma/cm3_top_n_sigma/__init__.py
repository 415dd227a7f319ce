"""A sampler for cm3leon: top-n-sigma (Tang et al. 2024, arXiv 2411.07641)."""

from dataclasses import dataclass

from cm3core.errors import RecipeError
from cm3core.hookspecs import hookimpl
from cm3core.interfaces import Filters, GuidanceStream, PromptVariant, SamplerConfig, SamplingPlan

CM3_API = 1


@dataclass(frozen=True)
class SigmaFilters(Filters):
    """The plan's filters, and `n_sigma`: standard deviations below the largest logit; 0 is off."""

    n_sigma: float = 0.0


@dataclass(kw_only=True)
class TopNSigmaConfig(SamplerConfig):
    """Top-n-sigma with classifier-free guidance.

    The set of ids is chosen from the logits of the stream that sees the text, before guidance and
    temperature, so neither admits implausible ids: a temperature may be high.

    Args:
        n_sigma: keep image codes whose logit is at most this many standard deviations below the
            largest; 0 keeps all.
        guidance_scale: logits u + s (c - u) of image codes, c with the text and u without; 1 is
            off.
        temperature: of image codes; 0 takes the most probable.
        text_n_sigma: the same of text tokens, which are not guided.
        text_temperature: the same of text tokens.
    """

    n_sigma: float = 0.25
    guidance_scale: float = 1.5
    temperature: float = 1.0
    text_n_sigma: float = 1.0
    text_temperature: float = 0.7

    def check(self):
        for key, value in vars(self).items():
            if not 0 <= value < float("inf"):
                raise RecipeError(f"sampler.{key}", f"is {value}", "use 0 or more")

    def plan(self, modality):
        prefix, scale = ("text_", 1.0) if modality == "text" else ("", self.guidance_scale)
        filters = SigmaFilters(
            temperature=getattr(self, prefix + "temperature"),
            n_sigma=getattr(self, prefix + "n_sigma"),
        )
        streams = [GuidanceStream(PromptVariant(), scale)]
        if self.guidance_scale != 1:
            streams.append(GuidanceStream(PromptVariant(hide_text="all"), 1 - scale))
        return SamplingPlan(tuple(streams), filters=filters)

    def build(self):
        from cm3_top_n_sigma.sampler import TopNSigmaSampler

        return TopNSigmaSampler({modality: self.plan(modality) for modality in ("text", "image")})


@hookimpl
def cm3_samplers():
    return {"top_n_sigma": TopNSigmaConfig}
