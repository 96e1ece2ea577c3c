"""The expert axis: a layer's experts spread over data ranks; rows travel to their experts and back by all-to-all.

Experts borrow data ranks: `expert` neighbours in the data order hold all experts between them, the next `expert` ranks
hold copies. The model's own code only sees rows sorted by expert and their counts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.func import functional_call

from orchestrator.errors import PlanError


class _AllToAll(torch.autograd.Function):
    """Sends `sent[r]` rows to rank r and receives `received[r]` from it; gradients travel back the same way."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _exchange(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange(grad, ctx.received, ctx.sent, ctx.group), None, None, None


def _exchange(rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    result = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(result, rows.contiguous(), received, sent, group=group)
    return result


def all_to_all(rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    """Return the rows that all ranks of `group` sent here, by rank; uneven splits, differentiable."""
    result: Tensor = _AllToAll.apply(rows, sent, received, group)  # type: ignore[no-untyped-call]
    return result


def apply_experts(module: nn.Module, expert_layers: Iterable[str], mesh: DeviceMesh) -> frozenset[str]:
    """Spread the experts of the named layers over the mesh (one dimension), in place; return their parameters' names.

    Each such layer has a submodule `experts` whose parameters are stacked by expert in dim 0 and whose forward takes
    (rows sorted by expert, counts per expert). Raises PlanError when the experts do not divide.
    """
    present = dict(module.named_modules())
    names: set[str] = set()
    for layer in expert_layers:
        experts = present.get(f"{layer}.experts")
        if experts is not None:
            _spread(experts, mesh)
            names.update(f"{layer}.experts.{name}" for name, _ in experts.named_parameters())
    return frozenset(names)


def _spread(experts: nn.Module, mesh: DeviceMesh) -> None:
    inner = copy.copy(experts)
    inner._parameters = dict(experts._parameters)
    for name, parameter in list(experts.named_parameters(recurse=False)):
        if parameter.shape[0] % mesh.size():
            raise PlanError(
                f"{parameter.shape[0]} experts do not divide over parallel.expert = {mesh.size()}",
                hint="set it to a divisor of the number of experts",
            )
        local = parameter.detach().chunk(mesh.size(), 0)[mesh.get_local_rank()].contiguous()
        shard = DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
        experts.register_parameter(name, nn.Parameter(shard))
    group = mesh.get_group()

    def forward(rows_ND: Tensor, counts_E: Tensor) -> Tensor:
        arrived_ND, order_N, counts_L, sent, received = _dispatch(rows_ND, counts_E, group)
        own = {name: p.to_local() if isinstance(p, DTensor) else p for name, p in experts.named_parameters()}
        answers_ND = functional_call(inner, own, (arrived_ND[order_N], counts_L))
        back_N = torch.empty_like(order_N).scatter_(0, order_N, torch.arange(len(order_N), device=order_N.device))
        return all_to_all(answers_ND[back_N], received, sent, group)

    experts.forward = forward


def _dispatch(
    rows_ND: Tensor, counts_E: Tensor, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor, list[int], list[int]]:
    """Send rows to their experts' ranks.

    Returns what arrived, the order that sorts it by local expert (ranks in order within each), counts per local expert
    (L), and how many rows were sent to and received from every rank.
    """
    size = dist.get_world_size(group)
    sent_PL = counts_E.view(size, -1).contiguous()
    received_PL = torch.empty_like(sent_PL)
    dist.all_to_all_single(received_PL, sent_PL, group=group)
    sent, received = sent_PL.sum(1).tolist(), received_PL.sum(1).tolist()
    arrived_ND = all_to_all(rows_ND, sent, received, group)
    expert_N = (
        torch.arange(sent_PL.shape[1], device=counts_E.device).repeat(size).repeat_interleave(received_PL.flatten())
    )
    return arrived_ND, expert_N.argsort(stable=True), received_PL.sum(0), sent, received
