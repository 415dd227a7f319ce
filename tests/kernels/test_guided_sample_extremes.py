"""guided_sample's kernels at the edges: extreme logits and settings, the noise, no choice, refused arguments."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from scipy.stats import chi2

from cm3kernels.guided_sample import _tile
from cm3kernels.guided_sample.philox import log_survival
from cm3kernels.guided_sample.triton import Config
from guided_sample_calls import launch, on
from guided_sample_oracle import OFF, as_arguments, draw, ints
from messages import tells

HOST = sys.modules["cm3kernels.guided_sample.triton"]
#: The interpreter's numpy.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|divide by zero|invalid value) encountered:RuntimeWarning"
)


HUGE = 3.4e38
EXTREMES: dict[str, tuple[list[list[float]], list[float], dict[str, Any]]] = {
    "all equal": ([[0.5] * 9, [0.25] * 9], [2.0, -1.0], {}),
    "all equal, top-k 1 keeps all": ([[0.5] * 9] * 2, [1.0, 0.0], {"top_k": 1}),
    "all equal, greedy": ([[0.5] * 9] * 2, [1.0, 0.0], {"temperature": 0.0}),
    "two maxima, greedy": ([[0.0, 3.0, 1.0, 3.0], [0.0] * 4], [1.0, 1.0], {"temperature": 0.0}),
    "two maxima, top-p": ([[0.0, 9.0, 1.0, 9.0], [0.0] * 4], [1.0, 1.0], {"top_p": 0.1}),
    "minus zero is zero": ([[-0.0, 0.0, -0.0, -1.0], [0.0] * 4], [1.0, 0.0], {"top_k": 1}),
    "tiny top-p": ([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]], [1.0, 1.0], {"top_p": 1e-30}),
    "top-p 0": ([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]], [1.0, 1.0], {"top_p": 0.0}),
    "one finite id": (
        [[-math.inf, math.nan, 1.0, math.inf], [1.0] * 4],
        [1.0, 1.0],
        {"top_p": 0.5, "plausible_alpha": 0.5},
    ),
    "huge, overflowing both ways": (
        [[HUGE, -HUGE, 0.0, HUGE], [-HUGE, HUGE, 0.0, -HUGE]],
        [3.0, -2.0],
        {"top_p": 0.9},
    ),
    "huge differences": (
        [[1e30, 1e29, -1e30, 9.9e29], [0.0] * 4],
        [1.0, 1.0],
        {"plausible_alpha": 0.1, "plausible_k": 2},
    ),
    "denormal logits": ([[1e-42, 2e-42, 0.0, -1e-42], [0.0] * 4], [1.0, 1.0], {"top_k": 2}),
    "cold": ([[1.0, 1.0001, 1.0, 0.0], [0.0] * 4], [1.0, 1.0], {"temperature": 1e-6}),
    "hot": ([[1.0, 50.0, 1.0, 0.0], [0.0] * 4], [1.0, 1.0], {"temperature": 1e6, "top_p": 0.6}),
    "all equal, min-p 1 and typical keep all": (
        [[0.5] * 9] * 2,
        [1.0, 0.0],
        {"min_p": 1.0, "typical_p": 0.1},
    ),
    "min-p is of probabilities at the temperature": (
        [[0.0, *[-1.0] * 30], [0.0] * 31],
        [1.0, 1.0],
        {"temperature": 2.0, "min_p": 0.5},
    ),
    "two maxima, min-p 1": ([[0.0, 3.0, 1.0, 3.0], [0.0] * 4], [1.0, 1.0], {"min_p": 1.0}),
    "typical 0": ([[0.0, 1.0, 2.0, 2.5], [0.0] * 4], [1.0, 1.0], {"typical_p": 0.0}),
    "typical, not the largest": (
        [[-0.693, -1.204, -1.897, -2.996], [0.0] * 4],
        [1.0, 0.0],
        {"typical_p": 0.2},
    ),
    "one finite id, min-p, typical": (
        [[-math.inf, math.nan, 1.0, math.inf], [1.0] * 4],
        [1.0, 1.0],
        {"min_p": 1.0, "typical_p": 1e-6},
    ),
    "some -inf, typical": (
        [[-math.inf, 2.0, 1.0, 0.5, -1.0], [1.0] * 5],
        [1.0, 0.0],
        {"typical_p": 0.7, "temperature": 0.5},
    ),
    "huge, min-p, typical": (
        [[HUGE, -HUGE, 0.0, HUGE], [-HUGE, HUGE, 0.0, -HUGE]],
        [3.0, -2.0],
        {"min_p": 0.1, "typical_p": 0.5},
    ),
    "huge differences, min-p": (
        [[1e30, 1e29, -1e30, 9.9e29], [0.0] * 4],
        [1.0, 1.0],
        {"min_p": 1e-30, "typical_p": 0.9},
    ),
    "cold, min-p, typical": (
        [[1.0, 1.0001, 1.0, 0.0], [0.0] * 4],
        [1.0, 1.0],
        {"temperature": 1e-4, "min_p": 0.3, "typical_p": 0.6},
    ),
    "hot, min-p, typical": (
        [[1.0, 50.0, 1.0, 0.0], [0.0] * 4],
        [1.0, 1.0],
        {"temperature": 1e6, "min_p": 0.99996, "typical_p": 0.4},
    ),
    "greedy ignores min-p and typical": (
        [[1.0, 2.0, 2.0, 0.0], [0.0] * 4],
        [1.0, 1.0],
        {"temperature": 0.0, "min_p": 1.0, "typical_p": 1e-6},
    ),
    "alpha above 1": (
        [[1.0, 2.0, 3.0, 4.0], [0.0] * 4],
        [-1.0, 1.0],
        {"plausible_alpha": 9.0, "plausible_k": 3},
    ),
    "alpha 1 keeps k": (
        [[1.0, 2.0, 3.0, 4.0], [0.0] * 4],
        [-1.0, 1.0],
        {"plausible_alpha": 1.0, "plausible_k": 3, "temperature": 0.0},
    ),
}


@pytest.mark.parametrize("case", EXTREMES)
def test_extremes(case: str, device: str) -> None:
    logits, weights, changed = EXTREMES[case]
    n = 2
    arguments = {
        "logits_SV": torch.tensor(logits),
        "stream_rows_nG": ints(0, 1).expand(n, 2),
        "first_id": 6,
        "weights_nG": torch.tensor([weights] * n),
        "seed_n": torch.arange(n),
        "position_n": torch.arange(n),
    } | as_arguments([OFF | changed] * n)
    arguments = on(device, arguments)
    expected = draw(arguments, implementation="reference")
    assert draw(arguments, implementation="eager") == expected
    assert draw(arguments, implementation="triton") == expected
    assert launch(arguments, tiled=True, config=Config(64, 1)) == expected


@triton.jit
def noise_kernel(words, noise, seed, position, first_counter, C: tl.constexpr):
    """Words and float32 noise of 4 * C ids from a counter on."""
    place = 4 * tl.arange(0, C)
    zeroth, first, second, third = _tile.words_of(
        tl.load(seed), tl.load(first_counter) + tl.arange(0, C), tl.load(position)
    )
    tl.store(words + place, zeroth.to(tl.int64))
    tl.store(words + place + 1, first.to(tl.int64))
    tl.store(words + place + 2, second.to(tl.int64))
    tl.store(words + place + 3, third.to(tl.int64))
    tl.store(noise + place, _tile.noise_of(zeroth))
    tl.store(noise + place + 1, _tile.noise_of(first))
    tl.store(noise + place + 2, _tile.noise_of(second))
    tl.store(noise + place + 3, _tile.noise_of(third))


def noise_of_ids(seed: int, position: int, first_counter: int, C: int, device: str) -> torch.Tensor:
    noise, words = (
        torch.empty(4 * C, device=device),
        torch.empty(4 * C, dtype=torch.int64, device=device),
    )
    one = [torch.tensor([value], device=device) for value in (seed, position)]
    noise_kernel[(1,)](
        words, noise, *one, torch.tensor([first_counter], dtype=torch.int32, device=device), C
    )
    return noise


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (-1, 2**32 - 1), (2**40 + 3, 1023)])
def test_noise_is_the_references(seed: int, position: int, device: str) -> None:
    """8,192 words each, including the smallest and the largest: within the margin of the second
    race."""
    noise = noise_of_ids(seed, position, 1001, 2048, device)
    expected = -(-log_survival(ints(seed), ints(position), 4004, 8192)[0]).log()
    assert float((noise.cpu().double() - expected).abs().max()) < 1e-5


@triton.jit
def noise_of_words_kernel(words, noise, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    tl.store(noise + place, _tile.noise_of(tl.load(words + place).to(tl.uint32)))


def test_noise_of_the_rarest_words(device: str) -> None:
    """u from 2**-25 to 1 - 2**-25, and around the border of the series."""
    border = int(0.0625 * 2**32)
    words = torch.tensor(
        [
            0,
            255,
            256,
            511,
            2**31 - 1,
            2**31,
            2**32 - 1,
            2**32 - 256,
            2**32 - 257,
            border - 1,
            border,
            border + 256,
            1 << 12,
            1 << 20,
            3 << 28,
            7 << 29,
        ],
        dtype=torch.int64,
    )
    noise = torch.empty(16, device=device)
    noise_of_words_kernel[(1,)](words.to(device), noise, 16)
    expected = [-math.log(-math.log1p(-((word >> 8) + 0.5) / 2**24)) for word in words.tolist()]
    assert noise.tolist() == pytest.approx(expected, abs=1e-5)


def test_draws_follow_the_softmax(device: str) -> None:
    """2,048 races of 8 ids each with the kernel's own noise: chi-square."""
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5, -0.5, 1.5, 0.25])
    noise = torch.cat(
        [noise_of_ids(position, position, 0, 2048, device).cpu() for position in range(2)]
    ).view(-1, 8)
    observed = torch.bincount((logits + noise).argmax(dim=1), minlength=8)
    expected = torch.softmax(logits.double(), 0) * len(noise)
    assert float(((observed - expected) ** 2 / expected).sum()) < chi2.ppf(0.9999, df=7)


