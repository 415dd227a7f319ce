"""Guided sampling of one step: two streams per request, filters, one id. All of ours draw the same id; the others
use torch's own noise.

Legend: n requests, S = 2 n stream rows (all conditional ones first), V ids.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cm3kernels.guided_sample import IMPLEMENTATIONS, guided_sample
from cm3lab.benchmarks.kernels.ops.ours import OurImplementation
from cm3run.benchmarks import (
    Case,
    Inputs,
    Op,
    Provider,
    Shape,
    ShapeKey,
    TorchProvider,
    Verdict,
    Where,
)

GUIDANCE, TOP_K, TOP_P, ALPHA, PLAUSIBLE_K, PLAUSIBLE_P, MIN_P, TYPICAL_P = (
    3.0,
    256,
    0.9,
    0.1,
    8,
    0.95,
    0.02,
    0.9,
)
#: The filters of each kind of case.
KINDS: dict[str, frozenset[str]] = {
    "cfg": frozenset(),
    "cfg+top_p": frozenset({"top_p"}),
    "cfg+top_k+top_p": frozenset({"top_k", "top_p"}),
    "cd_k": frozenset({"cd_k"}),
    "mixed": frozenset({"top_p", "cd_k"}),
    "cfg+plausible": frozenset({"plausible"}),
    "cfg+min_p+typical": frozenset({"min_p", "typical"}),
}
FILTER_NAMES = {
    "cd_k": "CD-K",
    "plausible": "plausibility set",
    "min_p": "min-p",
    "typical": "typical sampling",
}
#: Kinds measured only at these sizes.
ONLY_AT = {"cfg+plausible": [(1, 1024), (8, 8192)], "cfg+min_p+typical": [(8, 8192)]}
SIZES = {
    ("cuda", "full"): [(n, V) for n in (1, 8, 32, 132, 256) for V in (8192, 64512)],
    ("cuda", "quick"): [(8, 8192), (132, 8192), (8, 64512)],
    ("cpu", "full"): [(1, 1024), (1, 8192), (8, 8192), (8, 64512)],
    ("cpu", "quick"): [(8, 8192)],
}
#: Number of positions before they repeat.
NUM_POSITIONS = 256
#: Limit for half the summed difference of two distributions: the effect of one id at a filter's
#: threshold.
DISTRIBUTION_LIMIT = 5e-3


@dataclass(frozen=True)
class Expected:
    """The expected result.

    Args:
        tokens: ids drawn by the reference: with exact temperatures, and with temperatures off by
            1e-5, to allow for rounding on CUDA.
        probabilities: float64 [n, V], the filtered distribution.
    """

    tokens: tuple[Tensor, ...]
    probabilities: Tensor


class GuidedSampleOp(Op):
    """`cm3kernels.guided_sample` and its alternatives."""

    name, baseline = "guided_sample", "torch chain compiled"
    keys: ClassVar = {
        "n": ShapeKey("requests, two rows of logits each"),
        "V": ShapeKey("ids"),
        "kind": ShapeKey("the filters", tuple(KINDS)),
    }
    #: Of the distance between distributions, for providers with other noise; the same ids are wanted of ours.
    limits: ClassVar = dict.fromkeys(("float32", "bfloat16", "float16"), DISTRIBUTION_LIMIT)
    # a filter's passes over ids are counted neither as traffic nor as operations
    costs = "bytes 2 n V w + 8 n; operations not counted"

    def __init__(self) -> None:
        super().__init__()
        self.providers += [
            OurImplementation(name, IMPLEMENTATIONS, probe, our_call) for name in IMPLEMENTATIONS
        ]
        self.providers += [
            ChainProvider("torch chain", chain_and_draw, compiled) for compiled in (False, True)
        ]
        self.providers += [HuggingFaceProvider(), FlashInferProvider()]

    def shapes(self, where: Where) -> list[Shape]:
        kinds = list(KINDS) if where.size != "quick" else ["cfg+top_k+top_p", "cd_k"]
        sizes = [(2, 64)] if where.dry else SIZES[where.target, where.size]
        return [
            {"n": n, "V": V, "kind": kind}
            for n, V in sizes
            for kind in kinds
            if where.dry or (n, V) in ONLY_AT.get(kind, sizes)
        ]

    def refusal(self, shape: Any) -> str | None:
        if "cd_k" in KINDS[shape["kind"]] and shape["V"] < PLAUSIBLE_K:
            return f"V={shape['V']} is less than the {PLAUSIBLE_K} ids that CD-K compares with"
        return None

    def cost(self, shape: Any, dtype: torch.dtype, *, backward: bool) -> tuple[int, int]:
        n, V = shape["n"], shape["V"]
        return 2 * n * V * dtype.itemsize + 8 * n, 0

    def reference_bytes(self, case: Case) -> int:
        """The chain sorts ids several times in float64."""
        return 16 * 8 * int(case.parameters["n"]) * int(case.parameters["V"])

    def inputs(self, case: Case, where: Where, seed: int) -> Inputs:
        n, V, kind = (case.parameters[name] for name in ("n", "V", "kind"))
        filters = KINDS[kind]
        generator, device = torch.Generator(where.device).manual_seed(seed), where.device
        conditional = torch.randn(n, V, generator=generator, device=device) * 2.5
        unconditional = conditional + torch.randn(n, V, generator=generator, device=device) * 0.7
        requests = torch.arange(n, device=device)
        cd_k_n = (
            (requests % 2 == 1)
            if kind == "mixed"
            else torch.full((n,), "cd_k" in filters, device=device)
        )

        def column(name: str, values: Any) -> Tensor | None:
            return torch.full((n,), values, device=device) if name in filters else None

        made: Inputs = {
            "logits": torch.cat([conditional, unconditional]).to(case.dtype),
            "rows": torch.stack([requests, requests + n], 1),
            "weights": torch.where(
                cd_k_n[:, None],
                torch.tensor([1.0, -1.0], device=device),
                torch.tensor([GUIDANCE, 1 - GUIDANCE], device=device),
            ),
            "cd_k_n": cd_k_n if "cd_k" in filters else None,
            "top_k_n": column("top_k", TOP_K),
            "top_p_n": torch.where(cd_k_n, 1.0, TOP_P) if "top_p" in filters else None,
            "seed_n": requests + seed,
            "position_n": torch.full((n,), 17, device=device),
            "kind": kind,
            "plausible_p_n": column("plausible", PLAUSIBLE_P),
            "alpha_n": torch.where(cd_k_n, ALPHA, 0.0) if "cd_k" in filters else None,
            "plausible_k_n": column("cd_k", PLAUSIBLE_K),
            "min_p_n": column("min_p", MIN_P),
            "typical_p_n": column("typical", TYPICAL_P),
        }
        return made

    def reference(self, case: Case, inputs: Inputs) -> Any:
        return our_call("reference", case, inputs)()

    def expected(self, case: Case, inputs: Inputs) -> Expected:
        factors = (1.0,) if inputs["logits"].device.type == "cpu" else (1.0, 1 - 1e-5, 1 + 1e-5)
        tokens = tuple(
            our_call("reference", case, inputs, temperature=factor)() for factor in factors
        )
        return Expected(tokens, chain(inputs, torch.float64))

    def gate(self, case: Case, expected: Expected, output: Any) -> Verdict:
        if isinstance(output, Tensor):  # ours: exactly these tokens
            right = torch.stack([output == tokens for tokens in expected.tokens]).any(dim=0)
            return Verdict(float((~right).sum()), 0.0, "tokens that differ from the reference's")
        tokens, probabilities = output
        outside = float((expected.probabilities.gather(1, tokens[:, None]) == 0).sum())
        if probabilities is None or outside:
            return Verdict(outside, 0.0, "tokens that the filters exclude")
        return Verdict(
            float((probabilities.double() - expected.probabilities).abs().sum(1).max() / 2),
            DISTRIBUTION_LIMIT,
            "distance between distributions",
        )


def probe(case: Case, where: Where) -> Tensor:
    return torch.empty(1, case.parameters["V"], dtype=case.dtype, device=where.device)


def our_call(
    implementation: str, case: Case, inputs: Inputs, temperature: float | None = None
) -> Callable[[], Any]:
    """Return our call, at one position after the other, as requested by an engine; a temperature other than None is
    for `Expected`."""
    temperature_n = (
        None
        if temperature is None
        else torch.full_like(inputs["weights"][:, 0], temperature, dtype=torch.float64)
    )
    positions_n = itertools.cycle([inputs["position_n"] + step for step in range(NUM_POSITIONS)])
    return lambda: guided_sample(
        inputs["logits"],
        inputs["rows"],
        inputs["weights"],
        temperature_n=temperature_n,
        top_k_n=inputs["top_k_n"],
        top_p_n=inputs["top_p_n"],
        plausible_alpha_n=inputs["alpha_n"],
        plausible_k_n=inputs["plausible_k_n"],
        plausible_top_p_n=inputs["plausible_p_n"],
        min_p_n=inputs["min_p_n"],
        typical_p_n=inputs["typical_p_n"],
        seed_n=inputs["seed_n"],
        position_n=next(positions_n),
        implementation=implementation,
    )


def chain(inputs: Inputs, dtype: torch.dtype) -> Tensor:
    """Return the filtered distribution [n, V], as usually written in torch: mix, plausibility, top-k, top-p by
    sorting, min-p, typical by sorting."""
    logits, infinity = inputs["logits"].to(dtype), float("-inf")
    n = len(inputs["rows"])
    conditional, unconditional = logits[:n], logits[n:]
    weights = inputs["weights"].to(dtype)
    mixed = weights[:, :1] * conditional + weights[:, 1:] * unconditional
    if inputs.get("plausible_p_n") is not None:
        mixed = mixed.masked_fill(
            _behind(conditional, conditional, inputs["plausible_p_n"]), infinity
        )
    if inputs["alpha_n"] is not None:
        kth = conditional.topk(PLAUSIBLE_K, dim=1).values[:, -1:]
        margin = torch.where(
            inputs["cd_k_n"][:, None], inputs["alpha_n"].to(dtype)[:, None].log(), infinity
        )
        mixed = mixed.masked_fill(conditional < kth + margin, infinity)
    if inputs["top_k_n"] is not None:
        mixed = mixed.masked_fill(
            mixed < mixed.topk(min(TOP_K, mixed.shape[1]), dim=1).values[:, -1:], infinity
        )
    if inputs["top_p_n"] is not None:
        mixed = mixed.masked_fill(_behind(mixed, mixed, inputs["top_p_n"]), infinity)
    if inputs.get("min_p_n") is not None:
        mixed = mixed.masked_fill(
            mixed < mixed.amax(1, keepdim=True) + inputs["min_p_n"].to(dtype)[:, None].log(),
            infinity,
        )
    if inputs.get("typical_p_n") is not None:
        log_probability = mixed.log_softmax(1)
        entropy = -(log_probability.exp() * log_probability).nansum(1, keepdim=True)
        nearness = -(log_probability + entropy).abs()
        mixed = mixed.masked_fill(_behind(nearness, mixed, inputs["typical_p_n"]), infinity)
    return torch.softmax(mixed, dim=1)


def _behind(keys: Tensor, logits: Tensor, p_n: Tensor) -> Tensor:
    """Return the ids after those with the largest keys whose probability reaches p, bool [n, V]."""
    order = keys.sort(dim=1, descending=True).indices
    mass = logits.gather(1, order).softmax(1)
    behind = (mass.cumsum(1) - mass >= p_n.to(mass.dtype)[:, None]) & (p_n[:, None] < 1)
    return behind.scatter(1, order, behind)


def chain_and_draw(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return tokens and their distribution; uses a race of exponentials, which, unlike `multinomial`, does not
    wait for the device."""
    probabilities = chain(inputs, torch.float32)
    return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(1), probabilities


