"""Metrics as sums over samples: each batch gives a vector, vectors are added over batches and ranks, then one number.

That makes every metric independent of the layout. A metric plug-in has `sums(outputs, targets) -> Tensor[K]` (float64)
and `compute(sums) -> float`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator import plugins
from orchestrator.plan.match import METRICS_OF_LOSS
from orchestrator.plan.plan import Plan
from orchestrator.spec.base import Use
from orchestrator.spec.job import JobSpec

if TYPE_CHECKING:
    from torch import Tensor


class Metric(Protocol):
    """What evaluation asks of a metric."""

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return this batch's sums, a float64 vector of fixed length."""

    def compute(self, sums: Tensor) -> float:
        """Return the metric from the sums over all batches and ranks."""


def build_metrics(job: JobSpec, plan: Plan) -> dict[str, Metric]:
    """Return the job's metrics by name, else those that fit the loss. A path's name is its last part, lower case."""
    chosen = job.train.metrics
    if chosen is None:
        chosen = tuple(Use(use=name) for name in METRICS_OF_LOSS.get(plan.loss, ()))
    found: dict[str, Metric] = {metric_name(use.use): plugins.build("metrics", use.use, use.options) for use in chosen}
    for metric in found.values():
        if isinstance(metric, Accuracy | TopK):  # of targets that the loss leaves out none is right or wrong
            metric.ignored = _ignored(job, plan)
    return found


def _ignored(job: JobSpec, plan: Plan) -> int | None:
    """Return the target that the job's cross-entropy leaves out; None when all count."""
    options = job.train.loss.options if job.train.loss and plan.loss == "cross_entropy" else {}
    ignored: int | None = options.get("ignore_index")
    return ignored


def metric_name(use: str) -> str:
    """Return the name under which a metric is logged."""
    return use.replace(":", ".").rsplit(".", 1)[-1].lower()


def _shares(right: Tensor, targets: Tensor, ignored: int | None) -> Tensor:
    """Return [right, all] of the targets that count."""
    import torch

    counts = torch.ones_like(right) if ignored is None else targets != ignored
    return torch.stack([(right & counts).sum(), counts.sum()]).double()


class Accuracy:
    """Share of samples whose predicted class is the target; with one logit, its sign decides.

    Targets that the loss ignores do not count.
    """

    ignored: int | None = None

    @dataclass(frozen=True)
    class Config:
        """Takes no keys."""

    @classmethod
    def build(cls, config: Any) -> Accuracy:
        """Return the metric."""
        return cls()

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return [right, all]."""
        one_logit = outputs.shape[-1] == 1 or outputs.dim() == targets.dim()
        guess = (outputs.reshape(targets.shape) > 0).to(targets.dtype) if one_logit else outputs.argmax(-1)
        return _shares(guess == targets, targets, self.ignored)

    def compute(self, sums: Tensor) -> float:
        """Return right / all; not a number where none counts."""
        return float(sums[0] / sums[1])


class TopK:
    """Share of samples whose target is among the k highest outputs. Targets that the loss ignores do not count."""

    ignored: int | None = None

    @dataclass(frozen=True)
    class Config:
        """`k`: how many outputs may contain the target."""

        k: int = 5

        def __post_init__(self) -> None:
            if self.k < 1:
                raise ValueError("k must be at least 1")

    def __init__(self, config: Config) -> None:
        self.k = config.k

    @classmethod
    def build(cls, config: Config) -> TopK:
        """Return the metric."""
        return cls(config)

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return [right, all]."""
        best_BK = outputs.topk(min(self.k, outputs.shape[-1]), dim=-1).indices
        return _shares((best_BK == targets.unsqueeze(-1)).any(-1), targets, self.ignored)

    def compute(self, sums: Tensor) -> float:
        """Return right / all; not a number where none counts."""
        return float(sums[0] / sums[1])


class MeanAbsoluteError:
    """Mean absolute difference between output and target."""

    @dataclass(frozen=True)
    class Config:
        """Takes no keys."""

    @classmethod
    def build(cls, config: Any) -> MeanAbsoluteError:
        """Return the metric."""
        return cls()

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return [sum of absolute differences, count]."""
        import torch

        total = (outputs.reshape(targets.shape) - targets).abs().double().sum()
        return torch.stack([total, torch.tensor(float(targets.numel()), device=total.device, dtype=torch.float64)])

    def compute(self, sums: Tensor) -> float:
        """Return the mean."""
        return float(sums[0] / sums[1])


class R2:
    """Coefficient of determination: 1 - residual variance / target variance, over all elements."""

    @dataclass(frozen=True)
    class Config:
        """Takes no keys."""

    @classmethod
    def build(cls, config: Any) -> R2:
        """Return the metric."""
        return cls()

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return [residual squares, targets, target squares, count]."""
        import torch

        target = targets.double()
        residual = (outputs.reshape(targets.shape).double() - target).square().sum()
        count = torch.tensor(float(targets.numel()), device=target.device, dtype=torch.float64)
        return torch.stack([residual, target.sum(), target.square().sum(), count])

    def compute(self, sums: Tensor) -> float:
        """Return R2; a constant target gives 0."""
        residual, total, squares, count = (float(value) for value in sums)
        variance = squares - total * total / count
        return 1.0 - residual / variance if variance > 0 else 0.0
