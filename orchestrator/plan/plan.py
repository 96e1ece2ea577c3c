"""`Plan`: what will run, in numbers. Frozen; built by `build_plan`, read by every later stage."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.plan.layout import Layout
from orchestrator.plan.shapes import DataShape
from orchestrator.plan.stages import Stages


@dataclass(frozen=True)
class BatchPlan:
    """How one optimiser step's samples are cut up. global_batch = num_data_ranks x accumulate x microbatch."""

    global_batch: int
    num_data_ranks: int
    accumulate: int
    microbatch: int
    eval_batch: int
    num_train_samples: int
    total_steps: int
    eval_every_steps: int | None
    """Steps between evaluations; None: at the end of every epoch."""
    save_every_steps: int | None
    """Steps between checkpoints; None: at the end of every epoch."""

    def epoch_after(self, step: int) -> float:
        """Return how many passes over the training split `step` finished steps make."""
        return step * self.global_batch / self.num_train_samples

    def ends_epoch(self, step: int) -> bool:
        """Say whether the `step`-th step (counted from 1) is the one in which an epoch's last sample is used."""
        now, before = step * self.global_batch, (step - 1) * self.global_batch
        return now // self.num_train_samples > before // self.num_train_samples

    def due(self, every_steps: int | None, step: int) -> bool:
        """Say whether what is done every `every_steps` (None: every epoch) is due after `step`; the last always is."""
        if step == self.total_steps:
            return True
        return self.ends_epoch(step) if every_steps is None else step % every_steps == 0

    def count_due(self, every_steps: int | None, step: int) -> int:
        """Return how often it has been due in the first `step` steps."""
        if every_steps is None:
            epochs = step * self.global_batch // self.num_train_samples
            regular = min(step, epochs)  # a batch larger than the split ends several epochs at once
        else:
            regular = step // every_steps
        last_too = self.ends_epoch(step) if every_steps is None else step % every_steps == 0
        return regular + (step == self.total_steps and not last_too)


@dataclass(frozen=True)
class Resources:
    """What each worker is given, and what is there. Device kind is "cpu" or "cuda"."""

    num_workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    backend: str
    device: str

    @property
    def total_cpus(self) -> float:
        """CPUs of all workers together."""
        return self.num_workers * self.cpus_per_worker


@dataclass(frozen=True)
class Memory:
    """Bytes per rank, predicted: weights, gradients, optimiser state. Activations are not predicted."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int

    @property
    def total_bytes(self) -> int:
        """Sum of the three."""
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes


@dataclass(frozen=True)
class Plan:
    """A job that fits: layout, batches, resources, predicted memory, and the numbers of model and data behind them."""

    layout: Layout
    batch: BatchPlan
    resources: Resources
    uses_ray: bool
    loss: str
    data: DataShape
    num_params: int | None
    flops_per_sample: int | None
    memory: Memory | None
    stages: Stages | None = None
    """How a pipeline is cut; None without one."""
    context_attention: str | None = None
    """How attention brings the pieces of a sequence together: heads or ring; None without the context axis."""
    notes: tuple[str, ...] = ()
    """Things the user should know, for example what can only be checked in the worker."""