class ChainProvider(TorchProvider):
    """The usual chain of torch operations."""

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        function, given = (
            self.function,
            {name: value for name, value in inputs.items() if name != "kind"},
        )
        return lambda: function(given)


def _lacking(case: Case, filters: frozenset[str]) -> str | None:
    """Return why a provider with these filters can't run a case; None if it can."""
    lacking = sorted(KINDS[case.parameters["kind"]] - filters)
    return f"has no {', '.join(FILTER_NAMES[name] for name in lacking)}" if lacking else None


class HuggingFaceProvider(Provider):
    """The logits processors of transformers, chained as in its `generate`, and
    `torch.multinomial`."""

    name = "huggingface"
    filters = frozenset({"top_k", "top_p", "min_p", "typical"})

    def enabled(self, case: Case, where: Where) -> str | None:
        import importlib.util

        if importlib.util.find_spec("transformers") is None:
            return "transformers is not installed"
        return _lacking(case, self.filters)

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        from transformers.generation.logits_process import (
            ClassifierFreeGuidanceLogitsProcessor,
            LogitsProcessorList,
            MinPLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
            TypicalLogitsWarper,
        )

        warpers: dict[str, Any] = {
            "top_k": TopKLogitsWarper(TOP_K),
            "top_p": TopPLogitsWarper(TOP_P),
            "min_p": MinPLogitsWarper(MIN_P),
            "typical": TypicalLogitsWarper(TYPICAL_P),
        }
        guidance: Any = ClassifierFreeGuidanceLogitsProcessor
        chosen = [
            warper for name, warper in warpers.items() if name in KINDS[case.parameters["kind"]]
        ]
        processors: Any = LogitsProcessorList([guidance(GUIDANCE), *chosen])
        ids = torch.zeros(
            case.parameters["n"], 1, dtype=torch.int64, device=inputs["logits"].device
        )

        def draw() -> tuple[Tensor, Tensor]:
            probabilities: Tensor = processors(ids, inputs["logits"].float()).softmax(-1)
            return torch.multinomial(probabilities, 1)[:, 0], probabilities

        return draw


class FlashInferProvider(Provider):
    """flashinfer's sampler without sorting, after mixing in torch. Its check is weaker, since it doesn't expose a
    distribution."""

    name = "flashinfer"
    filters = frozenset({"top_k", "top_p"})

    def enabled(self, case: Case, where: Where) -> str | None:
        import importlib.util

        if importlib.util.find_spec("flashinfer") is None:
            return "flashinfer is not installed"
        if where.device.type == "cpu":
            return "needs CUDA"
        return _lacking(case, self.filters)

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        from flashinfer.sampling import top_k_top_p_sampling_from_logits

        n, V, filters = case.parameters["n"], case.parameters["V"], KINDS[case.parameters["kind"]]

        def draw() -> tuple[Tensor, None]:
            logits = inputs["logits"].float()
            mixed = GUIDANCE * logits[:n] + (1 - GUIDANCE) * logits[n:]
            tokens = top_k_top_p_sampling_from_logits(
                mixed, TOP_K if "top_k" in filters else V, TOP_P if "top_p" in filters else 1.0
            )
            return tokens.long(), None

        return draw
