"""The last layer and the loss in pieces, so that the scores of a large vocabulary are never whole in memory.

Installed by `build_engine` when `train.loss_chunks` is above 1. A piece's scores are forgotten and computed again in
the backward pass (Chen et al., 2016, applied to the last layer); the sum over pieces is the loss to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from orchestrator.errors import PlanError
from orchestrator.train.loss import Loss

_SEQUENCE = 1  # dim of [B, L, D]


class ChunkedHead:
    """A linear last layer that, given `targets`, returns the summed loss in place of its outputs.

    The loss is taken inside the layer's forward pass, while whoever shards its weights has them whole there.
    """

    def __init__(self, head: nn.Module, loss: Loss, chunks: int, pieces: int) -> None:
        """Replace `head.forward`. `pieces`: ranks from which the head gathers the sequence (1: it has it whole).

        Raises PlanError when the layer is not linear: another may look at more than one position.
        """
        if not isinstance(head, nn.Linear):
            raise PlanError(
                f"train.loss_chunks cuts up a linear last layer, and the model ends with {type(head).__name__}",
                hint="leave train.loss_chunks out",
            )
        self.targets: Tensor | None = None
        self._inner: Callable[[Tensor], Tensor] = head.forward
        self._loss, self._chunks, self._pieces = loss, chunks, pieces
        # A compiled model leaves its graph here: a pass in pieces is what compiling would undo.
        head.forward = torch.compiler.disable(self._forward)  # type: ignore[method-assign, no-untyped-call]

    def _forward(self, x: Tensor) -> Tensor:
        if self.targets is None:
            return self._inner(x)
        x_parts, target_parts = cut(x, self.targets, self._chunks, self._pieces)
        losses = [
            checkpoint(self._sum, *part, use_reentrant=False, preserve_rng_state=False)
            for part in zip(x_parts, target_parts, strict=True)
        ]
        return torch.stack(losses).sum()

    def _sum(self, x: Tensor, targets: Tensor) -> Tensor:
        return self._loss.sum(self._inner(x), targets)


def cut(x: Tensor, targets: Tensor, chunks: int, pieces: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return both in at most `chunks` parts that belong together: along the sequence, or the batch without one.

    `x` is [B, D] or a piece of the sequence [B, L / pieces, D], `targets` [B] or the whole [B, L]. A part gathered over
    the ranks that hold the pieces is that stretch of every piece, one after the other, and so are its targets.
    """
    if x.dim() < 3:
        return list(x.chunk(chunks)), list(targets.chunk(chunks))
    parts = list(x.chunk(chunks, _SEQUENCE))
    by_piece = targets.reshape(targets.shape[0], pieces, -1)
    sizes = [part.shape[_SEQUENCE] for part in parts]
    return parts, [part.flatten(_SEQUENCE) for part in torch.split(by_piece, sizes, _SEQUENCE + 1)]
