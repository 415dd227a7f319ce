"""guided_sample's kernels: the same tokens as the oracle and the reference, whatever the path, the
tile and the batch."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from cm3kernels.guided_sample import _tile
from cm3kernels.guided_sample.reference import log_survival
from cm3kernels.guided_sample.triton import Config, aot_entries, guided_sample_triton
from guided_sample_oracle import OFF, as_arguments, draw, ints, random_batch

if TYPE_CHECKING:
    from conftest import RunGuarded

Arguments = dict[str, Any]
HOST = sys.modules["cm3kernels.guided_sample.triton"]
PARAMETERS = (
    "reference_n",
    "allowed_nV",
    "allowed_bits_nW",
    "allowed_from_n",
    "allowed_to_n",
    "temperature_n",
    "top_k_n",
    "top_p_n",
    "plausible_top_k_n",
    "plausible_top_p_n",
    "plausible_alpha_n",
    "plausible_k_n",
    "min_p_n",
    "typical_p_n",
    "seed_n",
    "position_n",
)
#: The interpreter's numpy.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|divide by zero|invalid value) encountered:RuntimeWarning"
)


def on(device: str, arguments: Arguments) -> Arguments:
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}


def launch(arguments: Arguments, **host: Any) -> list[int]:
    """The host function itself, with a given path, tile or window."""
    given = {name: arguments.get(name) for name in PARAMETERS}
    tokens: list[int] = guided_sample_triton(
        arguments["logits_SV"],
        arguments["stream_rows_nG"],
        arguments["weights_nG"],
        first_id=arguments.get("first_id", 0),
        out_tokens_S=arguments.get("out_tokens_S"),
        out_log_probability_n=arguments.get("out_log_probability_n"),
        debug=True,
        **given,
        **host,
    ).tolist()
    return tokens


def some_of(arguments: Arguments, index: list[int]) -> Arguments:
    """The same batch restricted to some requests, in that order."""
    return {
        k: v[index] if isinstance(v, torch.Tensor) and k != "logits_SV" else v
        for k, v in arguments.items()
    }


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize(("V", "G"), [(7, 1), (64, 2), (1000, 3)])
def test_tokens_equal_the_oracles(V: int, G: int, rough: bool, device: str) -> None:
    n = 6 if device == "cpu" else 300
    arguments, expected = random_batch(
        np.random.default_rng([G, V, rough]), n=n, G=G, V=V, rough=rough
    )
    log_probability_n = torch.zeros(n, device=device)
    arguments = on(device, arguments)
    assert (
        draw(arguments, implementation="triton", out_log_probability_n=log_probability_n)
        == expected
    )
    assert log_probability_n.tolist() == pytest.approx(arguments["log_probabilities"], abs=1e-5)


@pytest.mark.parametrize(("rough", "first_id"), [(False, 56320), (True, 56319)])
def test_image_vocabulary(rough: bool, first_id: int, device: str) -> None:
    """8,192 ids, in one block even where they don't start at a multiple of 4."""
    n = 2 if device == "cpu" else 200
    arguments, expected = random_batch(
        np.random.default_rng([9, rough]), n=n, G=2, V=8192, rough=rough, first_id=first_id
    )
    assert (
        launch(on(device, arguments), tiled=False)
        == draw(on(device, arguments), implementation="triton")
        == expected
    )


@settings(max_examples=8)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 2),
    G=st.integers(1, 3),
    V=st.integers(1, 70),
    tiled=st.booleans(),
)
def test_any_batch_equals_the_oracle(seed: int, n: int, G: int, V: int, tiled: bool) -> None:
    arguments, expected = random_batch(np.random.default_rng(seed), n, G, V, rough=True)
    assert launch(arguments, tiled=tiled, config=Config(64, 1) if tiled else None) == expected


