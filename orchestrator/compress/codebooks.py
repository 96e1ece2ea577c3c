"""Weights that share values: k-means over one layer's weights, and training that keeps shared what is shared.

Called by the step `share` and by `recover`. Zeros under a mask stay zero and take no value of the codebook.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from orchestrator.errors import ExportError

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


class Tied:
    """Keeps weights with the same code equal while an optimiser moves them (Han et al. 2016, section 3)."""

    def __init__(self, model: nn.Module, codes: Mapping[str, Tensor]) -> None:
        named = dict(model.named_parameters())
        missing = sorted(set(codes) - set(named))
        if missing:
            raise ExportError(f"a codebook covers '{missing[0]}', which the model does not have")
        self._parts = [(named[name], code >= 0, code[code >= 0]) for name, code in codes.items()]

    def gather(self) -> None:
        """Give all weights of a value the mean of their gradients."""
        for weight, open_, code in self._parts:
            if weight.grad is not None:
                weight.grad[open_] = _means(weight.grad[open_], code)[code]

    def settle(self) -> None:
        """Make weights of a value equal to the bit again: an optimiser may round neighbours differently."""
        for weight, open_, code in self._parts:
            values = weight.data[open_]
            book = values.new_zeros(int(code.max()) + 1).scatter_(0, code, values)
            weight.data[open_] = book[code]


def _means(values_N: Tensor, code_N: Tensor) -> Tensor:
    size = int(code_N.max()) + 1
    sums = values_N.new_zeros(size).index_add_(0, code_N, values_N)
    return sums / torch.bincount(code_N, minlength=size).clamp(min=1).to(values_N.dtype)
