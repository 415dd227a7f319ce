"""Sampling and scoring as one policy: by hand, equal to each other, gradients against finite
differences and the training loss, groups that share a prompt, samplers that refuse.

Legend: B rollouts, P tokens, V ids.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3core.document import Codes, ImageHole, Text, TextHole
from cm3core.errors import GenerationError
from cm3core.interfaces import Sampler
from cm3core.interfaces.decoder import Decoder
from cm3kits.tiny import TinyDecoder
from cm3plugins.attention import SDPAAttentionConfig
from cm3plugins.decoders import cache as pool
from cm3plugins.samplers.cfg import CFGSamplerConfig, EditCFGSamplerConfig, TopPSamplerConfig
from cm3plugins.samplers.contrastive import (
    CDKSamplerConfig,
    ContrastiveSamplerConfig,
    MixtureSamplerConfig,
)
from cm3run.generation import Policy, policy, recorded
from cm3run.generation.engine import Request, candidate_seed
from engine_parts import APPLE, GRID, PEAR, REQUESTS, SERIALIZER, VOCABULARY, make_decoder
from messages import tells
from profiles import examples
from stateful_samplers import Wrapper

SAMPLERS = [
    TopPSamplerConfig(top_p=1.0, text_temperature=1.0, text_top_p=1.0),
    TopPSamplerConfig(top_p=0.7, temperature=0.8, text_top_k=4, text_min_p=0.1, typical_p=0.9),
    CFGSamplerConfig(guidance_scale=2.0, temperature=0.9, text_temperature=1.3),
    CFGSamplerConfig(guidance_scale=3.0, text_guidance_scale=1.5, null_prompt="mask_no_retrieved"),
    CFGSamplerConfig(guidance_scale=4.0, guidance_start=0.2, guidance_ramp="down", top_p=0.9),
    CFGSamplerConfig(guidance_scale=1.5, negative_prompt="bad", temperature=0, text_temperature=0),
    EditCFGSamplerConfig(guidance_scale=2.0, text_guidance_scale=1.2),
    CDKSamplerConfig(k=3),
    ContrastiveSamplerConfig(alpha=0.3, temperature=0.5),
    MixtureSamplerConfig(cd_k_share=0.5, k=2),
]
LONG = [
    Request((TextHole(12, stop=("a", "gi")), APPLE)),
    Request((TextHole(12, min_tokens=4), PEAR)),
    Request((TextHole(None), APPLE)),
]
UNFILTERED = TopPSamplerConfig(top_p=1.0, text_temperature=1.0, text_top_p=1.0).build()


def make_policy(decoder: Decoder, sampler: Sampler = UNFILTERED, **options) -> Policy:
    return Policy(decoder, SERIALIZER, sampler, VOCABULARY, **options)


class TableDecoder(TinyDecoder):
    """Logits of the next token given the current one, and nothing else: a table [V, V]."""

    def __init__(self) -> None:
        super().__init__(VOCABULARY.size, SDPAAttentionConfig().build())
        self.table_VV = torch.nn.Parameter(torch.zeros(VOCABULARY.size, VOCABULARY.size))

    def hidden_states(self, tokens_BT, *, cache=None, **_):
        return torch.nn.functional.one_hot(tokens_BT, VOCABULARY.size).float()

    def head_weight(self):
        return self.table_VV.T


# ---- by hand


def test_a_text_by_hand():
    """Of 11 letters, a has odds of 3 at the start; after a, b has 2 and the end 5.

    At temperature 1/2 odds are squared, and top-k 2 keeps the end and b.
    """
    decoder = TableDecoder()
    a, b = (int(SERIALIZER.text_tokens(letter)[0]) for letter in "ab")
    with torch.no_grad():
        decoder.table_VV[VOCABULARY.sentinel(0), a] = math.log(3)
        decoder.table_VV[a, b] = math.log(2)
        decoder.table_VV[a, VOCABULARY.end_of_infill] = math.log(5)
    sampler = TopPSamplerConfig(text_temperature=0.5, text_top_p=1.0, text_top_k=2).build()
    policy = make_policy(decoder, sampler)
    rollout = policy.rollout(Request((TextHole(3), APPLE)), (Text("a"), APPLE))
    assert rollout.tokens.tolist() == [a, VOCABULARY.end_of_infill]
    scores = policy.score([rollout])
    assert scores.raw_BP[0].tolist() == pytest.approx([math.log(3 / 13), math.log(5 / 17)])
    # ten letters are equally probable behind a, and ties are kept: 9 of 9 + 10
    assert scores.policy_BP[0].tolist() == pytest.approx([math.log(9 / 19), math.log(25 / 29)])


def test_a_picture_by_hand():
    """Guidance 2: code 9 has logit ln 5 after <break> in both streams, so 2 ln 5 - ln 5 in the mix.

    At temperature 1/2 its odds are 25 to 1.
    """
    decoder = TableDecoder()
    with torch.no_grad():
        decoder.table_VV[VOCABULARY.break_, VOCABULARY.image.start + 9] = math.log(5)
    sampler = CFGSamplerConfig(guidance_scale=2.0, temperature=0.5, plausible_top_p=1.0).build()
    policy = make_policy(decoder, sampler)
    scores = policy.score([policy.rollout(Request((Text("a"), ImageHole())), (Text("a"), PEAR))])
    rest = [math.log(1 / 16)] * 5
    assert scores.raw_BP[0].tolist() == pytest.approx([math.log(5 / 20), *rest])
    assert scores.policy_BP[0].tolist() == pytest.approx([math.log(25 / 40), *rest])


# ---- what is scored is what was sampled


@settings(max_examples=examples(6))
@given(data=st.data())
def test_scores_are_those_of_sampling(decoder, data):
    samplers = [config.build() for config in SAMPLERS]
    requests = [
        replace(request, seed=data.draw(st.integers(0, 99)), sampler=data.draw(chosen))
        for chosen in [st.sampled_from(samplers)]
        for request in data.draw(
            st.lists(st.sampled_from([*REQUESTS, *LONG]), min_size=1, max_size=4)
        )
    ]
    policy = make_policy(decoder, max_tokens=data.draw(st.sampled_from([1, 90, 4096])))
    num = data.draw(st.integers(1, 3))
    rollouts = policy.sample(requests, num)
    then, now = recorded(rollouts), policy.score(rollouts)
    assert len(rollouts) == num * len(requests)
    assert torch.equal(then.mask_BP, now.mask_BP)
    assert then.num_tokens_B.tolist() == [len(one.tokens) for one in rollouts]
    for before, after in ((then.raw_BP, now.raw_BP), (then.policy_BP, now.policy_BP)):
        torch.testing.assert_close(before, after, rtol=0, atol=1e-4)
        assert bool((after[~now.mask_BP] == 0).all())
    # the filters decide once more; the threshold of one may fall between two roundings
    anew = policy.score(rollouts, use_support=False).policy_BP.isclose(then.policy_BP, atol=1e-4)
    assert float(anew.float().mean()) > 0.9
    if num == 1:
        completions = policy.engine.complete(requests)
        for one, total, done in zip(rollouts, now.raw_BP.sum(1).tolist(), completions, strict=True):
            assert one.document == done.document
            assert total == pytest.approx(done.log_probability, abs=2e-3)


def test_candidates_have_seeds_and_samplers_of_their_own(decoder):
    mixture = MixtureSamplerConfig(cd_k_share=0.5, k=2).build()
    policy = make_policy(decoder)
    rollouts = policy.sample([replace(REQUESTS[0], seed=7, sampler=mixture)], 4)
    assert [one.request.seed for one in rollouts] == [candidate_seed(7, i) for i in range(4)]
    assert [one.sampler for one in rollouts] == [mixture.for_candidate(i) for i in range(4)]
    again = policy.sample([replace(REQUESTS[0], seed=7, sampler=mixture)], 4)
    assert [one.tokens.tolist() for one in again] == [one.tokens.tolist() for one in rollouts]


def test_small_chunks_change_nothing(decoder, monkeypatch):
    """Chunks of a few tokens, forwards of a row, recomputed activations: the same values and
    gradients."""
    sampler = CFGSamplerConfig(guidance_scale=2.0).build()
    rollouts = make_policy(decoder, sampler).sample(REQUESTS, 2)

    def run(policy: Policy, **options) -> list[torch.Tensor]:
        decoder.zero_grad()
        scores = policy.score(rollouts, **options)
        (scores.policy_BP.sum() + 2 * scores.raw_BP.sum()).backward()
        values = [scores.raw_BP.detach(), scores.policy_BP.detach()]
        return values + [p.grad.clone() for p in decoder.parameters() if p.grad is not None]

    whole = run(make_policy(decoder, sampler))
    biggest: list[int] = []
    logits = decoder.logits
    monkeypatch.setattr(
        decoder,
        "logits",
        lambda hidden, ids: biggest.append(hidden.shape[0] * len(ids)) or logits(hidden, ids),
        raising=False,
    )
    monkeypatch.setattr(policy, "CHUNK_BYTES", 1000)
    parts = run(make_policy(decoder, sampler, max_tokens=1), recompute=True)
    assert max(biggest) * 4 <= 1000
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    decoder.zero_grad()


# ---- other weights


def test_changed_weights_change_scores_and_samples(decoder):
    decoder = copy.deepcopy(decoder)
    policy = make_policy(decoder, CFGSamplerConfig(guidance_scale=2.0, top_p=0.5).build())
    rollouts = policy.sample(REQUESTS[:2], 3)
    engine = policy.engine
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(0.6)
    assert policy.engine is not engine
    then, now = recorded(rollouts), policy.score(rollouts)
    assert not torch.allclose(then.raw_BP, now.raw_BP, atol=0.1)
    # on the ids that were kept at sampling every token still has a probability
    assert bool(now.policy_BP.isfinite().all())
    assert bool((policy.score(rollouts, use_support=False).policy_BP == -math.inf).any())
    without = policy.sample(REQUESTS[:2], 3, keep_support=False)
    assert all(one.support is None for one in without)
    again = policy.sample(REQUESTS[:2], 3)
    assert [one.tokens.tolist() for one in again] == [one.tokens.tolist() for one in without]
    torch.testing.assert_close(
        policy.score(again).policy_BP, recorded(again).policy_BP, rtol=0, atol=1e-4
    )


def test_real_documents_are_scored_like_sampled_ones(decoder):
    policy = make_policy(decoder, CFGSamplerConfig(guidance_scale=2.0, top_p=0.9).build())
    for request in REQUESTS:
        [sampled] = policy.sample([request])
        real = policy.rollout(request, sampled.document, sampled.contents)
        assert real.tokens.tolist() == sampled.tokens.tolist()
        torch.testing.assert_close(
            policy.score([real]).raw_BP, recorded([sampled]).raw_BP, rtol=0, atol=1e-4
        )


# ---- gradients


def test_gradients_are_finite_differences():
    """Float64, of every weight of a tiny decoder, in a random direction; guidance and filters on."""
    decoder = TinyDecoder(VOCABULARY.size, SDPAAttentionConfig().build())
    sampler = CFGSamplerConfig(guidance_scale=1.7, temperature=0.8, text_temperature=1.1).build()
    policy = make_policy(decoder, sampler)
    rollouts = policy.sample([REQUESTS[0], REQUESTS[5]], 2)
    decoder.double()

    def value() -> torch.Tensor:
        scores = policy.score(rollouts)
        assert scores.policy_BP.dtype == torch.float64
        return (scores.policy_BP.exp() + scores.policy_BP + scores.raw_BP.square()).sum()

    value().backward()
    generator = torch.Generator().manual_seed(1)
    for parameter in decoder.parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        assert parameter.grad is not None
        with torch.no_grad():
            parameter.add_(direction, alpha=1e-6)
            above = value()
            parameter.sub_(direction, alpha=2e-6)
            below = value()
            parameter.add_(direction, alpha=1e-6)
        expected = float((above - below) / 2e-6)
        assert float((parameter.grad * direction).sum()) == pytest.approx(expected, rel=1e-4)


class ImageHead(torch.nn.Module, Decoder):
    """A decoder whose vocabulary are the image codes: over them alone, as the engine draws."""

    def __init__(self, decoder: TinyDecoder) -> None:
        super().__init__()
        self.inner, self.vocab_size = decoder, len(VOCABULARY.image)
        self.context_length = decoder.context_length

    def hidden_states(self, tokens_BT, **options):
        return self.inner.hidden_states(tokens_BT, **options)

    def head_weight(self):
        return self.inner.head_weight()[VOCABULARY.image.start : VOCABULARY.image.stop]


def test_gradients_are_those_of_the_training_loss():
    """Minus the raw log-probabilities of a picture are its training loss over the image codes, and
    without guidance and filters so are the policy's."""
    decoder = TinyDecoder(VOCABULARY.size, SDPAAttentionConfig().build())
    policy = make_policy(decoder)
    rollouts = policy.sample([REQUESTS[0]], 3)
    prompt = SERIALIZER.prompt(REQUESTS[0].document)
    fed_BT = torch.stack(
        [torch.tensor([*prompt.tokens.tolist(), *one.tokens.tolist()[:-1]]) for one in rollouts]
    )
    targets_N = torch.tensor(np.concatenate([one.tokens for one in rollouts])).long()
    hidden_NE = decoder.hidden_states(fed_BT)[:, len(prompt) - 1 :].flatten(0, 1)
    loss, _ = ImageHead(decoder).loss_sums(
        hidden_NE,
        targets_N - VOCABULARY.image.start,
        torch.ones(len(targets_N)),
        torch.zeros(len(targets_N)),
    )
    expected = torch.autograd.grad(loss, list(decoder.parameters()))
    for field in ("raw_BP", "policy_BP"):
        score = -getattr(policy.score(rollouts), field).sum()
        assert score.item() == pytest.approx(loss.item(), rel=1e-5)
        found = torch.autograd.grad(score, list(decoder.parameters()))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