@pytest.mark.parametrize("first_id", [0, 1, 4095, 65534])
def test_paths_and_tiles_give_the_same_tokens(first_id: int, device: str) -> None:
    """One block or tiles of three sizes: tokens and log-probabilities to the bit."""
    arguments, expected = random_batch(
        np.random.default_rng(first_id), n=2, G=2, V=130, rough=True, first_id=first_id
    )
    arguments, runs = on(device, arguments), []
    for host in (
        {},
        {"config": Config(512, 4)},
        *({"tiled": True, "config": Config(block, 2)} for block in (64, 256)),
    ):
        log_probability_n = torch.zeros(2, device=device)
        runs.append(
            (
                launch(arguments | {"out_log_probability_n": log_probability_n}, **host),
                log_probability_n.tolist(),
            )
        )
    assert runs == [runs[0]] * 4
    assert runs[0][0] == expected


def test_place_in_the_batch_does_not_matter(device: str) -> None:
    arguments, expected = random_batch(np.random.default_rng(5), n=8, G=2, V=96)
    arguments = on(device, arguments)
    assert launch(arguments) == expected
    order = [6, 0, 7, 3]
    assert launch(some_of(arguments, order)) == [expected[i] for i in order]
    assert launch(some_of(arguments, order[:2]), tiled=True, config=Config(64, 2)) == [
        expected[i] for i in order[:2]
    ]
    assert launch(some_of(arguments, [5])) == [expected[5]]


def test_the_window_of_the_second_race_does_not_matter(device: str) -> None:
    """With a window this wide every kept id races in float64, one by one; with the shipped one,
    almost never more than one."""
    arguments, _ = random_batch(np.random.default_rng(77), n=4, G=2, V=40)
    quiet = {
        "top_p_n": None,
        "plausible_top_p_n": None,
        "plausible_alpha_n": None,
        "plausible_top_k_n": None,
        "top_k_n": None,
    }
    arguments = on(device, arguments | quiet)
    assert (
        launch(arguments, window=64.0)
        == launch(arguments)
        == draw(arguments, implementation="reference")
    )


