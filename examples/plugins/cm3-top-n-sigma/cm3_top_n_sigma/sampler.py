"""The draw. Legend: n requests, S stream rows, G guidance streams, R ids of the legal slice."""

import torch

from cm3core.interfaces import Sampler
from cm3kernels import guided_sample
from cm3run.generation import plan_columns


class TopNSigmaSampler(Sampler):
    """Leaves ids out by its own rule; mixing, the other filters and the draw are cm3leon's."""

    def __init__(self, plans):
        self._plans = plans

    def plan(self, modality):
        return self._plans[modality]

    def draws_with(self, other):
        return isinstance(other, TopNSigmaSampler)

    def draw(
        self,
        logits_SR,
        stream_rows_nG,
        weights_nG,
        plans,
        *,
        first_id,
        allowed_nR,
        seed_n,
        position_n,
    ):
        columns = plan_columns(plans, logits_SR.device)
        reference_nR = logits_SR[stream_rows_nG.gather(1, columns["reference_n"][:, None])[:, 0]]
        n_sigma_n = torch.tensor(
            [getattr(plan.filters, "n_sigma", 0.0) for plan in plans], device=logits_SR.device
        )
        legal_nR = (
            torch.ones_like(reference_nR, dtype=torch.bool) if allowed_nR is None else allowed_nR
        )
        return guided_sample(
            logits_SR,
            stream_rows_nG,
            weights_nG,
            allowed_nV=near_the_top(reference_nR, legal_nR, n_sigma_n),
            first_id=first_id,
            seed_n=seed_n,
            position_n=position_n,
            **columns,
        )


def near_the_top(logits_nR, legal_nR, n_sigma_n):
    """Legal ids within n standard deviations of the largest legal logit, bool [n, R].

    >>> logits, all_legal = torch.tensor([[4.0, 2.0, 0.0, -2.0]]), torch.ones(1, 4, dtype=torch.bool)  # sigma is 5 ** 0.5
    >>> near_the_top(logits, all_legal, torch.tensor([1.0]))
    tensor([[ True,  True, False, False]])
    """
    values_nR = logits_nR.double()
    legal_nR = legal_nR & values_nR.isfinite()
    values_nR, count_n1 = values_nR.where(legal_nR, 0.0), legal_nR.sum(1, keepdim=True)
    mean_n1 = values_nR.sum(1, keepdim=True) / count_n1
    sigma_n1 = ((values_nR - mean_n1).square() * legal_nR).sum(1, keepdim=True).div(count_n1).sqrt()
    largest_n1 = values_nR.where(legal_nR, -torch.inf).amax(1, keepdim=True)
    return legal_nR & (
        (values_nR >= largest_n1 - n_sigma_n[:, None] * sigma_n1) | (n_sigma_n[:, None] == 0)
    )
