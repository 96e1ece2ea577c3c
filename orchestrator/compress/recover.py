"""Training a smaller model back to strength: a plain loop over the job's data, alone or with a teacher.

Called by the steps `finetune` and `prune`. The order of the samples is that of a run of the job's seed; weights under a
mask stay exactly zero, weights that share a value keep sharing it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.compress.codebooks import Tied
from orchestrator.data.order import SampleOrder
from orchestrator.errors import ExportError, TrainError
from orchestrator.export.score import cast_inputs
from orchestrator.spec.job import OptimSection
from orchestrator.train.loss import build_loss
from orchestrator.train.optim import build_optimizer
from orchestrator.train.schedule import Cosine

if TYPE_CHECKING:
    from orchestrator.compress.base import Context

_CACHE_BYTES = 256 << 20


@dataclass(frozen=True)
class Lessons:
    """What a teacher adds: `weight` of the loss is its softened answers' (Hinton et al. 2015)."""

    teacher: nn.Module
    temperature: float = 4.0
    weight: float = 0.7


@dataclass(frozen=True)
class Recovered:
    """What the loop did."""

    steps: int
    loss: float
    notes: Mapping[str, float] = field(default_factory=dict)


def recover(
    model: nn.Module,
    context: Context,
    *,
    epochs: float,
    lr: float | None = None,
    batch_size: int | None = None,
    lessons: Lessons | None = None,
    masks: Mapping[str, Tensor] | None = None,
    codes: Mapping[str, Tensor] | None = None,
    seed: int | None = None,
) -> Recovered:
    """Train `model` in place for so many passes over the training split; it is left in eval mode, gradients off.

    Raises TrainError when the loss is not finite.
    """
    split, job = context.data.splits["train"], context.job
    size = min(batch_size or job.train.batch_size, len(split))
    steps = max(1, ceil(epochs * len(split) / size))
    order = SampleOrder(len(split), size, job.train.seed if seed is None else seed)
    optimizer = build_optimizer(_optim(job.optim, lr), model.requires_grad_(True).named_parameters())
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    schedule = Cosine(warmup_steps=min(20, steps // 10))
    loss, told = build_loss(job, context.plan), _Teacher(lessons, context) if lessons else None
    covers, tied = _covers(model, masks or {}), Tied(model, codes or {})
    _faster_layout(model, context)
    torch.manual_seed(order.seed)
    model.train()
    last = 0.0
    for step in range(steps):
        rows = torch.from_numpy(order.indices(step).copy())
        inputs, targets = split.batch(rows)
        inputs = cast_inputs(inputs, context.dtype)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule.factor(step, steps)
        outputs = model(inputs)
        count = loss.count(targets)
        total = loss.sum(outputs, targets) / (len(targets) if count is None else count)
        if told is not None:
            total = told.mix(total, outputs, rows, inputs)
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        tied.gather()
        if job.optim.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), job.optim.clip_norm)
        optimizer.step()
        for weight, cover in covers:
            weight.data.masked_fill_(cover, 0.0)  # a product would leave zeros of either sign
        tied.settle()
        last = float(total.detach())
        if last != last or last in (float("inf"), float("-inf")):
            raise TrainError(f"the loss became {last} in step {step + 1} of finetuning", hint="lower the step's lr")
    model.requires_grad_(False).eval()  # its memory layout is mended by `plain_copy`
    return Recovered(steps, last)


def _optim(section: OptimSection, lr: float | None) -> OptimSection:
    """Return the job's optimiser without its groups' patterns, which may name what pruning has changed."""
    options = {**section.options, **({"lr": lr} if lr is not None else {})}
    return OptimSection.model_validate({"use": section.use, **options})


def _covers(model: nn.Module, masks: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    named = dict(model.named_parameters())
    missing = sorted(set(masks) - set(named))
    if missing:
        raise ExportError(f"a mask covers '{missing[0]}', which the model does not have")
    return [(named[name], ~mask) for name, mask in masks.items()]


def _faster_layout(model: nn.Module, context: Context) -> None:
    if len(context.data.shape.inputs) == 3 and any(isinstance(part, nn.Conv2d) for part in model.modules()):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class _Teacher:
    """The teacher's answers: computed once where they fit into memory, else batch by batch."""

    def __init__(self, lessons: Lessons, context: Context) -> None:
        self._lessons = lessons
        self._model = lessons.teacher.eval()
        split = context.data.splits["train"]
        first = self._ask(cast_inputs(split.batch(torch.arange(1))[0], context.dtype))
        self._known: Tensor | None = None
        if first.numel() * first.element_size() * len(split) <= _CACHE_BYTES:
            parts = [
                self._ask(cast_inputs(split.batch(torch.arange(at, min(at + 256, len(split))))[0], context.dtype))
                for at in range(0, len(split), 256)
            ]
            self._known = torch.cat(parts)

    def mix(self, loss: Tensor, outputs: Tensor, rows_B: Tensor, inputs: Tensor) -> Tensor:
        """Return (1 - weight) of the loss and `weight` of the distance to the teacher's softened answers."""
        wanted = self._ask(inputs) if self._known is None else self._known[rows_B]
        if wanted.shape != outputs.shape:
            raise ExportError(
                f"the teacher answers with {tuple(wanted.shape[1:])}, the model with {tuple(outputs.shape[1:])}",
                hint="a teacher must know the same classes",
            )
        weight = self._lessons.weight
        return (1 - weight) * loss + weight * soft_distance(outputs, wanted, self._lessons.temperature)

    def _ask(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            answers: Tensor = self._model(inputs)
        return answers


def soft_distance(outputs_BxC: Tensor, teacher_BxC: Tensor, temperature: float) -> Tensor:
    """Return temperature squared times the divergence of softened distributions over the last dim, mean over all."""
    mine = functional.log_softmax(outputs_BxC / temperature, dim=-1).flatten(0, -2)
    theirs = functional.log_softmax(teacher_BxC / temperature, dim=-1).flatten(0, -2)
    return temperature**2 * functional.kl_div(mine, theirs, log_target=True, reduction="batchmean")