def test_half_top_p_half_cd_k(device: str) -> None:
    """One prompt, half its candidates by guidance and top-p, half by CD-K: each draws what it would
    draw alone."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 64, generator=generator) * 2
    rows, n = torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3]]), 4
    guided, cd_k = OFF | {"top_p": 0.9}, OFF | {"plausible_alpha": 0.1, "plausible_k": 4}
    weights = torch.tensor([[3.0, -2.0]] * 2 + [[1.25, -2.0]] * 2)
    arguments = on(
        device,
        {
            "logits_SV": logits,
            "stream_rows_nG": rows,
            "weights_nG": weights,
            "seed_n": ints(4, 5, 4, 5),
            "position_n": ints(8, 8, 8, 8),
        }
        | as_arguments([guided] * 2 + [cd_k] * 2),
    )
    together = launch(arguments)
    assert together == draw(arguments, implementation="reference")
    assert [launch(some_of(arguments, [i]))[0] for i in range(n)] == together


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
def test_tokens_reach_the_rows_of_their_streams(tiled: bool, device: str) -> None:
    everywhere = torch.full((6,), -7, device=device)
    arguments = on(
        device,
        {
            "logits_SV": torch.eye(6)[:, :4].contiguous(),
            "stream_rows_nG": torch.tensor([[4, 0], [2, -1], [1, 5]]),
            "weights_nG": torch.ones(3, 2),
            "seed_n": ints(0, 0, 0),
            "position_n": ints(0, 0, 0),
            "first_id": 20,
            "temperature_n": torch.zeros(3),
        },
    )
    assert launch(arguments | {"out_tokens_S": everywhere}, tiled=tiled) == [20, 22, 21]
    assert everywhere.tolist() == [20, 21, 22, -7, 20, 21]


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
    assert (
        str(caught.value)
        == "guided_sample: request 0 has no id that is both allowed and has a finite logit"
    )
    monkeypatch.setattr(HOST, "refuse_empty", lambda has_choice_n: None)
    assert launch(
        arguments | {"out_log_probability_n": torch.zeros(5, device=device)}, tiled=tiled
    ) == [-1, -1, -1, -1, 2]


def test_half_precision_settings_and_strided_arguments(device: str) -> None:
    """Rows of a wider tensor, expanded weights, bfloat16 settings: read as they are."""
    logits = torch.randn(
        2, 100, generator=torch.Generator().manual_seed(1), dtype=torch.float32
    ).half()[:, 10:60]
    arguments = on(
        device,
        {
            "logits_SV": logits,
            "stream_rows_nG": ints(0, 1).expand(3, 2),
            "seed_n": ints(1, 2, 3),
            "weights_nG": torch.tensor([2.0, -1.0], dtype=torch.bfloat16).expand(3, 2),
            "position_n": ints(7).expand(3),
            "top_p_n": torch.tensor([0.5, 0.75, 1.0], dtype=torch.bfloat16),
        },
    )
    assert draw(arguments, implementation="triton") == draw(arguments, implementation="reference")


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
        "implementation 'triton' can't run here: logits_SV is torch.float64, the kernels support "
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
    assert str(caught.value) == (
        "guided_sample: implementation 'triton' can't run here: logits_SV has 4194305 ids, the "
        "kernels "
        "support 4194304; next: implementation='auto'"
    )


def test_every_configuration_is_in_the_budget() -> None:
    """Every kernel that is launched, and the tiles that image vocabularies of 1,024, 2,048 and
    8,192 codes get."""
    entries = {entry.name: entry for entry in aot_entries()}
    names = {"one_block_kernel", "mix_kernel", "select_kernel", "race_kernel", "merge_kernel"}
    assert {entry.kernel.__name__ for entry in entries.values()} == names
    assert {entry.constexprs["C"] for name, entry in entries.items() if "one_block" in name} >= {
        256,
        512,
        2048,
    }


GUARDED = """
from cm3kernels import guided_sample
from cm3kernels.guided_sample.triton import Config, guided_sample_triton
V, n = 37, 2
off = dict.fromkeys(
    ("plausible_alpha_n", "plausible_k_n", "allowed_from_n", "allowed_to_n", "reference_n")
)
for side in ("after", "before"):
    g = lambda tensor: guarded(tensor, side)
    for tiled in (False, True):
        tokens = guided_sample_triton(
            g(torch.randn(3, V)), g(torch.tensor([[0, 1], [2, -1]])), g(torch.ones(n, 2)),
            allowed_nV=g(torch.ones(n, V).bool()),
            allowed_bits_nW=g(torch.full((n, 2), -1, dtype=torch.int32)),
            out_tokens_S=g(torch.zeros(3, dtype=torch.int64)),
            out_log_probability_n=g(torch.zeros(n)),
            first_id=6, debug=True, tiled=tiled, config=Config(64, 1),
            temperature_n=g(torch.ones(n)),
            top_k_n=g(torch.tensor([5, 9])), top_p_n=g(torch.full((n,), 0.9)),
            plausible_top_k_n=g(torch.tensor([20, 0])),
            plausible_top_p_n=g(torch.full((n,), 0.99)),
            min_p_n=g(torch.full((n,), 0.01)), typical_p_n=g(torch.full((n,), 0.8)),
            seed_n=g(torch.arange(n)), position_n=g(torch.arange(n)), **off)
        assert ((tokens >= 6) & (tokens < 6 + V)).all()
print("inside")
"""


def test_kernels_stay_inside_their_tensors(run_guarded: RunGuarded) -> None:
    done = run_guarded(GUARDED)
    assert done.stdout.strip() == "inside", f"{done.returncode}\n{done.stderr[-2000:]}"


@pytest.mark.gpu
def test_a_cuda_graph_replays_with_new_logits(device: str) -> None:
    """The host function never waits for the device, so a graph can capture it; both paths."""
    if device == "cpu":
        pytest.skip("needs a CUDA device: graphs are CUDA's")
    for tiled in (False, True):
        arguments = on(device, random_batch(np.random.default_rng(1), n=8, G=2, V=1000)[0])
        positional = [arguments[k] for k in ("logits_SV", "stream_rows_nG", "weights_nG")]
        given: dict[str, Any] = {name: arguments.get(name) for name in PARAMETERS} | {
            "first_id": arguments["first_id"],
            "debug": False,
            "out_tokens_S": None,
            "out_log_probability_n": None,
            "tiled": tiled,
        }
        guided_sample_triton(*positional, **given)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            tokens = guided_sample_triton(*positional, **given)
        for _ in range(3):
            arguments["logits_SV"].copy_(torch.randn_like(arguments["logits_SV"].float()))
            graph.replay()
            assert tokens.tolist() == draw(arguments, implementation="reference")
