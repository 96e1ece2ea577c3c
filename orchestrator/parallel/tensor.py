"""The tensor axis: a model's `tensor_plan` carried out. Weights become shards, forwards work on them.

Linear layers and convolutions are split by output (column) or input (row) features, embeddings by rows, norms over
channels along with their input. The module itself is untouched but for its parameters and its `forward`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn import functional

from orchestrator.errors import PlanError
from orchestrator.parallel.collectives import (
    copy_in,
    gather,
    gather_and_sum_back,
    split,
    sum_and_split,
    sum_out,
)
from orchestrator.parallel.containers import SEQUENCE_DIM, Forward, Split, contained, summing_containers
from orchestrator.parallel.shared import shared_groups, tie


def apply_tensor(module: nn.Module, mesh: DeviceMesh, plan: Mapping[str, Split]) -> frozenset[str]:
    """Split the submodules that the plan names over the mesh (one dimension), in place. Works on the meta device.

    Parameters become DTensors of their full shape, so names, checkpoints and norms stay those of the whole model.
    Returns the names of whole parameters that see only a piece of the activations: their gradients are to be summed
    over the mesh. Raises PlanError for a submodule that cannot be split that way.
    """
    groups = shared_groups(module)
    present = dict(module.named_modules())
    partial_names: set[str] = set()
    led = summing_containers(module, plan)
    for name, how in plan.items():
        child = present.get(name)
        if child is None:  # the layer is on another pipeline stage
            continue
        if how.kind not in _APPLY:
            raise PlanError(f"tensor_plan of '{name}': unknown kind '{how.kind}'", hint=f"known: {', '.join(_APPLY)}")
        sums = (child in led) == (how.kind == "gather")  # a container that leads sums, its column layers do not
        child.forward = _APPLY[how.kind](child, mesh, how, sums)
        partial_names.update(f"{name}.{parameter}" for parameter in _sees_piece(child, how))
    tie(module, groups)
    return frozenset(partial_names)


def _sees_piece(module: nn.Module, how: Split) -> list[str]:
    if how.kind == "norm" and how.input != "replicate":
        return [name for name, _ in module.named_parameters()]
    return (
        ["bias"] if how.kind == "row" and how.output == "sequence" and getattr(module, "bias", None) is not None else []
    )


def _shard(module: nn.Module, mesh: DeviceMesh, **dims: int) -> None:
    """Replace parameters and buffers of a module by their shards along the given dims."""
    for name, dim in dims.items():
        tensor = getattr(module, name, None)
        if tensor is None:
            continue
        if tensor.shape[dim] % mesh.size():
            raise PlanError(
                f"{type(module).__name__}.{name} of shape {tuple(tensor.shape)} does not divide over "
                f"{mesh.size()} tensor ranks in dim {dim}",
                hint="lower parallel.tensor",
            )
        local = tensor.detach().chunk(mesh.size(), dim)[mesh.get_local_rank()].contiguous()
        shard = DTensor.from_local(local, mesh, [Shard(dim)], run_check=False)
        if name in module._parameters:
            module.register_parameter(name, nn.Parameter(shard, requires_grad=tensor.requires_grad))
        else:
            module.register_buffer(name, shard)


def local(tensor: Tensor | None) -> Tensor | None:
    """Return this rank's piece of a sharded tensor, the tensor itself otherwise; gradients flow back into the shard."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _feature_dim(module: nn.Module) -> int:
    return 1 if isinstance(module, nn.Conv1d | nn.Conv2d) else -1


