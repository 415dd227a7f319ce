"""Configs of the samplers `contrastive`, `cd_k` and `mixture`. Light: no torch here.

Source: CM3leon paper section 3.1, equation 3 and figure 4; Li et al. 2022, "Contrastive Decoding".
The paper gives neither alpha nor k nor temperatures; each key states whether its default comes from
the paper's scripts (facebookresearch/metaseq) or from this project.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, ClassVar

from cm3core.interfaces.sampler import GuidanceStream, PromptVariant, Sampler, SamplingPlan
from cm3plugins.samplers.cfg import (
    CFGSamplerConfig,
    GuidedSamplerConfig,
    require,
)


@dataclass(kw_only=True)
class ContrastiveSamplerConfig(GuidedSamplerConfig):
    """Contrastive decoding: ranks plausible image codes by log p_expert - log p_amateur.

    The expert is the decoder with the text, the amateur the same decoder without it. Codes are plausible if
    p_expert >= alpha * the largest p_expert. The paper found that this set leaves too little choice, and
    proposed `cd_k`. Text tokens are sampled from the expert. If a request has no text to hide, both
    streams are equal and the score is meaningless: use `cfg` instead.

    Args:
        alpha: alpha of the plausible set, more than 0, at most 1; Li et al. use 0.1.
        expert_temperature: divides the expert's logits, also for the plausible set.
        amateur_temperature: divides the amateur's logits; higher values weaken the amateur.
        temperature: sampling temperature: softmax(score / temperature); 0 takes the best score, as
            in Li et al. (with beam search).
        expert_top_p: further limits the set to the expert's most probable codes with at least this
            probability, at temperature 1; 1.0 is off.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "expert_temperature": (0, 1e6),
        "amateur_temperature": (0, 1e6),
    }

    alpha: float = 0.1
    expert_temperature: float = 1.0
    amateur_temperature: float = 1.0
    expert_top_p: float = 1.0

    def check(self) -> None:
        """Check the ranges of alpha, the temperatures, filters and the schedule."""
        super().check()
        require(self, "alpha", 0 < self.alpha <= 1, "use more than 0 and at most 1")
        for key in ("expert_temperature", "amateur_temperature"):
            require(self, key, getattr(self, key) > 0, "use more than 0")
        require(
            self,
            "expert_top_p",
            0 < self.expert_top_p <= 1,
            "use more than 0 and at most 1 (1 is off)",
        )

    def plan(self, modality: str) -> SamplingPlan:
        """Return the plan for "text" or "image" positions: the expert's stream first, then the amateur's.

        p_expert is softmax(c / T), with T the expert's temperature, but a plan's set is defined on softmax(c):
        c / T >= kth / T + log alpha is c >= kth + log alpha**T.
        """
        expert, amateur = (
            (1 / self.expert_temperature, -1 / self.amateur_temperature)
            if modality == "image"
            else (1.0, 0.0)
        )
        return self.guided(
            modality,
            GuidanceStream(PromptVariant(), expert),
            GuidanceStream(self.null(), amateur),
            plausible_alpha=self.alpha**self.expert_temperature,
            plausible_k=self.threshold_rank(),
            plausible_top_p=self.expert_top_p,
        )

    def threshold_rank(self) -> int:
        """k of the plausible set, whose threshold is alpha times the k-th largest probability."""
        return 1


@dataclass(kw_only=True)
class CDKSamplerConfig(ContrastiveSamplerConfig):
    """Contrastive decoding TopK (CD-K): codes are plausible if p_expert >= alpha * the k-th largest p_expert
    (paper eq. 3).

    The k most probable codes are always in that set. If a decoder is sure of its code, even the second
    best is absurd, but the score may prefer it; so `expert_top_p` limits the set further. It is on by
    default; 1.0 gives the paper's equation.

    Args:
        alpha: alpha of the plausible set, more than 0, at most 1. The paper's scripts default to 0.5.
        k: k of the plausible set. The default is this project's; 1 gives `contrastive`.
        expert_temperature: as in `contrastive`; 1.0 comes from the later of the paper's scripts (the
            earlier one uses 0.8).
        amateur_temperature: as in `contrastive`; the default follows the equation; the paper's scripts
            use 0.5.
        expert_top_p: as in `contrastive`; the default is this project's, chosen on its bundled
            decoder.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"k": (1, 2**31 - 1)}

    alpha: float = 0.5
    k: int = 32
    expert_top_p: float = 0.8

    def threshold_rank(self) -> int:
        """k of the plausible set."""
        return self.k


@dataclass(kw_only=True)
class MixtureSamplerConfig(CFGSamplerConfig):
    """Samples a share of a request's candidates with CD-K, the others with `cfg`.

    Equal shares keep improving with more candidates (paper fig. 4). Candidate i uses CD-K if
    floor((i + 1) * share) > floor(i * share), so floor(n * share) of the first n do. Both methods have the
    same streams, filters and schedule. A single picture uses `cfg` unless the share is 1.

    Args:
        cd_k_share: share of CD-K, 0..1.
        alpha: for CD-K's candidates, as in `cd_k`; the `plausible_` keys apply to `cfg`'s.
        k: the same.
        expert_temperature: the same.
        amateur_temperature: the same.
        expert_top_p: the same.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **ContrastiveSamplerConfig.ranges,
        **CDKSamplerConfig.ranges,
    }

    cd_k_share: float = 0.5
    alpha: float = CDKSamplerConfig.alpha
    k: int = CDKSamplerConfig.k
    expert_temperature: float = CDKSamplerConfig.expert_temperature
    amateur_temperature: float = CDKSamplerConfig.amateur_temperature
    expert_top_p: float = CDKSamplerConfig.expert_top_p

    def check(self) -> None:
        """Check the ranges of the share and of both methods' keys."""
        super().check()
        require(self, "cd_k_share", 0 <= self.cd_k_share <= 1, "use 0 to 1")
        self.cd_k().check()

    def is_guided(self) -> bool:
        """Always True: CD-K needs the null stream, and both methods have the same streams."""
        return True

    def cd_k(self) -> CDKSamplerConfig:
        """Return the sampler of CD-K's candidates."""
        values: dict[str, Any] = {
            item.name: getattr(self, item.name) for item in fields(CDKSamplerConfig)
        }
        return CDKSamplerConfig(**values)

    def build(self) -> Sampler:
        """Return the sampler."""
        from cm3plugins.samplers.planned import MixtureSampler

        modalities, cd_k = ("text", "image"), self.cd_k()
        return MixtureSampler(
            {modality: self.plan(modality) for modality in modalities},
            {modality: cd_k.plan(modality) for modality in modalities},
            Fraction(str(self.cd_k_share)),
        )
