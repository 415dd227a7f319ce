"""Products of few rows and a decoder's step: by hand, against plain torch, and what they refuse."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cm3kernels import few_rows
from cm3kernels.few_rows import DecoderStep, FewRowsProduct, Unavailable, native

needs_instructions = pytest.mark.skipif(
    native.refusal() is not None, reason=f"not compiled here: {native.refusal()}"
)
PRECISIONS = ("fp32", "bf16", "int8")


@pytest.fixture(scope="module")
def folder(compiled: Path) -> Path:
    return compiled


def rounded(x: Tensor, precision: str) -> Tensor:
    """x as a product of this precision reads it, float64; codes of a row times their scale."""
    if precision == "bf16":
        return x.bfloat16().double()
    if precision == "int8":
        scale = x.abs().amax(1, keepdim=True).double().clamp(min=1e-30) / 127
        return (x.double() / scale).round() * scale
    return x.double()


@needs_instructions
@pytest.mark.parametrize("precision", PRECISIONS)
def test_by_hand(folder: Path, precision: str) -> None:
    # whole numbers up to 127, with 127 in every row: no precision rounds them
    weight = torch.tensor([[1.0, 2.0, 127.0], [127.0, -1.0, 1.0]])
    x = torch.tensor([[1.0, 127.0, 1.0], [127.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    product = FewRowsProduct(weight, precision, folder)
    exact = torch.tensor([[382.0, 1.0], [0.0, 16128.0], [0.0, 0.0]])
    torch.testing.assert_close(product(x), exact, rtol=1e-6, atol=1e-3)
    assert torch.equal(FewRowsProduct(weight, precision, folder, "relu")(-x)[1], torch.zeros(2))
    total = torch.ones(3, 2)
    product.add_to(total, x)
    torch.testing.assert_close(total, exact + 1, rtol=1e-6, atol=1e-3)


@needs_instructions
@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
)
@given(
    M=st.integers(1, 37),
    K=st.integers(1, 70),
    V=st.integers(1, 90),
    precision=st.sampled_from(PRECISIONS),
    activation=st.sampled_from([None, "relu", "gelu"]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_any_shape(
    folder: Path,
    M: int,
    K: int,
    V: int,
    precision: str,
    activation: str | None,
    threads: int,
    seed: int,
) -> None:
    """Equal to float64 products of what was rounded; a row's bits depend on nothing else."""
    generator = torch.Generator().manual_seed(seed)
    weight, x = (torch.randn(rows, K, generator=generator) for rows in (V, M))
    product = FewRowsProduct(weight, precision, folder, activation)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        together = product(x)
        torch.set_num_threads(1)
        alone = torch.cat([product(x[m : m + 1]) for m in range(M)])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, alone)
    exact = rounded(x, precision) @ rounded(weight, precision).T
    exact = exact if activation is None else getattr(F, activation)(exact)
    # int8: a code that lies between two may be rounded either way
    tolerance = 0.05 if precision == "int8" else 2e-5
    torch.testing.assert_close(together.double(), exact, rtol=tolerance, atol=tolerance)


def plain_step(
    x: Tensor,
    layers: list[tuple[Tensor, ...]],
    norms: list[tuple[Tensor, Tensor] | None],
    keys: Tensor,
    values: Tensor,
    runs: list[list[range]],
    num_heads: int,
    activation: str,
) -> Tensor:
    """`DecoderStep` in plain torch, float64."""
    M, E = x.shape
    x = x.double()
    for number, ((qkv, out, up, down), pair) in enumerate(zip(layers, norms, strict=True)):
        three = F.linear(F.layer_norm(x, (E,)), qkv.double()).view(M, 3, num_heads, -1)
        q, k, v = three.unbind(1)
        if pair is not None:
            q, k = (
                F.layer_norm(one, one.shape[-1:], weight.double())
                for one, weight in zip((q, k), pair, strict=True)
            )
        seen = torch.empty_like(q)
        for row, own in enumerate(runs):
            slots = [slot for run in own for slot in run]
            keys[number, :, slots[-1]], values[number, :, slots[-1]] = (
                k[row].float(),
                v[row].float(),
            )
            own_keys, own_values = (memory[number][:, slots].double() for memory in (keys, values))
            own_keys[:, -1], own_values[:, -1] = k[row], v[row]
            attended = F.scaled_dot_product_attention(q[row][:, None], own_keys, own_values)
            seen[row] = attended[:, 0]
        x = x + F.linear(seen.flatten(1), out.double())
        inner = getattr(F, activation)(F.linear(F.layer_norm(x, (E,)), up.double()))
        x = x + F.linear(inner, down.double())
    return F.layer_norm(x, (E,))