def _compute(module: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
    weight = local(module.weight)  # type: ignore[arg-type]
    if weight is None:
        raise PlanError(f"{type(module).__name__} has no weight to split")
    if isinstance(module, nn.Conv2d):
        if module.groups != 1:
            raise PlanError(
                "a grouped convolution cannot be split over tensor ranks", hint="leave it out of tensor_plan"
            )
        return functional.conv2d(x, weight, bias, module.stride, module.padding, module.dilation)
    return functional.linear(x, weight, bias)


def _column(module: nn.Module, mesh: DeviceMesh, how: Split, sums: bool) -> Forward:
    _shard(module, mesh, weight=0, bias=0)
    group = mesh.get_group()

    def forward(x: Tensor) -> Tensor:
        if how.input == "sequence":
            x = gather_and_sum_back(x, SEQUENCE_DIM, group)
        elif sums:
            x = copy_in(x, group)
        y = _compute(module, x, local(module.bias))  # type: ignore[arg-type]
        return y if how.output == "split" else gather(y, _feature_dim(module), group)

    return forward


def _row(module: nn.Module, mesh: DeviceMesh, how: Split, sums: bool) -> Forward:
    _shard(module, mesh, weight=1)
    group = mesh.get_group()

    def forward(x: Tensor) -> Tensor:
        x = x if how.input == "split" else split(x, _feature_dim(module), group)
        y = _compute(module, x, None)
        y = sum_and_split(y, SEQUENCE_DIM, group) if how.output == "sequence" else sum_out(y, group)
        bias: Tensor | None = module.bias  # type: ignore[assignment]
        if bias is None:
            return y
        return y + (bias[:, None, None] if isinstance(module, nn.Conv2d) else bias)

    return forward


def _vocab(module: nn.Module, mesh: DeviceMesh, how: Split, sums: bool) -> Forward:
    _shard(module, mesh, weight=0)
    group = mesh.get_group()

    def forward(tokens: Tensor) -> Tensor:
        rows = local(module.weight)  # type: ignore[arg-type]
        if rows is None:
            raise PlanError("an embedding without weight cannot be split")
        first = dist.get_rank(group) * rows.shape[0]
        mine = (tokens >= first) & (tokens < first + rows.shape[0])
        found = functional.embedding(torch.where(mine, tokens - first, 0), rows) * mine.unsqueeze(-1)
        return sum_and_split(found, SEQUENCE_DIM, group) if how.output == "sequence" else sum_out(found, group)

    return forward


def _channels(module: nn.Module, mesh: DeviceMesh, how: Split, sums: bool) -> Forward:
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return _batch_norm_channels(module, mesh)
    if not isinstance(module, nn.GroupNorm):
        raise PlanError(
            f"{type(module).__name__} cannot be split by channels",
            hint="use group or batch norm, or lower parallel.tensor to 1",
        )
    if module.num_groups % mesh.size():
        raise PlanError(
            f"group norm of {module.num_groups} groups does not divide over {mesh.size()} tensor ranks",
            hint=f"lower parallel.tensor to a divisor of {module.num_groups}",
        )
    _shard(module, mesh, weight=0, bias=0)
    groups = module.num_groups // mesh.size()

    def forward(x: Tensor) -> Tensor:
        return functional.group_norm(x, groups, local(module.weight), local(module.bias), module.eps)

    return forward


def _batch_norm_channels(module: nn.BatchNorm1d | nn.BatchNorm2d, mesh: DeviceMesh) -> Forward:
    """Every channel has figures of its own over the batch, so pieces of the channels need nothing of one another."""
    _shard(module, mesh, weight=0, bias=0, running_mean=0, running_var=0)

    def forward(x: Tensor) -> Tensor:
        if module.training and getattr(module, "gather_over_ranks", None) is not None:
            pieces = (module.weight, module.bias, module.running_mean, module.running_var)
            y: Tensor = module.normalise(x, *map(local, pieces))  # type: ignore[operator]
            return y
        momentum = module.momentum
        if module.training and module.num_batches_tracked is not None:
            module.num_batches_tracked.add_(1)
            momentum = 1.0 / float(module.num_batches_tracked) if momentum is None else momentum
        return functional.batch_norm(
            x,
            local(module.running_mean),
            local(module.running_var),
            local(module.weight),
            local(module.bias),
            module.training or module.running_mean is None,
            0.0 if momentum is None else momentum,
            module.eps,
        )

    return forward


def _norm(module: nn.Module, mesh: DeviceMesh, how: Split, sums: bool) -> Forward:
    return module.forward


_APPLY: dict[str, Callable[[nn.Module, DeviceMesh, Split, bool], Forward]] = {
    "column": _column,
    "row": _row,
    "vocab": _vocab,
    "channels": _channels,
    "norm": _norm,
    "gather": contained,
}
