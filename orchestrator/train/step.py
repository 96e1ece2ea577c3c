"""One optimiser step: microbatches, one reduction, finite check, clipping, update. Independent of the layout."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from orchestrator.data.order import SampleOrder, slice_for
from orchestrator.parallel.grads import clip_gradients, gradient_norm
from orchestrator.parallel.initialise import seed_noise, seed_of
from orchestrator.parallel.pipeline import Pipeline
from orchestrator.parallel.process import sum_over_ranks
from orchestrator.train.engine import Engine


@dataclass(frozen=True)
class StepOutcome:
    """What a step gave on this rank. `totals` are the summed losses of its passes, `count` the global valid targets."""

    totals: list[Tensor]
    count: float
    counts: bool
    grad_norm: float
    rate: float

    @property
    def loss_share(self) -> float:
        """This rank's share of the mean loss over the global batch: the shares of all ranks add up to it."""
        return sum(float(total) for total in self.totals) / self.count if self.counts else 0.0

    @property
    def finite(self) -> bool:
        """A gradient that is not finite anywhere makes the norm of the whole model so, on every rank alike."""
        return math.isfinite(self.grad_norm)


class Stepper:
    """Takes steps of an engine. Which samples, which rate and which random numbers follow from the step's number."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        batch = engine.plan.batch
        self.order = SampleOrder(batch.num_train_samples, batch.global_batch, engine.job.train.seed)
        self.split = engine.data.splits["train"]
        self.parameters = engine.parameters()
        self._counts = engine.counts
        self._scale: Tensor | None = None
        self._scale_value = 0.0

    @cached_property
    def _noise_seed(self) -> int:
        piece = self.engine.plan.layout.coordinates(self.engine.rank.rank)["context"]
        return seed_of(self.engine.job.train.seed, "noise", self.engine.data_rank, piece)

    def microbatches(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """Return this rank's (inputs, targets) of the step, on its device: a pair per pass, one for a whole pipeline.

        The k-th microbatches of all data ranks together are the k-th run of the batch, through a pipeline as without
        one: so what is pooled over data ranks is pooled over the same samples as on one process that accumulates.
        """
        batch, stages = self.engine.plan.batch, self.engine.plan.stages
        passes = batch.accumulate if stages is None else stages.microbatches
        pieces = slice_for(self.order.indices(step), self.engine.data_rank, batch.num_data_ranks, passes)
        if stages is not None:  # it cuts them apart again
            pieces = [np.concatenate(pieces)]
        return [self.engine.to_device(*self.split.batch(torch.from_numpy(piece))) for piece in pieces]

    def backward(self, step: int) -> tuple[Tensor, Tensor]:
        """Compute gradients of the mean loss over the global batch; return (loss share, gradient norm)."""
        totals, count = self._passes(step)
        return torch.stack(totals).sum() / count * self._counts, self.gradient_norm()

    def _passes(self, step: int) -> tuple[list[Tensor], float]:
        """Run all forward and backward passes of a step; return each pass's summed loss and the global count."""
        engine = self.engine
        # Dropout is a function of (seed, step, data rank, piece of the sequence): exact after a restart at equal size.
        seed_noise(self._noise_seed + step, engine.rank.device)
        if not engine.model.module.training:
            engine.model.module.train()
        engine.optimizer.zero_grad(set_to_none=True)
        engine.balance.before_step()
        pairs = self.microbatches(step)
        count = self._global_count([targets for _, targets in pairs])
        # Reduction averages over data ranks; the loss is a sum over the global batch / its count.
        scale = engine.plan.batch.num_data_ranks / count
        if engine.model.pipeline is not None:
            totals = [self._through_pipeline(engine.model.pipeline, pairs[0], scale)]
        else:
            totals = [self.one_pass(*pair, scale, last=pair is pairs[-1]) for pair in pairs]
        engine.model.reduce_gradients()
        return totals, count

    def one_pass(self, inputs: Tensor, targets: Tensor, scale: float, *, last: bool) -> Tensor:
        """Add a microbatch's gradients, of its summed loss times `scale`; return that loss. `last` of the step's."""
        engine = self.engine
        with nullcontext() if last else engine.model.gradient_sync(False):
            with engine.autocast():
                total = self._sum_loss(inputs, targets)
            if self._scale is None or self._scale_value != scale or self._scale.dtype != total.dtype:
                self._scale_value, self._scale = scale, torch.full_like(total, scale)
            total.backward(self._scale)  # type: ignore[no-untyped-call]
        return total.detach()

    def _sum_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a forward pass, summed over targets."""
        engine = self.engine
        if engine.chunked is None:
            return engine.loss.sum(engine.model(inputs), targets)
        engine.chunked.targets = targets
        try:
            return engine.model(inputs)
        finally:
            engine.chunked.targets = None

    def gradient_norm(self) -> Tensor:
        """Return the norm of the whole model's gradients as they are now. Collective where the model is split."""
        pipeline = self.engine.model.pipeline
        if pipeline is None:
            return gradient_norm(self.parameters)
        return gradient_norm(self.engine.model.owned_parameters(), pipeline.group)

    def _through_pipeline(self, pipeline: Pipeline, pair: tuple[Tensor, Tensor], scale: float) -> Tensor:
        engine = self.engine

        def sum_loss(outputs: Tensor, targets: Tensor) -> Tensor:
            return outputs if engine.chunked is not None else engine.loss.sum(outputs, targets)

        with engine.autocast():
            return pipeline.forward_backward(*pair, sum_loss, scale, engine.rank.device, engine.chunked)

    def step(self, step: int) -> StepOutcome:
        """Take the step numbered `step` (from 0). A non-finite gradient leaves weights and optimiser as they were."""
        totals, count = self._passes(step)
        norm = self.gradient_norm()
        outcome = StepOutcome(totals, count, self._counts, float(norm), self.set_rates(step))
        if outcome.finite:
            limit = self.engine.job.optim.clip_norm
            if limit is not None and outcome.grad_norm > limit:
                clip_gradients(self.parameters, limit, norm)
            self.update()
        return outcome

    def update(self) -> None:
        """Update weights from the gradients as they are, and routers' biases from where this step's tokens went."""
        self.engine.optimizer.step()
        self.engine.balance.after_step()

    def set_rates(self, step: int) -> float:
        """Set every group's learning rate for the step numbered `step` (from 0); return the first group's."""
        factor = self.engine.schedule.factor(step, self.engine.plan.batch.total_steps)
        for group, base in zip(self.engine.optimizer.param_groups, self.engine.base_rates, strict=True):
            group["lr"] = base * factor
        return self.engine.base_rates[0] * factor

    def _global_count(self, targets: list[Tensor]) -> float:
        counts = [self.engine.loss.count(target) for target in targets]
        if counts[0] is None:
            return float(self.engine.plan.batch.global_batch)
        local = sum(count or 0 for count in counts) if self._counts else 0
        mine = torch.tensor(float(local), device=self.engine.rank.device)
        return max(1.0, float(sum_over_ranks(mine)))
