"""What one training run computes, on any layout, gathered as full tensors: the measure of layout independence."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from orchestrator.parallel.grads import clip_gradients
from orchestrator.parallel.process import Rank, sum_over_ranks
from orchestrator.spec.job import JobSpec
from orchestrator.train.engine import build_engine
from orchestrator.train.evaluate import evaluate
from orchestrator.train.step import Stepper


def _full(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def trace(rank: int, world_size: int, job: dict[str, Any], num_steps: int) -> dict[str, Any]:
    """Train `num_steps` steps; return losses, gradient norms, first gradients, final weights and validation figures."""
    spec = JobSpec.model_validate(job)
    engine = build_engine(spec, Rank(rank, world_size, rank))
    stepper = Stepper(engine)
    found: dict[str, Any] = {"loss": [], "norm": [], "gradients": {}, "clipped_norm": []}
    for step in range(num_steps):
        share, norm = stepper.backward(step)
        if step == 0:
            found["gradients"] = {n: _full(p.grad) for n, p in engine.model.module.named_parameters()}
        if spec.optim.clip_norm is not None:
            clip_gradients(stepper.parameters, spec.optim.clip_norm, norm)
        grads = [_full(p.grad) for p in stepper.parameters]
        found["clipped_norm"].append(float(torch.stack([g.norm() for g in grads]).norm()))
        outcome = stepper.step(step)
        found["loss"].append(float(sum_over_ranks(share.double())))
        found["norm"].append(outcome.grad_norm)
    found["weights"] = {n: _full(p) for n, p in engine.model.module.named_parameters()}
    found["val"] = evaluate(engine, "val")
    if dist.is_initialized():
        dist.barrier()
    return found


def difference(got: torch.Tensor, want: torch.Tensor, floor: float = 1e-12) -> float:
    """Return norm of the difference over norm."""
    return float((got.double() - want.double()).norm() / max(float(want.double().norm()), floor))
