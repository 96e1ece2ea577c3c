"""Ring attention: queries stay, keys and values go round the ranks that share a sequence. Called by `context`.

After Liu et al. 2023: each rank attends with its own queries to the piece at hand while that piece is on its way to the
next rank. Partial results are joined by their log-sum-exp (Milakov & Gimelshein 2018); the backward pass sends keys and
values round again, with their gradients behind them, and takes softmax shares from the saved log-sum-exp (Dao 2023,
FlashAttention-2). With causal attention a piece stops at the last rank, and no rank computes what is masked as a whole.
B batch, H heads, G heads of keys and values, L sequence at hand, E width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _resolve_process_group

from orchestrator.parallel.blocks import attend_block, block_gradients, merge, widened


class _Ring:
    """This rank's place among those that share a sequence; piece r of it is rank r's own.

    Every rank posts its messages in the same rounds and order, so they pair up without tags (nccl has none).
    """

    def __init__(self, group_name: Any, causal: bool) -> None:
        self.group = _resolve_process_group(group_name)
        self.rank, self.size, self.causal = dist.get_rank(self.group), dist.get_world_size(self.group), causal

    def sees(self, step: int) -> bool:
        """Say whether the piece that this rank has in round `step` holds anything that its queries attend to."""
        return not self.causal or step <= self.rank

    def pieces(self, own: list[Tensor]) -> Iterator[list[Tensor]]:
        """Yield what this rank attends to, its own first; the next one travels while the caller computes."""
        held = own
        for step in range(self.size):
            if not self.sees(step):
                return
            last = step == self.size - 1
            sends = self.rank < self.size - 1 if self.causal else not last
            coming = self.start(held, sends=sends, receives=not last and self.sees(step + 1))
            yield held
            held = coming.wait()

    def start(self, tensors: list[Tensor], *, sends: bool = True, receives: bool = True) -> _Coming:
        """Begin to send these to the next rank and to receive the like from the one before."""
        arriving = [torch.empty_like(each) for each in tensors] if receives else []
        after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        out = [dist.P2POp(dist.isend, each, group=self.group, group_peer=after) for each in tensors if sends]
        into = [dist.P2POp(dist.irecv, each, group=self.group, group_peer=before) for each in arriving]
        works = dist.batch_isend_irecv([*out, *into]) if out or into else []
        return _Coming(arriving, tensors, works)


class _Coming:
    """Tensors on their way. What is sent is kept until it has gone."""

    def __init__(self, arriving: list[Tensor], sent: list[Tensor], works: list[dist.Work]) -> None:
        self._arriving, self._sent, self._works = arriving, sent, works

    def wait(self) -> list[Tensor]:
        """Return what has arrived."""
        for work in self._works:
            work.wait()
        return self._arriving


def ring_attention(q_BHLE: Tensor, k_BGLE: Tensor, v_BGLE: Tensor, causal: bool, group: dist.ProcessGroup) -> Tensor:
    """Return this rank's piece [B, H, L, E] of scaled dot-product attention over the whole sequence. Collective."""
    kind = q_BHLE.device.type
    # Under autocast torch's own attention takes its inputs in the narrow type, whatever they come in.
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else q_BHLE.dtype
    q_BHLE, k_BGLE, v_BGLE = (x.to(dtype).contiguous() for x in (q_BHLE, k_BGLE, v_BGLE))
    result: Tensor = _attend(q_BHLE, k_BGLE, v_BGLE, causal, group.group_name)[0]
    return result


# An operation of its own in torch's eyes: compilation goes round it, and selective recomputation can keep its outcome.
@torch.library.custom_op("orchestrator::ring_attention", mutates_args=())
def _attend(q_BHLE: Tensor, k_BGLE: Tensor, v_BGLE: Tensor, causal: bool, group: str) -> tuple[Tensor, Tensor]:
    """Return (this rank's piece of the result, the log-sum-exp of its scores over the whole sequence, wide)."""
    with torch.autocast(q_BHLE.device.type, enabled=False):
        pieces = _Ring(group, causal).pieces([k_BGLE, v_BGLE])
        own_k, own_v = next(pieces)
        mean_BHLE, total_BHL = attend_block(q_BHLE, own_k, own_v, causal)
        for k, v in pieces:
            mean_BHLE, total_BHL = merge(mean_BHLE, total_BHL, *attend_block(q_BHLE, k, v, causal=False))
    return mean_BHLE.to(q_BHLE.dtype), total_BHL


@torch.library.custom_op("orchestrator::ring_attention_backward", mutates_args=())
def _gradients(
    grad_BHLE: Tensor,
    q_BHLE: Tensor,
    k_BGLE: Tensor,
    v_BGLE: Tensor,
    y_BHLE: Tensor,
    total_BHL: Tensor,
    causal: bool,
    group: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of this rank's queries, keys and values."""
    with torch.autocast(q_BHLE.device.type, enabled=False):
        ring = _Ring(group, causal)
        pieces, behind = ring.pieces([k_BGLE, v_BGLE]), None
        delta_BHL = (widened(grad_BHLE) * widened(y_BHLE)).sum(-1)
        dq_BHLE, *carried = (torch.zeros_like(widened(x)) for x in (q_BHLE, k_BGLE, v_BGLE))
        for step in range(ring.size):
            added: list[Tensor] = []
            if ring.sees(step):
                k, v = next(pieces)
                part, *added = block_gradients(
                    grad_BHLE, q_BHLE, k, v, total_BHL, delta_BHL, causal=causal and step == 0
                )
                dq_BHLE += part
            # A piece's gradient follows it a round behind; after as many rounds as there are ranks it is home.
            carried = behind.wait() if behind else carried
            for total, each in zip(carried, added, strict=False):
                total += each
            behind = ring.start(carried)
        next(pieces, None)  # what was sent last has gone
        dk_BGLE, dv_BGLE = behind.wait() if behind else carried
    return dq_BHLE.to(q_BHLE.dtype), dk_BGLE.to(k_BGLE.dtype), dv_BGLE.to(v_BGLE.dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.causal, ctx.group = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, grad_BHLE: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_gradients(grad_BHLE, *ctx.saved_tensors, ctx.causal, ctx.group), None, None


def _like_result(q_BHLE: Tensor, k_BGLE: Tensor, v_BGLE: Tensor, causal: bool, group: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q_BHLE), torch.empty_like(widened(q_BHLE[..., 0]))


def _like_gradients(grad_BHLE: Tensor, q_BHLE: Tensor, k_BGLE: Tensor, v_BGLE: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(q_BHLE), torch.empty_like(k_BGLE), torch.empty_like(v_BGLE)


_attend.register_autograd(_backward, setup_context=_keep)
_attend.register_fake(_like_result)
_gradients.register_fake(_like_gradients)

RING_ATTENTION = torch.ops.orchestrator.ring_attention.default
"""What torch calls the forward pass, for those who record operations."""
