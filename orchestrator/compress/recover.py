"""Training a smaller model back to strength: a plain loop over the job's data, alone or with a teacher.

Called by the steps `finetune`, `distill` and `prune`. The order of the samples is that of a run of the job's seed;
weights under a mask stay exactly zero, weights that share a value keep sharing it, on any number of data ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.compress.codebooks import Tied
from orchestrator.compress.counted import Counted
from orchestrator.compress.crew import Crew
from orchestrator.compress.features import Features
from orchestrator.data.order import SampleOrder, random_words, slice_for
from orchestrator.errors import ExportError, TrainError
from orchestrator.export.score import cast_inputs
from orchestrator.export.weights import plain_copy
from orchestrator.parallel.grads import clip_gradients, gradient_norm
from orchestrator.parallel.initialise import own_slice
from orchestrator.parallel.process import sum_over_ranks
from orchestrator.parallel.shared import local_gradient
from orchestrator.plan.layout import Layout
from orchestrator.spec.job import OptimSection
from orchestrator.train.loss import BinaryCrossEntropy, CrossEntropy, Loss, MeanSquaredError, build_loss
from orchestrator.train.optim import build_optimizer
from orchestrator.train.schedule import Cosine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from orchestrator.compress.base import Context

ALONE = Layout()
_CACHE_BYTES = 256 << 20


@dataclass(frozen=True)
class Lessons:
    """What a teacher adds: `weight` of the loss is its softened answers' (Hinton et al. 2015).

    `mixup`: it is asked about blends of two samples, of which there are more than samples (Beyer et al. 2022).
    """

    teacher: nn.Module
    temperature: float = 4.0
    weight: float = 0.7
    mixup: bool = False
    features: tuple[str, ...] | str = ()
    features_weight: float = 1.0
    """Inner layers by path (or `auto`), and how much their distance to the teacher's counts beside all else."""

    def on(self, device: torch.device) -> Lessons:
        """Return the same lessons with the teacher on a device; the one given, others' too, stays where it is."""
        here = all(parameter.device.type == device.type for parameter in self.teacher.parameters())
        return self if here else replace(self, teacher=plain_copy(self.teacher).to(device))


@dataclass(frozen=True)
class Recovered:
    """What the loop did."""

    steps: int
    loss: float


@dataclass(frozen=True)
class Course:
    """What is trained how: passes over the training split, and what must stay exact meanwhile."""

    epochs: float
    lr: float | None = None
    batch_size: int | None = None
    lessons: Lessons | None = None
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    codes: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int | None = None
    steps: int | None = None
    """So many steps instead of epochs."""


def recover(
    model: nn.Module,
    context: Context,
    *,
    epochs: float,
    steps: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    lessons: Lessons | None = None,
    masks: Mapping[str, Tensor] | None = None,
    codes: Mapping[str, Tensor] | None = None,
    seed: int | None = None,
    layout: Layout = ALONE,
) -> Recovered:
    """Train `model` in place for so many passes over the training split (or `steps`); it ends in eval mode, frozen.

    `layout` of data ranks (replicate x shard): each is a process, and the weights come out as from one, to rounding.
    Where those processes are is the matter of `context.launch`; without one they are on this machine.
    Raises TrainError when the loss is not finite, PlanError when the batch does not divide over the ranks.
    """
    from orchestrator.compress.ranks import train_here

    course = Course(epochs, lr, batch_size, lessons, masks or {}, codes or {}, seed, steps)
    done = (context.launch or train_here)(model, context, course, layout)
    model.requires_grad_(False).eval()  # its memory layout is mended by `plain_copy`
    return done


