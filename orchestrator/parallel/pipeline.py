"""The pipeline axis: the stages of this rank, torch's schedule over them, and a plain forward pass for evaluation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining import schedules as torch_schedules

from orchestrator.errors import PlanError
from orchestrator.parallel.sharding import put_weights_away
from orchestrator.parallel.shared import SharedOverStages
from orchestrator.plan.stages import SINGLE, SPLIT_BACKWARD, Stages

_SCHEDULES: dict[str, type[Any]] = {
    "gpipe": torch_schedules.ScheduleGPipe,
    "1f1b": torch_schedules.Schedule1F1B,
    "interleaved_1f1b": torch_schedules.ScheduleInterleaved1F1B,
    "looped_bfs": torch_schedules.ScheduleLoopedBFS,
    "interleaved_zero_bubble": torch_schedules.ScheduleInterleavedZeroBubble,
    "zbv_zero_bubble": torch_schedules.ScheduleZBVZeroBubble,
    "dualpipe_v": torch_schedules.ScheduleDualPipeV,
}
_MAX_DIMS = 8

SumLoss = Callable[[Tensor, Tensor], Tensor]


class TakesTargets(Protocol):
    """A last layer that computes the loss itself when it is given `targets` before its forward pass."""

    targets: Tensor | None


def with_layers(module: nn.Module, names: list[str]) -> nn.Module:
    """Return a module like `module` that has only these of its top-level layers; the layers themselves are shared.

    Raises PlanError when the model is not an ordered dict of named layers.
    """
    layers = getattr(module, "layers", None)
    if not isinstance(layers, nn.ModuleDict):
        raise PlanError(
            f"{type(module).__name__} has no `layers` (an nn.ModuleDict that its forward loops over)",
            hint="set parallel.pipeline=1, or name the layers (docs/models.md)",
        )
    part = copy.copy(module)
    for key, value in vars(module).items():
        if isinstance(value, dict):  # hooks of one part must not become hooks of the others
            part.__dict__[key] = copy.copy(value)
    part._modules["layers"] = nn.ModuleDict({name: layers[name] for name in names})
    return part


class Pipeline:
    """This rank's stages in order, and how a batch goes through all stages of all ranks."""

    def __init__(self, stages: Stages, rank: int, modules: list[nn.Module], group: dist.ProcessGroup) -> None:
        """`rank` is this rank's pipeline coordinate; `modules` are its stages, in the order of `stages.owned_by`."""
        self.stages = stages
        self.rank = rank
        self.group = group
        self.modules = dict(zip(stages.owned_by(rank), modules, strict=True))
        if stages.schedule in SPLIT_BACKWARD:
            for module in modules:
                module.register_forward_hook(_own_memory)
        self._schedule: Any = None
        self._sum_loss: SumLoss | None = None
        self._scale = 1.0
        self._last: _Stage | None = None

    @property
    def has_first(self) -> bool:
        """Whether this rank takes the inputs."""
        return 0 in self.modules

    @property
    def has_last(self) -> bool:
        """Whether this rank gives the outputs and the loss."""
        return len(self.stages.layers) - 1 in self.modules

    def sharing(self, copies: Mapping[str, str]) -> SharedOverStages:
        """Return what sums the gradients of parameters that stages share; `copies` maps a copy to the first name."""
        owner = {layer: self.stages.ranks[at] for at, layers in enumerate(self.stages.layers) for layer in layers}
        names = {*copies, *copies.values()}
        return SharedOverStages(copies, {name: owner[name.split(".")[1]] for name in names}, self.group)

    def forward_backward(
        self,
        inputs: Tensor,
        targets: Tensor,
        sum_loss: SumLoss,
        scale: float,
        device: torch.device,
        head: TakesTargets | None = None,
    ) -> Tensor:
        """Run all microbatches through all stages, forward and backward; return this rank's summed loss, unscaled.

        Gradients are those of `scale` x the loss summed over the batch. Ranks without the last stage return 0. `head`
        is given each microbatch's targets before it is run.
        """
        self._sum_loss, self._scale = sum_loss, scale
        if self._schedule is None:
            self._schedule = self._build_schedule(inputs, device, head)
        if self._last is not None:
            self._last.targets = targets.tensor_split(self.stages.microbatches)
        losses: list[Tensor] = []
        given = (inputs,) if self.has_first else ()
        wanted = {"target": targets, "losses": losses} if self.has_last else {}
        self._schedule.step(*given, return_outputs=False, **wanted)
        total = torch.stack(losses).sum() if losses else torch.zeros((), device=device, dtype=torch.float32)
        return total.detach() / scale

    def evaluate(self, inputs: Tensor) -> Tensor | None:
        """Send a batch through all stages without gradients; return the outputs where the last stage is, else None."""
        outputs = self._send_through(inputs, {})
        for stage in self.modules.values():
            put_weights_away(stage)
        return outputs

    def _send_through(self, inputs: Tensor, seen: dict[int, tuple[Tensor, Tensor]]) -> Tensor | None:
        """Send a batch through all stages; `seen` receives what went into and came out of this rank's."""
        current: Tensor | None = inputs if self.has_first else None
        for stage, owner in enumerate(self.stages.ranks):
            if owner == self.rank:
                before = cast("Tensor", current)
                current = self.modules[stage](before)
                seen[stage] = before, current
            following = self.stages.ranks[stage + 1] if stage + 1 < len(self.stages.ranks) else owner
            if following != owner and owner == self.rank:
                _send(cast("Tensor", current), following, self.group)
                current = None
            elif following != owner and following == self.rank:
                current = _receive(owner, self.group, inputs.device)
        return current if self.has_last else None

    def _build_schedule(self, inputs: Tensor, device: torch.device, head: TakesTargets | None) -> Any:
        # torch would find the shapes by a forward pass of its own, in training mode, which counts for layers that count
        # (dropout's generator, a router's load): a pass in evaluation mode leaves no trace.
        shapes: dict[int, tuple[Tensor, Tensor]] = {}
        with torch.no_grad():
            for module in self.modules.values():
                module.eval()
            self._send_through(inputs.chunk(self.stages.microbatches)[0], shapes)
            for module in self.modules.values():
                module.train()
        for stage, (before, after) in shapes.items():
            shapes[stage] = _like(before).requires_grad_(stage > 0), _like(after).requires_grad_()
        number = len(self.stages.layers)
        if head is not None:  # it gives the loss
            shapes[number - 1] = shapes[number - 1][0], _like(shapes[number - 1][1].sum()).requires_grad_()
        made = [
            _Stage(m, at, number, device, input_args=(shapes[at][0],), output_args=(shapes[at][1],), group=self.group)
            for at, m in self.modules.items()
        ]
        if head is not None:
            self._last = next(stage for stage in made if stage.is_last)
            self._last.head = head
        kind = _SCHEDULES[self.stages.schedule]
        # The loss is scaled by us: torch's own scaling by microbatches would not know the batch on other ranks.
        return kind(
            made[0] if self.stages.schedule in SINGLE else made,
            self.stages.microbatches,
            loss_fn=self._loss,
            scale_grads=False,
        )

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self._sum_loss is None:
            raise PlanError("a pipeline's loss was asked for outside a step")
        return self._sum_loss(outputs, targets) * self._scale


