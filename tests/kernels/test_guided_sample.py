"""guided_sample, eager and reference: a worked example, what draws depend on, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from cm3kernels import guided_sample
from cm3kernels.guided_sample.eager import AHEAD, AT_ONCE, SMALL
from guided_sample_oracle import (
    OFF,
    as_arguments,
    draw,
    ints,
    random_batch,
)
from messages import tells

ZERO = torch.zeros(1, dtype=torch.int64)
PLAIN = ("eager", "reference")


def test_worked_example() -> None:
    """Guidance 3 on two streams, by hand: 3c - 2u = (2, 5, 1, 8); plausible by c: the two largest
    are ids 0 and 1."""
    logits = torch.tensor([[4.0, 3.0, 1.0, 2.0], [5.0, 2.0, 1.0, -1.0]])
    rows, weights = ints(0, 1)[None], torch.tensor([[3.0, -2.0]])
    greedy: dict[str, Any] = {"temperature_n": torch.zeros(1), "seed_n": ZERO, "position_n": ZERO}
    assert guided_sample(logits, rows, weights, **greedy).item() == 3
    assert guided_sample(logits, rows, weights, plausible_top_k_n=ints(2), **greedy).item() == 1
    assert (
        guided_sample(
            logits, rows, weights, allowed_nV=torch.tensor([[1, 0, 1, 0]]).bool(), **greedy
        ).item()
        == 0
    )
    # c >= c_(2) + log 0.5 = 3 - 0.693: again ids 0 and 1; with alpha = 0.3, 3 - 1.204 = 1.796, id 3
    # is back.
    for alpha, token in ((0.5, 1), (0.3, 3)):
        settings = {"plausible_alpha_n": torch.tensor([alpha]), "plausible_k_n": ints(2)}
        assert guided_sample(logits, rows, weights, **settings, **greedy).item() == token


def test_guidance_that_leaves_plausible_ids_no_mass() -> None:
    """The mixed logit of one implausible id is 4,000 above all others, whose masses are 0 relative
    to it: it is never drawn."""
    V = SMALL + 3
    logits = torch.randn(2, V, generator=torch.Generator().manual_seed(4))
    logits[:, 5], logits[0, 0] = torch.tensor([-30.0, -2000.0]), 3.0
    rows, weights = ints(0, 1)[None].expand(4, 2), torch.tensor([[3.0, -2.0]]).expand(4, 2)
    drawn = [
        guided_sample(
            logits,
            rows,
            weights,
            seed_n=torch.arange(4),
            position_n=ints(9, 9, 9, 9),
            plausible_top_p_n=torch.full((4,), 0.9),
            implementation=name,
        )
        for name in PLAIN
    ]
    assert torch.equal(*drawn)
    assert (drawn[0] != 5).all()


def test_many_requests_are_drawn_as_one_by_one() -> None:
    """More than are processed at once, with and without log-probabilities; a late one without a
    legal id is reported by number."""
    V, filters = (
        1500,
        [
            {"top_p": 0.9},
            {"top_p": 0.9, "min_p": 0.1},
            {"top_p": 1.5, "typical_p": 0.7},
            {"temperature": 0.0},
        ],
    )
    n = 3 * AT_ONCE // V
    logits = torch.randn(9, V, generator=torch.Generator().manual_seed(6)) * 3
    many = as_arguments([OFF | filters[request % 4] for request in range(n)]) | {
        "logits_SV": logits,
        "stream_rows_nG": torch.arange(n)[:, None] % 9,
        "weights_nG": torch.ones(n, 1),
        "seed_n": torch.arange(n),
        "position_n": torch.arange(n) * 5,
        "allowed_nV": torch.ones(n, V, dtype=torch.bool),
    }
    log_probabilities = [torch.zeros(n), torch.zeros(n)]
    drawn = [
        draw(many, implementation=name, out_log_probability_n=log_n)
        for name, log_n in zip(PLAIN, log_probabilities, strict=True)
    ]
    assert drawn[0] == drawn[1] == draw(many)
    assert torch.allclose(*log_probabilities, atol=1e-5)
    many["allowed_nV"][n - 2] = False
    with pytest.raises(ValueError) as caught:
        draw(many)
    assert tells(caught.value, f"guided_sample: request {n - 2} has")


def test_positions_one_after_the_other_and_otherwise() -> None:
    """Random numbers are made ahead for an engine; in any other order, and when one request falls
    behind, the same ids are drawn."""
    forward, arguments = (
        [*range(100, 103 + 2 * AHEAD)],
        {
            "logits_SV": torch.zeros(1, 50),
            "weights_nG": torch.ones(2, 1),
            "stream_rows_nG": ints(0, 0)[:, None],
        },
    )
    pairs = [(position, position + 7) for position in forward]
    pairs += [
        (110, 117),
        (111, 117),
        (112, 119),
        (9, 3),
        (10, 4),
        (11, 5),
        (13, 6),
        (2**32 - 2, 0),
        (2**32 - 1, 1),
    ]
    for seeds in (ints(5, 6), ints(6, 5), ints(5, 6)):
        for pair in pairs:
            given = arguments | {"position_n": ints(*pair), "seed_n": seeds}
            assert draw(given) == draw(given, implementation="reference")


def test_draw_depends_on_seed_position_and_id_only() -> None:
    rng = np.random.default_rng(5)
    arguments, expected = random_batch(rng, n=16, G=2, V=96)
    order = torch.tensor(rng.permutation(16))
    permuted = {
        k: v[order] if isinstance(v, torch.Tensor) and k != "logits_SV" else v
        for k, v in arguments.items()
    }
    assert draw(permuted) == [expected[i] for i in order.tolist()]
    for i in (0, 7):
        alone = {
            k: v[i : i + 1] if isinstance(v, torch.Tensor) and k != "logits_SV" else v
            for k, v in arguments.items()
        }
        assert draw(alone) == [expected[i]]
    # The same ids as columns 37.. of a wider slice, the others not allowed.
    wider = dict(
        arguments,
        logits_SV=torch.randn(34, 150, dtype=torch.float64),
        allowed_nV=torch.zeros(16, 150, dtype=torch.bool),
    )
    wider["first_id"] = max(arguments["first_id"] - 37, 0)
    shift = arguments["first_id"] - wider["first_id"]
    wider["logits_SV"][:, shift : shift + 96] = arguments["logits_SV"]
    wider["allowed_nV"][:, shift : shift + 96] = arguments["allowed_nV"]
    for name in ("top_k_n", "plausible_top_k_n", "plausible_k_n"):  # a k beyond the slice stays off
        wider[name] = arguments[name].where(
            arguments[name] < 96, 1000 if name == "plausible_k_n" else 0
        )
    assert draw(wider) == expected


def test_infinite_logits_never_make_nan() -> None:
    """Guidance over -inf: (1 - s) * -inf is +inf and 0 * -inf is NaN; such ids are simply not
    drawn."""
    inf = float("inf")
    logits = torch.tensor([[0.0, -inf, 1.0, 0.5], [0.0, 3.0, -inf, 0.0]])
    greedy: dict[str, Any] = {"temperature_n": torch.zeros(1), "seed_n": ZERO, "position_n": ZERO}
    both = ints(0, 1)[None]
    assert guided_sample(logits, both, torch.tensor([[3.0, -2.0]]), **greedy).item() == 3
    # weight 0: its -inf doesn't count
    assert guided_sample(logits, both, torch.tensor([[1.0, 0.0]]), **greedy).item() == 2
    assert guided_sample(
        logits, both, torch.tensor([[1.0, 0.0]]), seed_n=ZERO, position_n=ZERO
    ).item() in (0, 2, 3)


def test_greedy_ties_go_to_the_lowest_id_and_one_id_is_always_drawn() -> None:
    equal = torch.zeros(1, 9)
    row, one = ZERO[None], torch.ones(1, 1)
    assert (
        guided_sample(
            equal, row, one, temperature_n=torch.zeros(1), seed_n=ZERO, position_n=ZERO
        ).item()
        == 0
    )
    only = torch.zeros(1, 9, dtype=torch.bool)
    only[0, 6] = True
    for seed in range(5):
        assert (
            guided_sample(
                equal,
                row,
                one,
                allowed_nV=only,
                top_p_n=torch.tensor([1e-9]),
                seed_n=ints(seed),
                position_n=ZERO,
            ).item()
            == 6
        )
    # and together with a request whose nucleus is off
    settings = as_arguments([OFF | {"top_p": p, "typical_p": 0.5} for p in (0.9, 0.5, 1.5)])
    three = {"seed_n": ints(1, 2, 3), "position_n": ints(0, 0, 0)} | settings
    drawn = [
        guided_sample(equal, row.expand(3, 1), one.expand(3, 1), implementation=name, **three)
        for name in PLAIN
    ]
    assert torch.equal(*drawn)
    # top-k 1 of nine equal ids keeps all nine
    seeds = torch.arange(200)
    tokens = guided_sample(
        equal,
        torch.zeros(200, 1, dtype=torch.int64),
        torch.ones(200, 1),
        top_k_n=torch.ones_like(seeds),
        seed_n=seeds,
        position_n=torch.zeros_like(seeds),
    )
    assert len(tokens.unique()) == 9


@pytest.mark.parametrize("implementation", PLAIN)
def test_request_without_a_choice_is_refused(implementation: str) -> None:
    rows = ints(0, 0)[:, None]
    allowed = torch.tensor([[True, True], [False, False]])
    with pytest.raises(ValueError) as caught:
        guided_sample(
            torch.zeros(1, 2),
            rows,
            torch.ones(2, 1),
            allowed_nV=allowed,
            seed_n=ints(0, 0),
            position_n=ints(0, 0),
            implementation=implementation,
        )
    assert tells(caught.value, "guided_sample: request 1 has")
    with pytest.raises(ValueError, match="request 0 has no id"):
        guided_sample(
            torch.full((1, 2), math.nan),
            ZERO[None],
            torch.ones(1, 1),
            seed_n=ZERO,
            position_n=ZERO,
            implementation=implementation,
        )


def test_tokens_reach_the_rows_of_their_streams() -> None:
    """Three requests, of two, one and two streams; row 3 belongs to none."""
    rows = torch.tensor([[4, 0], [2, -1], [1, 5]])
    logits = torch.eye(6)[:, :4].contiguous()
    everywhere = torch.full((6,), -7)
    tokens = guided_sample(
        logits,
        rows,
        torch.ones(3, 2),
        temperature_n=torch.zeros(3),
        seed_n=ints(0, 0, 0),
        position_n=ints(0, 0, 0),
        first_id=20,
        out_tokens_S=everywhere,
    )
    assert tokens.tolist() == [20, 22, 21]
    assert everywhere.tolist() == [20, 21, 22, -7, 20, 21]


def test_no_requests_give_no_tokens() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert guided_sample(
        torch.zeros(1, 4), none[:, None], torch.zeros(0, 1), seed_n=none, position_n=none
    ).shape == (0,)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"top_k_n": torch.ones(1)}, "top_k_n is [1] torch.float32, must be int64 [1]"),
    ({"top_p_n": torch.ones(2)}, "top_p_n is [2] torch.float32, must be floating [1]"),
    (
        {"top_p_n": torch.ones(1, device="meta")},
        "top_p_n is on meta, logits_SV on cpu; all must be on one device",
    ),
    ({"top_p_n": torch.tensor([math.nan])}, "top_p_n has nan, must be a number"),
    (
        {"temperature_n": torch.tensor([-0.5])},
        "temperature_n has -0.5, must be 0 (picks the largest) or more, and finite",
    ),
    (
        {"temperature_n": torch.tensor([math.inf])},
        "temperature_n has inf, must be 0 (picks the largest) or more, and finite",
    ),
    ({"min_p_n": torch.tensor([1.5])}, "min_p_n has 1.5, must be 0 (off) to 1"),
    ({"min_p_n": torch.tensor([-0.25])}, "min_p_n has -0.25, must be 0 (off) to 1"),
    ({"min_p_n": torch.tensor([math.nan])}, "min_p_n has nan, must be 0 (off) to 1"),
    ({"min_p_n": torch.ones(2)}, "min_p_n is [2] torch.float32, must be floating [1]"),
    ({"typical_p_n": torch.tensor([math.nan])}, "typical_p_n has nan, must be a number"),
    ({"typical_p_n": ints(1)}, "typical_p_n is [1] torch.int64, must be floating [1]"),
    ({"position_n": ints(-1)}, "position_n has -1, must be 0 to 2**32 - 1"),
    ({"position_n": ints(2**32)}, "position_n has 4294967296, must be 0 to 2**32 - 1"),
    (
        {
            "stream_rows_nG": ints(0, 0)[:, None],
            "weights_nG": torch.ones(2, 1),
            "seed_n": ints(0, 0),
            "position_n": ints(0, 0),
            "out_tokens_S": ints(0),
        },
        "row 0 belongs to requests 0 and 1, so out_tokens_S can't receive both tokens",
    ),
    ({"weights_nG": torch.tensor([[math.inf]])}, "weights_nG has a weight that is not finite"),
    (
        {"weights_nG": torch.ones(1, 2)},
        "weights_nG is [1, 2] torch.float32, must be floating [1, 1]",
    ),
    ({"stream_rows_nG": ints(4)[None]}, "stream_rows_nG has rows 4..4, must be -1 (none) to 0"),
    ({"stream_rows_nG": ints(-1)[None]}, "the reference stream of request 0 has row -1 (none)"),
    (
        {"stream_rows_nG": ints(0)},
        "stream_rows_nG is [1] torch.int64, must be int64 [requests, streams]",
    ),
    ({"reference_n": ints(1)}, "reference_n has streams 1..1, must be 0 to 0"),
    (
        {"logits_SV": torch.zeros(1, 4, dtype=torch.int64)},
        "logits_SV is [1, 4] torch.int64, must be floating [stream rows, ids]",
    ),
    ({"allowed_nV": torch.ones(1, 4)}, "allowed_nV is [1, 4] torch.float32, must be bool [1, 4]"),
    (
        {"allowed_bits_nW": ints(1)[None]},
        "allowed_bits_nW is [1, 1] torch.int64, must be int32 [1, 1]",
    ),
    (
        {"allowed_bits_nW": torch.ones(1, 2, dtype=torch.int32)},
        "allowed_bits_nW is [1, 2] torch.int32, must be int32 [1, 1]",
    ),
    ({"out_tokens_S": ints(0, 0)}, "out_tokens_S is [2] torch.int64, must be int64 [1]"),
    (
        {"out_log_probability_n": torch.zeros(1, dtype=torch.float64)},
        "out_log_probability_n is [1] torch.float64, must be float32 [1]",
    ),
    ({"first_id": -1}, "first_id is -1, must not be negative"),
    ({"first_id": 2**31 - 3}, "ids end at 2147483649, must end at or before 2**31"),
    (
        {"implementation": "cuda"},
        "implementation 'cuda' is not available\n  next: use 'auto' or one of: triton, eager, "
        "reference",
    ),
]


@pytest.mark.parametrize(
    ("wrong", "cause"), WRONG, ids=lambda value: ",".join(value) if isinstance(value, dict) else ""
)
def test_wrong_arguments_are_named(wrong: dict[str, Any], cause: str) -> None:
    arguments = {
        "logits_SV": torch.zeros(1, 4),
        "stream_rows_nG": ZERO[None],
        "weights_nG": torch.ones(1, 1),
        "seed_n": ZERO,
        "position_n": ZERO,
    } | wrong
    with pytest.raises(ValueError) as caught:
        draw(arguments)
    assert str(caught.value) == f"guided_sample: {cause}"