@pytest.mark.parametrize("tiled", [False, True])
def test_no_choice_gives_minus_one_and_is_refused(
    tiled: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing allowed, all nan, a row and a reference that don't exist (which on CUDA only the
    kernel can see); the last request is valid."""
    logits = torch.tensor([[1.0, 2.0, 3.0], [math.nan] * 3])
    arguments = on(
        device,
        {
            "logits_SV": logits,
            "stream_rows_nG": ints(0, 1, 2, 0, 0)[:, None],
            "weights_nG": torch.ones(5, 1),
            "allowed_from_n": ints(99, 0, 0, 0, 0),
            "seed_n": ints(1, 2, 3, 4, 5),
            "position_n": ints(0, 0, 0, 0, 0),
            "reference_n": ints(0, 0, 0, 1, 0),
            "top_p_n": torch.full((5,), 0.5),
            "top_k_n": ints(2, 2, 2, 2, 1),
            "min_p_n": torch.full((5,), 0.1),
            "typical_p_n": torch.full((5,), 0.5),
            "temperature_n": torch.tensor([1.0, 0, 1, 1, 1]),
        },
    )
    with pytest.raises(ValueError) as caught:
        launch(arguments, tiled=tiled)
    assert tells(caught.value, "guided_sample: request 0 has")
    monkeypatch.setattr(HOST, "refuse_empty", lambda has_choice_n: None)
    assert launch(
        arguments | {"out_log_probability_n": torch.zeros(5, device=device)}, tiled=tiled
    ) == [-1, -1, -1, -1, 2]


def test_what_kernels_do_not_take_is_refused(device: str) -> None:
    arguments = on(
        device,
        {
            "logits_SV": torch.zeros(4, 2).T,
            "stream_rows_nG": ints(0)[None],
            "weights_nG": torch.ones(1, 1),
            "seed_n": ints(0),
            "position_n": ints(0),
        },
    )
    wrong = {
        "logits_SV has strides (1, 2), its rows must be contiguous; next: "
        "logits_SV.contiguous()": {},
        "out_log_probability_n must be contiguous: the kernel writes to it": {
            "logits_SV": torch.zeros(2, 4),
            "stream_rows_nG": ints(0, 0)[:, None],
            "weights_nG": torch.ones(2, 1),
            "seed_n": ints(0, 0),
            "position_n": ints(0, 0),
            "out_log_probability_n": torch.zeros(4)[::2],
        },
        "implementation 'triton' can't run here: logits_SV is torch.float64, but the kernels support "
        "float32, bfloat16 and "
        "float16; next: cast it, or implementation='auto'": {
            "logits_SV": torch.zeros(1, 4, dtype=torch.float64)
        },
    }
    for message, changed in wrong.items():
        with pytest.raises(ValueError) as caught:
            draw(arguments | on(device, changed), implementation="triton")
        assert str(caught.value) == f"guided_sample: {message}"


def test_more_ids_than_masses_can_be_added_up_are_refused() -> None:
    arguments = {
        "logits_SV": torch.zeros(1, 2**22 + 1),
        "stream_rows_nG": ints(0)[None],
        "weights_nG": torch.ones(1, 1),
        "seed_n": ints(0),
        "position_n": ints(0),
    }
    with pytest.raises(ValueError) as caught:
        draw(arguments, implementation="triton")
    assert tells(caught.value, "guided_sample: implementation 'triton' can't ... logits_SV")