# ---- groups


def test_a_group_stores_its_prompt_once(monkeypatch):
    """Keys and values of a group of 8, in bytes: the prompts of its two streams once, and the pictures
    of 16 rows; the prompts are read once."""
    monkeypatch.setattr(pool, "SHARING_PAYS", 0)  # these are a toy's
    decoder = make_decoder(context_length=256)
    policy = make_policy(decoder, CFGSamplerConfig(guidance_scale=2.0).build())
    others = ((Text("a bad cab"), PEAR),) * 8  # a long prompt
    request = Request((Text("ab"), ImageHole()), retrieved=others)
    held: list[int] = []
    read: list[int] = []
    inference = policy.engine.inference
    forward = inference.hidden_states

    def hidden_states(tokens_BT, *, cache, **options):
        result = forward(tokens_BT, cache=cache, **options)
        read.append(tokens_BT.numel())
        held.append(cache.keys_LKND.nbytes + cache.values_LKND.nbytes)
        return result

    monkeypatch.setattr(inference, "hidden_states", hidden_states)
    policy.sample([request], 8)
    prompts = [
        len(SERIALIZER.prompt(request.document, others, stream.variant))
        for stream in policy.sampler.plan("image").streams
    ]
    num_codes = GRID[0] * GRID[1]
    one_token = inference.cache_bytes(1)
    assert min(prompts) > 100
    assert sum(read) <= sum(prompts) + 16 * num_codes
    # each row has room for its codes and for padding
    assert held[-1] <= (sum(prompts) + 16 * (num_codes + 1)) * one_token
    unshared = 8 * sum(prompt + num_codes for prompt in prompts) * one_token
    assert held[-1] < unshared / 4


