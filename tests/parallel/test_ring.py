"""Ring attention on real ranks is attention over the whole sequence, forward and backward."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from orchestrator.errors import PlanError
from orchestrator.parallel import ring
from orchestrator.parallel.context import apply_context
from orchestrator.parallel.process import Rank
from orchestrator.parallel.ring import ring_attention
from orchestrator.spec.job import JobSpec
from orchestrator.testing.ranks import run_ranks
from orchestrator.train.engine import build_engine
from orchestrator.train.step import Stepper

CASES = [(heads, kv_heads, causal) for heads, kv_heads in ((3, 3), (6, 2), (4, 1)) for causal in (True, False)]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5}


def differences(rank: int, world_size: int) -> dict[str, float]:
    """Return the largest difference of output and gradients from one process, for every case and type."""
    return {
        f"{case} {dtype}": _difference(rank, world_size, *case, dtype) / tolerance
        for case in CASES
        for dtype, tolerance in TOLERANCE.items()
    }


def _difference(rank: int, size: int, heads: int, kv_heads: int, causal: bool, dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(0)
    wide = [torch.randn(2, n, 5 * size, 6, generator=generator).double() for n in (heads, kv_heads, kv_heads, heads)]
    *whole, grad = [x.requires_grad_() for x in wide]
    want = scaled_dot_product_attention(*whole, is_causal=causal, enable_gqa=True)
    want.backward(grad.detach())
    mine = [x.detach().chunk(size, 2)[rank].to(dtype).requires_grad_() for x in whole]
    got = ring_attention(*mine, causal=causal, group=dist.group.WORLD)
    got.backward(grad.detach().chunk(size, 2)[rank].to(dtype))
    pairs = [(got, want), *((mine_.grad, whole_.grad) for mine_, whole_ in zip(mine, whole, strict=True))]
    return max(float((a.double() - b.chunk(size, 2)[rank]).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("world_size", [2, 3])
def test_it_is_attention_over_the_whole_sequence(world_size: int) -> None:
    for found in run_ranks(differences, world_size):
        assert {case: value for case, value in found.items() if not value <= 1} == {}


def bf16_errors(rank: int, world_size: int) -> list[list[float]]:
    """Return how far (torch's own kernel, the ring) are from float64, for the output and every gradient, in bf16."""
    generator = torch.Generator().manual_seed(0)
    *given, grad = (torch.randn(2, 4, 32 * world_size, 16, generator=generator).bfloat16() for _ in range(4))

    def piece(x: torch.Tensor) -> torch.Tensor:
        return x.chunk(world_size, 2)[rank].detach()

    def results(y: torch.Tensor, inputs: list[torch.Tensor], slope: torch.Tensor) -> list[torch.Tensor]:
        return [y.detach(), *torch.autograd.grad(y, inputs, slope)]

    double, half = ([x.to(dtype, copy=True).requires_grad_() for x in given] for dtype in (torch.float64, grad.dtype))
    exact = results(scaled_dot_product_attention(*double, is_causal=True), double, grad.double())
    theirs = results(scaled_dot_product_attention(*half, is_causal=True), half, grad)
    mine = [piece(x).requires_grad_() for x in given]
    ours = results(ring_attention(*mine, causal=True, group=dist.group.WORLD), mine, piece(grad))
    assert all(x.dtype == torch.bfloat16 for x in ours)
    return [
        [float((x.double() - piece(y)).norm() / piece(y).norm()) for x, y in zip(found, exact, strict=True)]
        for found in ([piece(x) for x in theirs], ours)
    ]


def test_in_bf16_it_is_as_near_to_float64_as_torchs_own_kernel() -> None:
    for theirs, ours in run_ranks(bf16_errors, 2):
        assert all(mine < 1.2 * other for mine, other in zip(ours, theirs, strict=True)), (ours, theirs)


def counts(rank: int, world_size: int, mode: str) -> dict[str, int]:
    """Take a step of two layers and count blocks computed and tensors sent by this rank."""
    seen: Counter[str] = Counter()
    for name in ("attend_block", "block_gradients"):
        _count(seen, name)
    original = dist.batch_isend_irecv

    def send(ops: list[Any]) -> Any:
        seen["sent"] += sum(op.op is dist.isend for op in ops)
        return original(ops)

    dist.batch_isend_irecv = send
    job = {
        "model": {"use": "transformer", "seq_len": 6, "dim": 16, "layers": 2, "heads": 4, "kv_heads": 2},
        "data": {"use": "text", "corpus": "python", "seq_len": 6, "max_bytes": 50_000},
        "train": {"steps": 9, "batch_size": 4, "activation_checkpoint": mode},
        "parallel": {"replicate": 1, "context": 3, "context_attention": "ring"},
    }
    Stepper(build_engine(JobSpec.model_validate(job), Rank(rank, world_size, rank))).step(0)
    return dict(seen)


def _count(seen: Counter[str], name: str) -> None:
    original = getattr(ring, name)

    def counted(*args: Any, **rest: Any) -> Any:
        seen[name] += 1
        return original(*args, **rest)

    setattr(ring, name, counted)


def test_causal_ranks_compute_nothing_that_is_masked_and_send_on_only_what_is_needed() -> None:
    found = run_ranks(counts, 3, "none")
    assert [each["attend_block"] for each in found] == [2 * 1, 2 * 2, 2 * 3]
    assert [each["block_gradients"] for each in found] == [2 * 1, 2 * 2, 2 * 3]
    # Keys and values once per pass where there is a rank behind; their gradients all the way home.
    assert [each["sent"] for each in found] == [2 * (4 + 6), 2 * (8 + 6), 2 * 6]


@pytest.mark.parametrize(("mode", "times"), [("full", 2), ("selective", 1)])
def test_selective_recomputation_keeps_what_came_out_of_the_ring(mode: str, times: int) -> None:
    assert [each["attend_block"] for each in run_ranks(counts, 3, mode)] == [2 * times * n for n in (1, 2, 3)]


def test_attention_that_does_not_say_whether_it_is_causal_is_refused() -> None:
    layer = nn.Module()
    layer.attend, layer.rotary = nn.Identity(), nn.Identity()
    model = nn.ModuleDict({"block": layer})
    with pytest.raises(PlanError, match=r"block\.attend has no `causal`"):
        apply_context(model, ["block"], None, "ring")  # type: ignore[arg-type]