@needs_instructions
@pytest.mark.parametrize("head_dim", [16, 48, 64, 128])
@pytest.mark.parametrize("with_norms", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_step_is_the_layers(
    folder: Path, head_dim: int, with_norms: bool, activation: str
) -> None:
    """Rows of different lengths; two of them share a run of slots."""
    generator = torch.Generator().manual_seed(head_dim)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    heads, num_layers, slots = 2, 2, 40
    E, F_ = heads * head_dim, 3 * head_dim
    shapes = ((3 * E, E), (E, E), (F_, E), (E, F_))
    layers = [tuple(normal(V, K) * K**-0.5 for V, K in shapes) for _ in range(num_layers)]
    norms = [(normal(head_dim), normal(head_dim)) if with_norms else None for _ in layers]
    keys, values = (normal(num_layers, heads, slots, head_dim) for _ in range(2))
    runs = [[range(30, 35), range(4)], [range(30, 35), range(10, 13)], [range(20, 21)]]
    x = normal(3, E)
    expected_keys, expected_values = keys.clone(), values.clone()
    expected = plain_step(x, layers, norms, expected_keys, expected_values, runs, heads, activation)
    step = DecoderStep(
        [
            (
                FewRowsProduct(qkv, "fp32", folder),
                FewRowsProduct(out, "fp32", folder),
                FewRowsProduct(up, "fp32", folder, activation),
                FewRowsProduct(down, "fp32", folder),
            )
            for qkv, out, up, down in layers
        ],
        norms,
        heads,
    )
    found = step(x, keys, values, runs)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(keys, expected_keys, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(values, expected_values, rtol=1e-4, atol=1e-4)


@needs_instructions
@pytest.mark.parametrize("precision", PRECISIONS)
def test_tokens_behind_each_other_have_the_bits_of_one_at_a_time(
    folder: Path, precision: str
) -> None:
    generator = torch.Generator().manual_seed(3)
    heads, num_layers, slots, E, new = 4, 2, 12, 64, 7
    step = DecoderStep(
        [
            tuple(
                FewRowsProduct(torch.randn(V, K, generator=generator) * K**-0.5, precision, folder)
                for V, K in ((3 * E, E), (E, E), (E, E), (E, E))
            )
            for _ in range(num_layers)
        ],
        [(torch.ones(E // heads), torch.ones(E // heads))] * num_layers,
        heads,
    )
    memories = [torch.randn(num_layers, heads, slots, E // heads, generator=generator)] * 2
    x = torch.randn(new, E, generator=generator)
    runs = [[range(9, 12), range(1 + place)] for place in range(new)]
    expected, found = ([memory.clone() for memory in memories] for _ in range(2))
    one_by_one = [
        step(one[None].clone(), *expected, [own]) for one, own in zip(x, runs, strict=True)
    ]
    together = step(x.clone(), *found, runs, sees_new=True)
    assert torch.equal(together, torch.cat(one_by_one))
    assert all(map(torch.equal, found, expected))


@needs_instructions
def test_what_is_refused(folder: Path) -> None:
    weight = torch.ones(4, 4)
    for arguments, message in (
        ((weight, "int2"), "few_rows: precision 'int2' is not one of bf16, int8, fp32"),
        (
            (weight[0], "bf16"),
            "weight is [4] torch.float32 on cpu, must be floating [outputs, inputs]",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            FewRowsProduct(*arguments, folder)
    with pytest.raises(ValueError, match="activation 'silu' is not None, 'relu' or 'gelu'"):
        FewRowsProduct(weight, "bf16", folder, "silu")
    product = FewRowsProduct(weight, "bf16", folder)
    with pytest.raises(ValueError, match=re.escape("x is [2, 3], must be [rows, 4]")):
        product(torch.ones(2, 3))
    with pytest.raises(ValueError, match=re.escape("total is torch.float32 [1, 4], must be")):
        product.add_to(torch.zeros(1, 4), torch.ones(2, 4))
    with pytest.raises(ValueError, match="heads have 4 dimensions, must be a multiple of 16"):
        DecoderStep([(product,) * 4], [None], 1)


@needs_instructions
@pytest.mark.parametrize("precision", PRECISIONS)
def test_tiles_and_vectors_sum_the_same(folder: Path, precision: str) -> None:
    """Both ways of adding, where the CPU has tiles: whole numbers are equal, others up to the order of their sums."""
    compiled = few_rows.library(folder)
    if not compiled.cm3_tiles(1):
        pytest.skip("this CPU has no tiles (AMX), or the system doesn't let this process use them")
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(90, 130, generator=generator), torch.randn(37, 130, generator=generator)
    product = FewRowsProduct(weight, precision, folder)
    try:
        with_tiles = product(x)
        compiled.cm3_tiles(0)
        without = product(x)
    finally:
        compiled.cm3_tiles(1)
    if precision == "bf16":
        assert not torch.equal(with_tiles, without), "the tiles were not used"
        torch.testing.assert_close(with_tiles, without, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(with_tiles, without)


@needs_instructions
@pytest.mark.parametrize("precision", PRECISIONS)
def test_vectors_by_hand_where_there_are_tiles(folder: Path, precision: str) -> None:
    compiled = few_rows.library(folder)
    compiled.cm3_tiles(0)
    try:
        test_by_hand(folder, precision)
    finally:
        compiled.cm3_tiles(1)


@needs_instructions
def test_a_process_that_has_it_compiles_it_in_no_other_folder(folder: Path, tmp_path: Path) -> None:
    assert few_rows.library(folder) is few_rows.library(tmp_path / "another")
    assert not (tmp_path / "another").exists()


@needs_instructions
def test_a_compiler_that_fails_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_in_use", [])  # a process that has it asks no compiler
    compiler = tmp_path / "cc"
    for script, reason in (
        ("exit 1", "the compiler .* failed: no message"),
        (
            'case "$1" in --version) ;; *) echo "x.cpp:1: error: no header" >&2; exit 1;; esac',
            "failed: x.cpp:1: error: no header",
        ),
    ):
        compiler.write_text(f"#!/bin/sh\n{script}\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        for _ in range(2):  # the second time it is remembered
            with pytest.raises(Unavailable, match=reason):
                few_rows.library(tmp_path / reason[:6])
    assert not list(tmp_path.glob("*/few_rows*"))
    monkeypatch.setenv("CXX", str(tmp_path / "absent"))
    with pytest.raises(Unavailable, match="doesn't run"):
        few_rows.library(tmp_path / "made")


def test_it_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.SWITCH, "0")
    with pytest.raises(Unavailable, match=r"^CM3_NATIVE is 0$"):
        few_rows.library(tmp_path)
