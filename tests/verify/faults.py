"""Faults planted in a rank before it writes its trace: what `verify` must find and name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from orchestrator.parallel import ring
from orchestrator.parallel.pipeline import Pipeline
from orchestrator.parallel.shared import SharedOverStages
from orchestrator.train import step
from orchestrator.verify.trace import write_trace


def scaled_pipeline(rank: int, world_size: int, job: dict[str, Any], num_steps: int, folder: str) -> bool:
    """Divide the gradient by the number of microbatches, as torch's own scaling on top of ours would."""
    right = Pipeline._loss

    def wrong(self: Pipeline, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = right(self, outputs, targets)
        share = loss / self.stages.microbatches
        return share + (loss - share).detach()  # the loss that is shown stays right

    Pipeline._loss = wrong  # type: ignore[method-assign]
    return write_trace(rank, world_size, job, num_steps, folder)


def unsummed_shared(rank: int, world_size: int, job: dict[str, Any], num_steps: int, folder: str) -> bool:
    """Leave every stage with its own part of a shared parameter's gradient."""

    def nothing(self: SharedOverStages, named: Mapping[str, Tensor]) -> None:
        """No stage hears of the others."""

    SharedOverStages.reduce = nothing  # type: ignore[method-assign]
    return write_trace(rank, world_size, job, num_steps, folder)


def own_norm(rank: int, world_size: int, job: dict[str, Any], num_steps: int, folder: str) -> bool:
    """Let every stage clip by the norm of its own gradients."""
    right = step.gradient_norm

    def wrong(parameters: Sequence[Tensor], stages: Any = None, **rest: Any) -> Tensor:
        return right(parameters, **rest)

    step.gradient_norm = wrong
    return write_trace(rank, world_size, job, num_steps, folder)


def unscaled_ring(rank: int, world_size: int, job: dict[str, Any], num_steps: int, folder: str) -> bool:
    """Add up what the blocks of keys gave without scaling each by its share of the whole softmax."""

    def wrong(mean: Tensor, total: Tensor, other: Tensor, other_total: Tensor) -> tuple[Tensor, Tensor]:
        return (mean + other) / 2, torch.logaddexp(total, other_total)

    ring.merge = wrong
    return write_trace(rank, world_size, job, num_steps, folder)


def ring_gradients_left_behind(rank: int, world_size: int, job: dict[str, Any], num_steps: int, folder: str) -> bool:
    """Keep the gradients of keys and values with the rank that computed them instead of sending them home."""
    right = ring._Ring.start

    def wrong(self: ring._Ring, tensors: list[Tensor], **rest: bool) -> Any:
        return right(self, tensors, **rest) if rest else ring._Coming(tensors, [], [])

    ring._Ring.start = wrong  # type: ignore[method-assign]
    return write_trace(rank, world_size, job, num_steps, folder)


def needs_float32(rank: int, world_size: int, job: dict[str, Any], num_steps: int, folder: str) -> bool:
    """Stand for a model that cannot run in float64."""
    if job["train"]["precision"] == "fp64":
        raise NotImplementedError("this kernel knows no double")
    return write_trace(rank, world_size, job, num_steps, folder)


def dies_on_two(rank: int, world_size: int, job: dict[str, Any], num_steps: int, folder: str) -> bool:
    """Stand for a layout that cannot run."""
    if world_size == 2 and job["parallel"]["shard"] == 2:
        raise RuntimeError("no kernel for this")
    return write_trace(rank, world_size, job, num_steps, folder)