# ---- what is refused


class Secretive(Sampler):
    """Draws, and doesn't tell by which probabilities."""

    def plan(self, modality):
        return UNFILTERED.plan(modality)

    def draw(self, *args, **options):
        return UNFILTERED.draw(*args, **options)


@pytest.mark.parametrize(
    ("sampler", "why"),
    [
        (
            Wrapper(UNFILTERED),
            "sampler Wrapper: keeps state from draw to draw, so that its draws can't be replayed token "
            "by token",
        ),
        (Secretive(), "sampler Secretive: can't compute the log-probabilities of its draws"),
    ],
)
def test_samplers_that_cannot_be_replayed_are_refused(decoder, sampler, why):
    message = f"{why}\n  next: use a sampler without state that defines draw_log_probabilities"
    policy = make_policy(decoder)
    request = replace(REQUESTS[0], sampler=sampler)
    good = policy.rollout(REQUESTS[0], (Text("ab"), APPLE))
    for call in (
        lambda: policy.sample([request]),
        lambda: policy.rollout(request, (Text("ab"), APPLE)),
        lambda: policy.score([replace(good, sampler=sampler)]),
        lambda: make_policy(decoder, sampler).sample([REQUESTS[0]]),
    ):
        with pytest.raises(GenerationError) as error:
            call()
        assert str(error.value) == message