def train(
    model: nn.Module, context: Context, course: Course, crew: Crew, beat: Callable[[bool], None] = lambda in_steps: None
) -> tuple[nn.Module, Recovered]:
    """Train as one rank of `crew`; return the module that holds this rank's weights. Collective.

    `beat` is called at every step (True), and while the teacher answers before the first and after the last (False).
    """
    split, job = context.data.splits["train"], context.job
    size = min(course.batch_size or job.train.batch_size, len(split))
    steps = course.steps or max(1, ceil(course.epochs * len(split) / size))
    order = SampleOrder(len(split), size, job.train.seed if course.seed is None else course.seed)
    loss = build_loss(job, context.plan)
    model.to(crew.device)
    lessons = course.lessons.on(crew.device) if course.lessons is not None else None
    told = _Teacher(lessons, context, loss, beat, crew.device) if lessons is not None else None
    features = Features(model, lessons, context) if lessons is not None and lessons.features else None
    parallel = crew.apply(model.requires_grad_(True), context)
    module = parallel.module
    optimizer = build_optimizer(_optim(job.optim, course.lr), module.named_parameters())
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    schedule = Cosine(warmup_steps=min(20, steps // 10))
    covers, tied, parameters = _covers(module, course.masks), Tied(module, course.codes), list(module.parameters())
    crew.seed_noise(order.seed)
    module.train()
    total = torch.zeros((), device=crew.device)
    for step in range(steps):
        beat(True)
        rows = _own(order.indices(step), crew)
        inputs, targets = (each.to(crew.device) for each in split.batch(rows))
        inputs = cast_inputs(inputs, context.dtype)
        if told is not None and told.blends:
            others = split.batch(_own(np.roll(order.indices(step), 1), crew))[0].to(crew.device)
            others = cast_inputs(others, context.dtype)
            shares = _own(_shares(size, order.seed, step), crew).to(inputs)
            inputs = inputs.lerp(others, shares.view(-1, *[1] * (inputs.dim() - 1)))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule.factor(step, steps)
        outputs = parallel(inputs)
        # Gradients are averaged over data ranks: each one's loss is its sum over the mean count of a rank.
        mean_count = _mean_count(loss.count(targets), len(targets), crew)
        total = loss.sum(outputs, targets) / mean_count
        counted = counted_of(loss, targets, mean_count)
        if told is not None:
            total = told.mix(total, outputs, rows, inputs, counted)
        if features is not None and lessons is not None:
            total = total + lessons.features_weight * features.distance(inputs, counted)
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        parallel.reduce_gradients()
        tied.gather()
        norm = gradient_norm(parameters)
        if not math.isfinite(float(norm)):  # equal on every rank, and so is what follows
            raise TrainError(
                f"the loss became {float(total.detach())} or its gradient did, in step {step + 1} of finetuning",
                hint="lower the step's lr",
            )
        if job.optim.clip_norm:
            clip_gradients(parameters, job.optim.clip_norm, norm)
        optimizer.step()
        for weight, cover in covers:
            weight.masked_fill_(cover, 0.0)  # a product would leave zeros of either sign
        tied.settle()
    beat(False)
    if features is not None:
        features.leave()
    mean = sum_over_ranks(total.detach().clone()) / crew.num_data_ranks
    return module, Recovered(steps, float(mean))


def _own(batch: NDArray[Any], crew: Crew) -> Tensor:
    """Return this rank's piece of what a whole batch has in a row."""
    (piece,) = slice_for(batch, crew.data_rank, crew.num_data_ranks, 1)
    return torch.from_numpy(piece.copy())


def _shares(count: int, seed: int, step: int) -> NDArray[np.float64]:
    """Return how much of another sample each one of a step's batch takes, uniform in [0, 1), whatever the layout."""
    return random_words(count, "mixup", seed, step) / 2.0**64


def _mean_count(count: int | None, rows: int, crew: Crew) -> float:
    """Return how many targets a data rank has on average; with one rank, how many there are."""
    if count is None:
        return rows
    total = sum_over_ranks(torch.tensor(float(count), dtype=torch.float64, device=crew.device))
    return max(1.0, float(total)) / crew.num_data_ranks


def _optim(section: OptimSection, lr: float | None) -> OptimSection:
    """Return the job's optimiser without its groups' patterns, which may name what pruning has changed."""
    options = {**section.options, **({"lr": lr} if lr is not None else {})}
    return OptimSection.model_validate({"use": section.use, **options})


def _covers(module: nn.Module, masks: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return this rank's piece of every weight under a mask, and where it is zero."""
    named = dict(module.named_parameters())
    missing = sorted(set(masks) - set(named))
    if missing:
        raise ExportError(f"a mask covers '{missing[0]}', which the model does not have")
    return [
        (local_gradient(named[name].detach()), own_slice(~mask.to(named[name].device), named[name]))
        for name, mask in masks.items()
    ]


class _Teacher:
    """The teacher's answers: computed once where they fit into memory, else batch by batch."""

    def __init__(
        self, lessons: Lessons, context: Context, loss: Loss, beat: Callable[[bool], None], device: torch.device
    ) -> None:
        self._lessons, self._loss = lessons, loss
        self._model = lessons.teacher.eval()
        split = context.data.splits["train"]
        self.blends = lessons.mixup
        first = self._ask(cast_inputs(split.batch(torch.arange(1))[0].to(device), context.dtype))
        self._known: Tensor | None = None
        if not self.blends and first.numel() * first.element_size() * len(split) <= _CACHE_BYTES:
            parts = []
            for at in range(0, len(split), 256):
                rows = torch.arange(at, min(at + 256, len(split)))
                parts.append(self._ask(cast_inputs(split.batch(rows)[0].to(device), context.dtype)))
                beat(False)
            self._known = torch.cat(parts)

    def mix(
        self, loss: Tensor, outputs: Tensor, rows_B: Tensor, inputs: Tensor, counted: Counted | None = None
    ) -> Tensor:
        """Return (1 - weight) of the loss and `weight` of the distance to the teacher's softened answers."""
        wanted = self._ask(inputs) if self._known is None else self._known[rows_B.to(self._known.device)]
        if wanted.shape != outputs.shape:
            raise ExportError(
                f"the teacher answers with {tuple(wanted.shape[1:])}, the model with {tuple(outputs.shape[1:])}",
                hint="a teacher must know the same classes",
            )
        weight, temperature = self._lessons.weight, self._lessons.temperature
        return (1 - weight) * loss + weight * taught_distance(self._loss, outputs, wanted, temperature, counted)

    def _ask(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            answers: Tensor = self._model(inputs)
        return answers


def counted_of(loss: Loss, targets: Tensor, mean_count: float) -> Counted | None:
    """Return which targets count where `ignore_index` leaves some out; None: all of them do."""
    ignored = loss.config.ignore_index if isinstance(loss, CrossEntropy) else None
    return None if ignored is None else Counted(targets != ignored, mean_count)


def taught_distance(
    loss: Loss, outputs: Tensor, wanted: Tensor, temperature: float, counted: Counted | None = None
) -> Tensor:
    """Return the mean distance to a teacher's answers, by what the job's loss takes outputs for.

    Numbers: squared difference, whatever the temperature. One logit: softened, as of two classes. Else: of classes,
    over the targets that count.
    """
    if isinstance(loss, MeanSquaredError):
        return (outputs - wanted).square().mean()
    if isinstance(loss, BinaryCrossEntropy):  # the other class has the logit 0
        outputs, wanted = (torch.stack((each, torch.zeros_like(each)), -1) for each in (outputs, wanted))
    return soft_distance(outputs, wanted, temperature, counted)


def soft_distance(
    outputs_BxC: Tensor, teacher_BxC: Tensor, temperature: float, counted: Counted | None = None
) -> Tensor:
    """Return temperature squared times the divergence of softened distributions over the last dim, mean over all.

    With `counted`, over the places whose targets count.
    """
    mine = functional.log_softmax(outputs_BxC / temperature, dim=-1)
    theirs = functional.log_softmax(teacher_BxC / temperature, dim=-1)
    each_Bx = functional.kl_div(mine, theirs, log_target=True, reduction="none").sum(-1)
    return temperature**2 * (each_Bx.mean() if counted is None else counted.mean(each_Bx))
