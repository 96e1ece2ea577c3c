"""The context axis: every rank holds a piece of each sequence, and attention brings the pieces together.

Two ways. `heads`, all-to-all after Jacobs et al., 2023 (Ulysses): a rank that holds a piece of the sequence for all
heads comes to hold the whole sequence for some heads, attends, and goes back. `ring` (`parallel.ring`): keys and values
go round, for any number of heads. Everything but attention works on single positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.errors import PlanError
from orchestrator.parallel.ring import ring_attention

_HEADS, _SEQUENCE = 1, 2  # dims of [B, H, L, E]


class _Trade(torch.autograd.Function):
    """Cuts `cut` over ranks and joins what comes along `join`; the gradient goes the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cut: int, join: int, group: dist.ProcessGroup) -> Tensor:
        ctx.cut, ctx.join, ctx.group = cut, join, group
        return _trade(x, cut, join, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _trade(grad, ctx.join, ctx.cut, ctx.group), None, None, None


def _trade(x: Tensor, cut: int, join: int, group: dist.ProcessGroup) -> Tensor:
    size = dist.get_world_size(group)
    pieces = torch.stack([piece.contiguous() for piece in x.chunk(size, cut)])
    arrived = torch.empty_like(pieces)
    dist.all_to_all_single(arrived, pieces, group=group)
    return torch.cat(list(arrived), join)


def apply_context(
    module: nn.Module, attention_layers: Iterable[str], group: dist.ProcessGroup, way: str = "heads"
) -> None:
    """Make the named attention layers work on pieces of the sequence, in place; `way` is heads or ring.

    Each has `attend(q, k, v)` over [B, heads, L, E] and `rotary` with a `start` position; `ring` takes the place of
    `attend`, reads its `causal` and scales scores by 1 / sqrt(E). Raises PlanError when the heads at hand do not divide
    over the group, or when `attend` does not say whether it is causal.
    """
    present = dict(module.named_modules())
    for name in attention_layers:
        layer = present.get(name)
        if layer is None:  # on another pipeline stage
            continue
        attend: Any = layer.attend
        attend.forward = _round(attend, name, group) if way == "ring" else _over_heads(attend.forward, group)
        rotary: Any = layer.rotary
        if hasattr(rotary, "start"):
            rotary.forward = _from_own_place(rotary, rotary.forward, group)


def _round(attend: Any, name: str, group: dist.ProcessGroup) -> Callable[..., Tensor]:
    causal = getattr(attend, "causal", None)
    if not isinstance(causal, bool):
        raise PlanError(
            f"{name}.attend has no `causal` (True or False), so it is not known what ring attention is to compute",
            hint="set parallel.context_attention=heads, or say it in the model (docs/models.md)",
        )
    return partial(ring_attention, causal=causal, group=group)


def _over_heads(attend: Callable[..., Tensor], group: dist.ProcessGroup) -> Callable[..., Tensor]:
    def forward(q_BHLE: Tensor, k_BGLE: Tensor, v_BGLE: Tensor) -> Tensor:
        whole = [_to_heads(x, group) for x in (q_BHLE, k_BGLE, v_BGLE)]
        y: Tensor = _Trade.apply(attend(*whole), _SEQUENCE, _HEADS, group)  # type: ignore[no-untyped-call]
        return y

    return forward


def _to_heads(x_BHLE: Tensor, group: dist.ProcessGroup) -> Tensor:
    size = dist.get_world_size(group)
    if x_BHLE.shape[_HEADS] % size:
        raise PlanError(
            f"{x_BHLE.shape[_HEADS]} heads at hand do not divide over parallel.context = {size}",
            hint="set parallel.context_attention=ring, or lower parallel.context or parallel.tensor",
        )
    result: Tensor = _Trade.apply(x_BHLE, _HEADS, _SEQUENCE, group)  # type: ignore[no-untyped-call]
    return result


def _from_own_place(
    rotary: Any, turn: Callable[[Tensor], Tensor], group: dist.ProcessGroup
) -> Callable[[Tensor], Tensor]:
    def forward(x_BHLE: Tensor) -> Tensor:
        rotary.start = dist.get_rank(group) * x_BHLE.shape[_SEQUENCE]
        return turn(x_BHLE)

    return forward


def own_piece(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return this rank's piece of a batch of sequences [B, L, ...]."""
    return x.chunk(dist.get_world_size(group), 1)[dist.get_rank(group)].contiguous()
