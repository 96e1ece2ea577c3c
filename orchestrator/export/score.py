"""Final evaluation: loss and metrics of a loaded model over one split, in one process, in batches of one size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.errors import ExportError
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.plan.plan import Plan
from orchestrator.spec.job import ClusterSection, JobSpec, ParallelSection
from orchestrator.train.loss import build_loss
from orchestrator.train.metrics import build_metrics

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.data.dataset import Dataset

Model = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True)
class Confusion:
    """How often each true class (row) was taken for each class (column)."""

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Score:
    """What was measured. `metrics` has `loss` and the job's metrics, without the split's name before them."""

    split: str
    samples: int
    batch_size: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    confusion: Confusion | None = None

    def named(self) -> dict[str, float]:
        """Return the metrics as they are logged: `test/loss`, `test/accuracy`."""
        return {f"{self.split}/{name}": value for name, value in self.metrics.items()}


def final_split(data: Dataset) -> str:
    """Return the split that the final evaluation runs on: test, else val. Raises ExportError when both are empty."""
    for name in ("test", "val"):
        if name in data.splits and len(data.splits[name]) > 0:
            return name
    raise ExportError(f"data {data.name} holds nothing out: no test and no val samples", hint="set data.test_fraction")


def held_out_inputs(data: Dataset, split: str, num_rows: int, dtype: str) -> Tensor:
    """Return the first `num_rows` inputs of a split (at least 2 rows, repeated if need be) in the model's precision."""
    import torch

    rows = torch.arange(max(2, min(num_rows, len(data.splits[split])))) % len(data.splits[split])
    return cast_inputs(data.splits[split].batch(rows)[0], dtype).contiguous()


def cast_inputs(inputs: Tensor, dtype: str) -> Tensor:
    """Return floating-point inputs in the dtype of this name (`float64`), others as they are."""
    import torch

    kind = getattr(torch, dtype)
    return inputs.to(kind) if inputs.is_floating_point() and kind.is_floating_point else inputs


def score(model: Model, job: JobSpec, data: Dataset, split_name: str, dtype: str = "float32") -> Score:
    """Evaluate `model` (a batch -> outputs) on a split. Raises ExportError when it is empty or not there."""
    import torch

    split = data.splits.get(split_name)
    if split is None or len(split) == 0:
        there = ", ".join(name for name, part in data.splits.items() if len(part))
        raise ExportError(f"data {data.name} has no samples in split '{split_name}'", hint=f"there are: {there}")
    plan = _plan(job, data)
    tally = _Tally(job, plan)
    batch = plan.batch.eval_batch
    with torch.no_grad():
        for start in range(0, len(split), batch):
            inputs, targets = split.batch(torch.arange(start, min(start + batch, len(split))))
            outputs = model(cast_inputs(inputs, dtype))
            tally.add(outputs, targets.to(outputs.dtype) if targets.is_floating_point() else targets)
    return Score(split_name, len(split), batch, tally.metrics(), tally.confusion(data.shape.classes))


def _plan(job: JobSpec, data: Dataset) -> Plan:
    """Return the plan of the job on one process: loss, metrics and evaluation batch do not hang on the layout."""
    alone = job.model_copy(
        update={
            "parallel": ParallelSection(replicate=1),
            "cluster": ClusterSection(gpus_per_worker=0, backend="gloo"),
            "train": job.train.model_copy(update={"accumulate": 1}),
        }
    )
    return build_plan(alone, Available.local(), data.shape)


class _Tally:
    """Sums over batches: loss, metrics and, for class targets, the confusion matrix."""

    def __init__(self, job: JobSpec, plan: Plan) -> None:
        self._loss, self._metrics = build_loss(job, plan), build_metrics(job, plan)
        self._kind, self._classes = plan.data.target_kind, len(plan.data.classes)
        self._loss_sum, self._count = 0.0, 0
        self._sums: dict[str, Tensor] = {}
        self._confusion: Tensor | None = None

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch: outputs and targets, batch dim first."""
        count = self._loss.count(targets)
        self._loss_sum += float(self._loss.sum(outputs, targets))
        self._count += len(targets) if count is None else count
        for name, metric in self._metrics.items():
            part = metric.sums(outputs, targets).double()
            self._sums[name] = self._sums[name] + part if name in self._sums else part
        self._add_confusion(outputs, targets)

    def _add_confusion(self, outputs: Tensor, targets: Tensor) -> None:
        if self._kind in ("class", "binary") and outputs.numel() == targets.numel():  # one logit, as `Accuracy` has it
            num, guess_B, truth_B = max(2, self._classes), (outputs.flatten() > 0).long(), targets.flatten().long()
        elif self._kind == "class" and outputs.dim() == 2 and targets.dim() == 1:
            num, guess_B, truth_B = outputs.shape[1], outputs.argmax(1), targets.long()
        else:
            return
        valid_B = (truth_B >= 0) & (truth_B < num)
        cells_N = truth_B[valid_B] * num + guess_B[valid_B]
        part = cells_N.bincount(minlength=num * num).reshape(num, num)
        self._confusion = part if self._confusion is None else self._confusion + part

    def metrics(self) -> dict[str, float]:
        """Return loss and metrics over everything added."""
        found = {"loss": self._loss_sum / max(1, self._count)}
        return found | {name: metric.compute(self._sums[name]) for name, metric in self._metrics.items()}

    def confusion(self, classes: tuple[str, ...]) -> Confusion | None:
        """Return the confusion matrix; None where targets are not classes."""
        if self._confusion is None:
            return None
        rows = self._confusion.tolist()
        names = classes if len(classes) == len(rows) else tuple(str(number) for number in range(len(rows)))
        return Confusion(names, tuple(tuple(row) for row in rows))
