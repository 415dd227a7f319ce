"""guided_sample's kernels: the same tokens as the oracle and the reference, whatever the path, the
tile and the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3kernels.guided_sample.triton import Config, aot_entries, guided_sample_triton
from guided_sample_calls import PARAMETERS, Arguments, launch, on
from guided_sample_oracle import OFF, as_arguments, draw, ints, random_batch
from profiles import examples

if TYPE_CHECKING:
    from conftest import RunGuarded

#: The interpreter's numpy.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|divide by zero|invalid value) encountered:RuntimeWarning"
)


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


@settings(max_examples=examples(8))
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


@pytest.mark.slow
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
