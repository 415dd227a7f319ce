"""The bundled attention backends obey the kit; sdpa in half precision; wrong inputs are named."""

from __future__ import annotations

import pytest
import torch

from cm3core.interfaces.attention import AttentionBackend
from cm3core.testing.attention import AttentionContract, dense_attention
from cm3plugins.attention import ReferenceAttentionConfig, SDPAAttentionConfig


class TestSDPAAttention(AttentionContract):
    def make(self) -> AttentionBackend:
        return SDPAAttentionConfig().build()


class TestReferenceAttention(AttentionContract):
    def make(self) -> AttentionBackend:
        return ReferenceAttentionConfig().build()


class TestReferenceAttentionInDouble(AttentionContract):
    dtype = torch.float64
    tolerance = 1e-12

    def make(self) -> AttentionBackend:
        return ReferenceAttentionConfig().build()


def test_worked_example() -> None:
    """Two keys with scores 0 and log 3 (scale 1) weigh 1/4 and 3/4; kv_start 1 leaves the second alone."""
    q = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    k = torch.tensor([0.0, 3.0]).log().nan_to_num(neginf=0.0).view(1, 2, 1, 1)
    v = torch.tensor([8.0, 4.0]).view(1, 2, 1, 1)
    for backend in (SDPAAttentionConfig().build(), ReferenceAttentionConfig().build()):
        out = backend.attend(q, k, v, scale=1.0)
        torch.testing.assert_close(out.flatten(), torch.tensor([8.0, 8.0 / 4 + 4.0 * 3 / 4]))
        out = backend.attend(q, k, v, scale=1.0, kv_start_BT=torch.tensor([[0, 1]]))
        torch.testing.assert_close(out.flatten(), torch.tensor([8.0, 4.0]))


@pytest.mark.parametrize("packed", [False, True])
def test_bfloat16_is_as_good_as_its_rounding(packed: bool) -> None:
    q, k, v = (torch.randn(1, 33, 2, 32, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(3))
    kv_start = torch.arange(33)[None] // 11 * 11 if packed else None
    expected = dense_attention(q.double(), k.double(), v.double(), kv_start)
    for config in (SDPAAttentionConfig(), ReferenceAttentionConfig()):
        out = config.build().attend(q, k, v, kv_start_BT=kv_start)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.double(), expected, atol=2e-2, rtol=2e-2)


def test_wrong_inputs_are_named() -> None:
    q, k = torch.zeros(1, 2, 3, 8), torch.zeros(1, 5, 2, 8)
    backend = ReferenceAttentionConfig().build()
    with pytest.raises(ValueError) as caught:
        backend.attend(q, k, k)
    assert str(caught.value) == "attention: 3 query heads on 2 key heads"
    with pytest.raises(ValueError) as caught:
        backend.attend(q[:, :, :2], k, k)
    assert str(caught.value) == "attention: 2 queries on 5 keys need an offset"
