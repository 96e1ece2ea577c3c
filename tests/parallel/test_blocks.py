"""Attention block by block, joined by log-sum-exp, is attention to all keys at once; so are its gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from orchestrator.parallel import blocks
from orchestrator.parallel.blocks import attend_block, block_gradients, merge

HEADS = [(4, 4), (6, 2), (3, 1)]


def tensors(heads: int, kv_heads: int, length: int = 10, keys: int = 10) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, length, 6), (2, kv_heads, keys, 6), (2, kv_heads, keys, 6), (2, heads, length, 6)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.fixture(params=[3, 512], ids=["some rows at a time", "all rows at once"])
def _rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_ROWS", request.param)


@pytest.mark.usefixtures("_rows")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_one_block_is_what_torch_computes_and_differentiates(heads: int, kv_heads: int, causal: bool) -> None:
    q, k, v, grad = tensors(heads, kv_heads)
    want = scaled_dot_product_attention(
        *(x.requires_grad_() for x in (q, k, v)), is_causal=causal, enable_gqa=heads != kv_heads
    )
    want.backward(grad)
    with torch.no_grad():
        mean, total = attend_block(q, k, v, causal)
        found = block_gradients(grad, q, k, v, total, (grad * mean).sum(-1), causal)
    torch.testing.assert_close(mean, want, rtol=0, atol=1e-13)
    for each, parameter in zip(found, (q, k, v), strict=True):
        torch.testing.assert_close(each, parameter.grad, rtol=0, atol=1e-13)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_blocks_in_any_order_are_the_whole(order: tuple[int, ...]) -> None:
    q, k, v, _ = tensors(6, 2, keys=12)
    k *= 20  # scores far apart, as well as beyond what exp takes
    parts = [attend_block(q, k.chunk(3, 2)[at], v.chunk(3, 2)[at], causal=False) for at in order]
    mean, total = parts[0]
    for part in parts[1:]:
        mean, total = merge(mean, total, *part)
    want, want_total = attend_block(q, k, v, causal=False)
    torch.testing.assert_close(mean, want, rtol=0, atol=1e-13)
    torch.testing.assert_close(total, want_total, rtol=1e-13, atol=0)


def test_narrow_inputs_are_summed_wide() -> None:
    q, k, v, _ = (x.bfloat16() for x in tensors(4, 4))
    mean, total = attend_block(q, k, v, causal=True)
    assert mean.dtype == total.dtype == torch.float32
    want, _ = attend_block(q.double(), k.double(), v.double(), causal=True)
    torch.testing.assert_close(mean.double(), want, rtol=0, atol=1e-6)
