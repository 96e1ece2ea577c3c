"""Weights that share values: k-means over one layer's weights, and training that keeps shared what is shared.

Called by the step `share` and by `recover`. Zeros under a mask stay zero and take no value of the codebook.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.errors import ExportError
from orchestrator.parallel.grads import sharding_groups
from orchestrator.parallel.initialise import own_slice
from orchestrator.parallel.shared import local_gradient

_ROUNDS = 50


def cluster(values_N: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Return (codebook [K] ascending, code of every value [N], int64) after k-means in one dimension (Lloyd 1982).

    It begins with values evenly spaced between the least and the greatest, which keeps the few large weights well
    (Han et al. 2016). Values that no weight is nearest to are dropped, so K is at most `clusters`.
    """
    ordered = values_N.double().sort().values
    totals = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    book = torch.linspace(float(ordered[0]), float(ordered[-1]), clusters, dtype=torch.float64)
    for _ in range(_ROUNDS):
        edges = torch.searchsorted(ordered, (book[1:] + book[:-1]) / 2)
        edges = torch.cat([edges.new_zeros(1), edges, edges.new_full((1,), len(ordered))])
        counts = edges.diff()
        filled = counts > 0
        means = (totals[edges[1:]] - totals[edges[:-1]])[filled] / counts[filled]
        if len(means) == len(book) and torch.equal(means, book):
            break
        book = means
    kept = torch.unique(book.to(values_N.dtype))
    codes = torch.bucketize(values_N.double(), ((kept[1:] + kept[:-1]) / 2).double())
    return kept, codes


def quantised(weight: Tensor, mask: Tensor | None, clusters: int) -> tuple[Tensor, Tensor]:
    """Return the weight with at most `clusters` values beside masked zeros, and its codes (-1: masked)."""
    open_ = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    book, codes = cluster(weight[open_], clusters)
    shared, all_codes = torch.zeros_like(weight), torch.full(weight.shape, -1, dtype=torch.int64)
    shared[open_], all_codes[open_] = book[codes], codes
    return shared, all_codes


def is_shared(weight: Tensor, codes: Tensor) -> bool:
    """Say whether all weights of a code have one value, to the bit."""
    values, numbers = weight.detach()[codes >= 0], codes[codes >= 0]
    book = values.new_zeros(int(numbers.max()) + 1) if len(numbers) else values
    book[numbers] = values
    return torch.equal(book[numbers], values)


class Tied:
    """Keeps weights with the same code equal while an optimiser moves them (Han et al. 2016, section 3).

    Works on this rank's pieces of sharded weights: a value belongs to all ranks that have a weight of it.
    """

    def __init__(self, model: nn.Module, codes: Mapping[str, Tensor]) -> None:
        named = dict(model.named_parameters())
        missing = sorted(set(codes) - set(named))
        if missing:
            raise ExportError(f"a codebook covers '{missing[0]}', which the model does not have")
        self._parts = [_Part(named[name], code) for name, code in codes.items()]

    def gather(self) -> None:
        """Give all weights of a value the mean of their gradients."""
        for part in self._parts:
            part.gather()

    def settle(self) -> None:
        """Make weights of a value equal to the bit again: an optimiser may round neighbours differently."""
        for part in self._parts:
            part.settle()


class _Part:
    """One weight. `counts` are of the whole weight, codes are of this rank's piece."""

    def __init__(self, weight: nn.Parameter, code: Tensor) -> None:
        code = code.to(weight.device)
        own = own_slice(code, weight)
        self._weight, self._open, self._codes = weight, own >= 0, own[own >= 0]
        self._counts = torch.bincount(code[code >= 0], minlength=1).clamp(min=1)
        self._groups = sharding_groups(weight)

    def gather(self) -> None:
        if self._weight.grad is None:
            return
        gradient = local_gradient(self._weight.grad)
        sums = gradient.new_zeros(len(self._counts)).index_add_(0, self._codes, gradient[self._open])
        for group in self._groups:
            dist.all_reduce(sums, group=group)
        gradient[self._open] = (sums / self._counts.to(sums.dtype))[self._codes]

    def settle(self) -> None:
        weight = local_gradient(self._weight.detach())
        book = weight.new_full((len(self._counts),), -torch.inf)
        book.scatter_reduce_(0, self._codes, weight[self._open], "amax")
        for group in self._groups:
            dist.all_reduce(book, dist.ReduceOp.MAX, group=group)
        weight[self._open] = book[self._codes]