class _Stage(PipelineStage):
    """Sends contiguous tensors (images may be laid out channels last, which cannot be sent); gives a head targets."""

    head: TakesTargets | None = None
    targets: Sequence[Tensor] = ()

    def forward_one_chunk(self, fwd_chunk_id: int, *given: Any, **named: Any) -> Any:
        if self.head is None:
            return super().forward_one_chunk(fwd_chunk_id, *given, **named)
        self.head.targets = self.targets[fwd_chunk_id]
        try:
            return super().forward_one_chunk(fwd_chunk_id, *given, **named)
        finally:
            self.head.targets = None

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        return _contiguous(super().get_fwd_send_ops(fwd_chunk_id))

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        return _contiguous(super().get_bwd_send_ops(bwd_chunk_id))


def _contiguous(ops: list[dist.P2POp]) -> list[dist.P2POp]:
    for op in ops:
        op.tensor = op.tensor.contiguous()
    return ops


def _own_memory(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Copy a stage's output that is a view of something: torch detaches outputs in place, which views refuse."""
    return output.clone() if output._is_view() else output


def _like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64)


def _send(tensor: Tensor, to: int, group: dist.ProcessGroup) -> None:
    head = [tensor.dim(), _DTYPES.index(tensor.dtype), *tensor.shape]
    head += [0] * (2 + _MAX_DIMS - len(head))
    dist.send(torch.tensor(head, device=tensor.device), group=group, group_dst=to)
    dist.send(tensor.contiguous(), group=group, group_dst=to)


def _receive(source: int, group: dist.ProcessGroup, device: torch.device) -> Tensor:
    head = torch.empty(2 + _MAX_DIMS, dtype=torch.int64, device=device)
    dist.recv(head, group=group, group_src=source)
    num_dims, dtype, *shape = head.tolist()
    tensor = torch.empty(shape[:num_dims], dtype=_DTYPES[dtype], device=device)
    dist.recv(tensor, group=group, group_src=source)
    return tensor