def test_a_sampler_that_fails_to_tell_fails_its_requests(decoder):
    class Failing(Secretive):
        def draw_log_probabilities(self, *args, **options):
            raise RuntimeError("boom")

    with pytest.raises(GenerationError) as error:
        make_policy(decoder, Failing()).sample([REQUESTS[0]])
    assert tells(error.value, "request 0: RuntimeError: boom ... CM3_TRACEBACK=1")


def test_wrong_input(decoder):
    policy = make_policy(decoder)
    rollout = policy.rollout(REQUESTS[0], (Text("ab"), APPLE))
    for call, message in (
        (lambda: policy.sample(REQUESTS[:1], 0), "num: is 0\n  next: use 1 to 100,000"),
        (lambda: policy.score([]), "rollouts: are empty\n  next: give at least one"),
        (lambda: recorded([]), "rollouts: are empty\n  next: give at least one"),
        (
            lambda: recorded([rollout]),
            "rollout 0: was not sampled here, so it ... Policy.score",
        ),
        (
            lambda: policy.score([replace(rollout, tokens=rollout.tokens[:-1])]),
            "rollout 0: has 5 tokens ... Policy.sample ... Policy.rollout",
        ),
        (
            lambda: policy.rollout(REQUESTS[0], (Text("ab"), APPLE), [np.zeros(6, np.int32)]),
            "document, hole 0: holds <s>, which",
        ),
    ):
        with pytest.raises(GenerationError) as error:
            call()
        assert tells(error.value, message)


def test_a_rollout_that_is_too_long_is_refused(decoder):
    policy = make_policy(decoder)
    retrieved = ((Text("a bad cab"), PEAR),) * 4
    rollout = policy.rollout(replace(REQUESTS[0], retrieved=retrieved), (Text("ab"), APPLE))
    with pytest.raises(GenerationError, match="more than the decoder's context of 64 holds"):
        policy.score([rollout])


def test_codes_may_be_missing_from_a_picture(decoder):
    """Only the missing codes are tokens of the policy."""
    policy = make_policy(decoder)
    box = np.array([False, True, True, False, True, False])
    [rollout] = policy.sample([Request((Text("ab"), Codes(APPLE.codes, GRID, box)))])
    assert len(rollout.tokens) == 3
    assert policy.score([rollout]).mask_BP.tolist() == [[True] * 3]
