"""Gradients of the whole model, whatever holds their pieces: reduction over copies, the norm, and clipping by it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from orchestrator.parallel.initialise import shard_dim
from orchestrator.parallel.shared import SharedOverStages, local_gradient

Groups = tuple[dist.ProcessGroup, ...]


def gradient_norm(parameters: Sequence[Tensor], stages: dist.ProcessGroup | None = None) -> Tensor:
    """Return the 2-norm over all gradients of the model as a 0-dim tensor, equal on every rank.

    Pieces of a sharded gradient are squared where they lie and summed over the ranks that hold the other pieces; a
    gradient that ranks hold whole counts once. `stages` is the group over which a pipeline's layers lie.
    """
    parts: dict[Groups, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            parts[sharding_groups(parameter.grad)].append(local_gradient(parameter.grad))
    if stages is None and list(parts) in ([], [()]):
        return _norm(parts.get((), []))
    squares = []
    for groups, gradients in parts.items():
        square = _norm(gradients).square()
        for group in groups:
            dist.all_reduce(square, group=group)
        squares.append(square)
    if stages is None:
        return torch.stack(squares).sum().sqrt()
    # A rank may own nothing: all its layers' weights are copies of an earlier stage's. It has no dtype of its own.
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(stages) == "nccl" else None
    total = sum((square.double() for square in squares), torch.zeros((), dtype=torch.float64, device=device))
    dist.all_reduce(total, group=stages)
    return total.sqrt()


def clip_gradients(parameters: Iterable[Tensor], max_norm: float, norm: Tensor) -> None:
    """Scale all gradients down, in place, so that their norm is at most `max_norm`; `norm` is the whole model's."""
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    gradients = [local_gradient(parameter.grad) for parameter in parameters if parameter.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor)


def _norm(gradients: list[Tensor]) -> Tensor:
    if not gradients:
        return torch.zeros(())
    if len({gradient.dtype for gradient in gradients}) > 1:
        return get_total_norm(gradients)
    # Half the time of get_total_norm, which first sorts by device and dtype: a tenth of a small model's step.
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return norm


def sharding_groups(tensor: Tensor) -> Groups:
    """Return the groups over whose ranks the pieces of a tensor lie, one per sharded mesh dimension."""
    if not isinstance(tensor, DTensor):
        return ()
    mesh = tensor.device_mesh
    return tuple(mesh.get_group(dim) for dim, place in enumerate(tensor.placements) if shard_dim(place) is not None)


class GradientReducer:
    """Averages gradients over copies of the model, and sums those of whole parameters that saw pieces of activations.

    For layouts in which DDP cannot be used (its buckets do not take sharded parameters). Call after the last backward
    pass of a step.
    """

    def __init__(
        self,
        named: Mapping[str, Tensor],
        average_over: dist.ProcessGroup | None,
        sum_over: Mapping[str, dist.ProcessGroup],
        shared: SharedOverStages | None = None,
        experts: Mapping[str, dist.ProcessGroup] | None = None,
        num_data_ranks: int = 1,
        sum_all_over: dist.ProcessGroup | None = None,
    ) -> None:
        """`average_over`: the group of copies, if any; `sum_over`: parameter name -> group to sum its gradient over.

        `experts`: expert parameter -> the ranks that hold copies of it. Its gradient has gathered the samples of those
        it was spread over already, so it is summed over copies and divided by the number of all data ranks.
        `sum_all_over`: ranks that saw other tokens of the same samples.
        """
        self._experts = {name: group for name, group in (experts or {}).items() if name in named}
        self._num_data_ranks = num_data_ranks
        self._sum_all_over = sum_all_over
        self._shared = shared
        self._named = dict(named)
        self._average_over = average_over
        self._sum_over = {name: group for name, group in sum_over.items() if name in self._named}

    def reduce(self) -> None:
        """Reduce all gradients in place.

        Stages that share a parameter come last. A group adds up a flat buffer in an order that depends on the place in
        it, and stages have other buffers: copies that were summed before would come out a rounding apart, and drift.
        """
        self._reduce_within_stage()
        if self._shared is not None:
            self._shared.reduce(self._named)

    def _reduce_within_stage(self) -> None:
        if self._sum_all_over is not None:
            found = [local_gradient(p.grad) for p in self._named.values() if p.grad is not None]
            _reduce_flat(found, self._sum_all_over, 1.0)
        by_group: dict[dist.ProcessGroup, list[Tensor]] = defaultdict(list)
        for name, group in self._sum_over.items():
            gradient = self._named[name].grad
            if gradient is not None:
                by_group[group].append(local_gradient(gradient))
        for group, gradients in by_group.items():
            _reduce_flat(gradients, group, 1.0)
        for group in dict.fromkeys(self._experts.values()):
            mine = [self._named[name] for name, own in self._experts.items() if own is group]
            _reduce_flat(
                [local_gradient(p.grad) for p in mine if p.grad is not None], group, 1.0 / self._num_data_ranks
            )
        if self._average_over is not None:
            dense = [p for name, p in self._named.items() if name not in self._experts]
            found = [local_gradient(p.grad) for p in dense if p.grad is not None]
            _reduce_flat(found, self._average_over, 1.0 / dist.get_world_size(self._average_over))


def _reduce_flat(gradients: list[Tensor], group: dist.ProcessGroup, factor: float) -> None:
    if not gradients:
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    if factor != 1.0:
        flat.mul_(factor)
    dist.all_reduce(flat, group=group)
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
