"""Losses as (sum over valid targets, their count), so that the average over the global batch is exact under any layout.

A loss plug-in is an object with `Config` and `build(config)` returning a `Loss`, or a class with the `Loss` methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator import plugins
from orchestrator.plan.plan import Plan
from orchestrator.spec.job import JobSpec

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


class Loss(Protocol):
    """What the engine asks of a loss."""

    def sum(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss summed over valid targets as a 0-dim tensor."""

    def count(self, targets: Tensor) -> int | None:
        """Return how many targets are valid; None when every sample always counts as one."""


def build_loss(job: JobSpec, plan: Plan) -> Loss:
    """Return the job's loss, else the one the plan found for model and data."""
    options = job.train.loss.options if job.train.loss else {}
    loss: Loss = plugins.build("losses", plan.loss, options)
    return loss


def over_split_classes(loss: Loss, group: ProcessGroup) -> Loss:
    """Return the same loss for outputs whose last dim is split over the ranks of `group`.

    Cross-entropy works on the pieces; any other loss is given the outputs whole.
    """
    return _SplitCrossEntropy(loss, group) if isinstance(loss, CrossEntropy) else _Gathered(loss, group)


@dataclass(frozen=True)
class _SplitCrossEntropy:
    whole: CrossEntropy
    group: ProcessGroup

    def sum(self, outputs: Tensor, targets: Tensor) -> Tensor:
        from orchestrator.parallel.split_loss import split_cross_entropy

        config = self.whole.config
        ignore = -100 if config.ignore_index is None else config.ignore_index
        return split_cross_entropy(outputs, targets, self.group, ignore_index=ignore, smoothing=config.label_smoothing)

    def count(self, targets: Tensor) -> int | None:
        return self.whole.count(targets)


@dataclass(frozen=True)
class _Gathered:
    whole: Loss
    group: ProcessGroup

    def sum(self, outputs: Tensor, targets: Tensor) -> Tensor:
        from orchestrator.parallel.collectives import gather

        return self.whole.sum(gather(outputs, -1, self.group), targets)

    def count(self, targets: Tensor) -> int | None:
        return self.whole.count(targets)


class CrossEntropy:
    """Softmax cross-entropy over class logits (last dim), targets are class indices."""

    @dataclass(frozen=True)
    class Config:
        """`ignore_index`: targets of this value do not count. `label_smoothing`: in [0, 1)."""

        ignore_index: int | None = None
        label_smoothing: float = 0.0

        def __post_init__(self) -> None:
            if not 0 <= self.label_smoothing < 1:
                raise ValueError("label_smoothing must be in [0, 1)")

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def build(cls, config: Config) -> CrossEntropy:
        """Return the loss."""
        return cls(config)

    def sum(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the summed loss; outputs [..., classes], targets [...]."""
        from torch.nn import functional

        ignore = -100 if self.config.ignore_index is None else self.config.ignore_index
        return functional.cross_entropy(
            outputs.flatten(0, -2),
            targets.flatten(),
            reduction="sum",
            ignore_index=ignore,
            label_smoothing=self.config.label_smoothing,
        )

    def count(self, targets: Tensor) -> int | None:
        """Return the number of targets that are not ignored."""
        if self.config.ignore_index is None:
            return None if targets.dim() == 1 else targets.numel()
        return int((targets != self.config.ignore_index).sum())


class _PerSample:
    """A loss without options whose every sample counts as one (mean over its elements)."""

    @dataclass(frozen=True)
    class Config:
        """Takes no keys."""

    @classmethod
    def build(cls, config: Any) -> Any:
        """Return the loss."""
        return cls()

    def count(self, targets: Tensor) -> int | None:
        """Return None: every sample counts."""
        return None


class MeanSquaredError(_PerSample):
    """Squared difference, averaged over a sample's elements."""

    def sum(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over samples of their mean squared error."""
        difference_BX = (outputs.reshape(targets.shape) - targets).flatten(1) if targets.dim() > 1 else None
        if difference_BX is None:
            return (outputs.reshape(targets.shape) - targets).square().sum()
        return difference_BX.square().mean(dim=1).sum()


class BinaryCrossEntropy(_PerSample):
    """Logistic loss on one logit per sample, targets 0 or 1."""

    def sum(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the summed logistic loss; outputs [B] or [B, 1]."""
        from torch.nn import functional

        logits_B = outputs.reshape(targets.shape)
        return functional.binary_cross_entropy_with_logits(logits_B, targets.to(logits_B.dtype), reduction="sum")
