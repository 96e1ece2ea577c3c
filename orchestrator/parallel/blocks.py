"""Attention of some queries to one block of keys and values, and its gradient: what `ring` does at every stop.

Plain maths in float32 or wider, some rows of queries at a time, so that a block's scores are never whole in memory.
B batch, H heads, G heads of keys and values (G divides H), R = H / G, L queries, S keys, E width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_ROWS = 512  # queries whose scores are in memory at once

Gradients = tuple[Tensor, Tensor, Tensor]


def widened(x: Tensor) -> Tensor:
    """Return a tensor in the type sums are made in: float32, or float64 as it is."""
    return x if x.dtype == torch.float64 else x.float()


def attend_block(q_BHLE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Return (mean of the values [B, H, L, E], log-sum-exp of the scores [B, H, L]), both wide.

    With `causal` query i sees keys 0 .. i: the block in which queries and keys are the same piece of the sequence.
    """
    means, totals = [], []
    for rows, seen in _rows(q_BHLE.shape[2], k_BGSE.shape[2], causal):
        k_BGSE_, v_BGSE_ = k_BGSE[:, :, seen], v_BGSE[:, :, seen]
        score_BHLS = _scores(q_BHLE[:, :, rows], k_BGSE_, rows.start if causal else None)
        total_BHL = score_BHLS.logsumexp(-1)
        share_BHLS = score_BHLS.sub_(total_BHL[..., None]).exp_()
        means.append(_unfold(_fold(share_BHLS, k_BGSE) @ widened(v_BGSE_), q_BHLE))
        totals.append(total_BHL)
    return torch.cat(means, 2), torch.cat(totals, 2)


def block_gradients(
    grad_BHLE: Tensor,
    q_BHLE: Tensor,
    k_BGSE: Tensor,
    v_BGSE: Tensor,
    total_BHL: Tensor,
    delta_BHL: Tensor,
    causal: bool,
) -> Gradients:
    """Return what this block adds to the gradients of (queries, keys, values), wide (Dao 2023, algorithm 2).

    `total_BHL` is the log-sum-exp over all blocks, `delta_BHL` the sum over E of gradient x whole result: with these a
    block's share of the softmax, and so its gradient, needs no other block.
    """
    k, v = widened(k_BGSE), widened(v_BGSE)
    dk_BGSE, dv_BGSE, parts = torch.zeros_like(k), torch.zeros_like(v), []
    for rows, seen in _rows(q_BHLE.shape[2], k.shape[2], causal):
        score_BHLS = _scores(q_BHLE[:, :, rows], k[:, :, seen], rows.start if causal else None)
        share = _fold(score_BHLS.sub_(total_BHL[:, :, rows, None]).exp_(), k)
        grad = _fold(widened(grad_BHLE[:, :, rows]), k)
        dv_BGSE[:, :, seen] += share.transpose(-1, -2) @ grad
        # Softmax backward; the scale of the scores goes into their gradient once.
        slope = (grad @ v[:, :, seen].transpose(-1, -2)).sub_(_fold(delta_BHL[:, :, rows, None], k)).mul_(share)
        slope.mul_(q_BHLE.shape[-1] ** -0.5)
        parts.append(_unfold(slope @ k[:, :, seen], q_BHLE))
        dk_BGSE[:, :, seen] += slope.transpose(-1, -2) @ _fold(widened(q_BHLE[:, :, rows]), k)
    return torch.cat(parts, 2), dk_BGSE, dv_BGSE


def merge(mean_BHLE: Tensor, total_BHL: Tensor, other_BHLE: Tensor, other_total_BHL: Tensor) -> tuple[Tensor, Tensor]:
    """Join the results of two blocks as if their keys had been one (Milakov & Gimelshein 2018)."""
    both_BHL = torch.logaddexp(total_BHL, other_total_BHL)
    mine, others = ((each - both_BHL).exp()[..., None] for each in (total_BHL, other_total_BHL))
    return mean_BHLE * mine + other_BHLE * others, both_BHL


def _rows(num_queries: int, num_keys: int, causal: bool) -> Iterator[tuple[slice, slice]]:
    """Yield (some queries, the keys that any of them sees)."""
    for start in range(0, num_queries, _ROWS):
        end = min(start + _ROWS, num_queries)
        yield slice(start, end), slice(0, end if causal else num_keys)


def _scores(q_BHLE: Tensor, k_BGSE: Tensor, first: int | None) -> Tensor:
    """Return scaled scores [B, H, L, S]; `first` is the place of the first query among the keys, None: it sees all."""
    folded = _fold(widened(q_BHLE), k_BGSE) @ widened(k_BGSE).transpose(-1, -2)
    score_BHLS = _unfold(folded.mul_(q_BHLE.shape[-1] ** -0.5), q_BHLE)
    if first is not None:
        hidden_LS = torch.ones(score_BHLS.shape[-2:], dtype=torch.bool, device=q_BHLE.device).triu_(first + 1)
        score_BHLS.masked_fill_(hidden_LS, -torch.inf)
    return score_BHLS


def _fold(x_BHLX: Tensor, k_BGSE: Tensor) -> Tensor:
    """Return [B, G, R x L, X]: queries that share keys become rows of one product, so keys are never repeated."""
    batch, heads, length, width = x_BHLX.shape
    repeats = heads // k_BGSE.shape[1]
    return x_BHLX.reshape(batch, -1, repeats * length, width)


def _unfold(x_BGNX: Tensor, q_BHLE: Tensor) -> Tensor:
    """Undo `_fold`: return [B, H, L, X] for the heads of `q_BHLE`."""
    batch, heads = q_BHLE.shape[:2]
    return x_BGNX.reshape(batch, heads, -1, x_BGNX.shape[-1])
