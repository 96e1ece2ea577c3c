"""What a few training steps compute, as full tensors on disk: written by ranks, read by `compare`. Collective."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from orchestrator.parallel.grads import clip_gradients
from orchestrator.parallel.process import Rank, sum_over_ranks
from orchestrator.spec.job import JobSpec
from orchestrator.train.engine import Engine, build_engine
from orchestrator.train.step import Stepper
from orchestrator.verify.compare import NUMBERS
from orchestrator.verify.facts import has_dropout


def write_trace(rank: int, world_size: int, job: dict[str, Any], num_steps: int, folder: str) -> bool:
    """Train `num_steps` steps as one rank; rank 0 writes tensors per step and the numbers. Returns True.

    Dropout is off: its masks follow the data rank, so layouts differ in it by design.
    """
    # Gathering a shard of a shard takes two messages, which torch warns of; here that is what is meant.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    engine = build_engine(JobSpec.model_validate(job), Rank(rank, world_size, rank))
    turn_off_dropout(engine.model.module)
    stepper = Stepper(engine)
    target = Path(folder)
    numbers: list[dict[str, float]] = []
    for step in range(num_steps):
        numbers.append(_one_step(engine, stepper, step, target))
    if engine.rank.is_main:
        (target / NUMBERS).write_text(json.dumps(numbers), encoding="utf-8")
    return True


def turn_off_dropout(module: nn.Module) -> None:
    """Set the dropout probability of every layer that has one to 0."""
    for child in module.modules():
        if has_dropout(child):
            setattr(child, "p" if hasattr(child, "p") else "dropout", 0.0)


def _one_step(engine: Engine, stepper: Stepper, step: int, target: Path) -> dict[str, float]:
    share, norm = stepper.backward(step)
    loss = float(sum_over_ranks(share.double()))
    _write(engine, target / f"gradients-{step}.safetensors", _gradients(engine))
    stepper.set_rates(step)
    limit = engine.job.optim.clip_norm
    if limit is not None:
        clip_gradients(stepper.parameters, limit, norm)
    clipped = float(stepper.gradient_norm())
    stepper.update()
    _write(engine, target / f"weights-{step}.safetensors", dict(engine.model.module.named_parameters()))
    _write(engine, target / f"buffers-{step}.safetensors", _buffers(engine))
    return {"loss": loss, "norm": float(norm), "clipped_norm": clipped}


def _buffers(engine: Engine) -> dict[str, Tensor]:
    """Return the buffers that are saved with the model; the others are this rank's own notes."""
    weights = dict(engine.model.module.named_parameters(remove_duplicate=False))
    return {name: value for name, value in engine.model.module.state_dict().items() if name not in weights}


def _gradients(engine: Engine) -> dict[str, Tensor]:
    return {name: p.grad for name, p in engine.model.module.named_parameters() if p.grad is not None}


def _write(engine: Engine, path: Path, tensors: dict[str, Tensor]) -> None:
    full = {name: _full(tensor) for name, tensor in tensors.items()}
    if engine.model.pipeline is not None:
        full = _over_stages(engine, full)
    if engine.rank.is_main:
        save_file(full, path)


def _over_stages(engine: Engine, mine: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of all stages. A copy of a shared parameter is left out if it equals the first, as it must."""
    pipeline, first_name = engine.model.pipeline, engine.model.first_name
    if pipeline is None:
        return mine
    everyone: list[dict[str, Tensor]] = [{} for _ in range(dist.get_world_size(pipeline.group))]
    dist.all_gather_object(everyone, mine, group=pipeline.group)
    together = {name: tensor for each in everyone for name, tensor in each.items()}
    return {
        name: tensor
        for name, tensor in together.items()
        if first_name(name) == name or not torch.equal(tensor, together[first_name(name)])
    }


def _full(tensor: Tensor) -> Tensor:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().to("cpu", copy=True).contiguous()
