"""The work of the process that trains a supernet: as any run in its folder, then every part of it is scored.

`nets.json` says which parts there are; `weights.safetensors` and `ranking.json` are there when all is done. Killed
before, it goes on from its newest checkpoint. Called by the warm worker of a sweep.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from orchestrator.log import get_logger
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import make_durable
from orchestrator.supernet.model import Part, build_whole
from orchestrator.supernet.page import WEIGHTS_FILE, Nets, Ranking, read_nets, write_ranking
from orchestrator.supernet.rank import score
from orchestrator.supernet.sandwich import SandwichStepper
from orchestrator.train.engine import Engine
from orchestrator.train.entry import Recipe
from orchestrator.train.evaluate import evaluate
from orchestrator.train.ports import FitResult
from orchestrator.train.step import Stepper

_log = get_logger("supernet")


def recipe_of(run: RunDir) -> Recipe:
    """Return how the supernet in this folder is trained. Raises CheckpointError when it does not say which parts."""
    nets = read_nets(run)
    uses = nets.uses

    def finish(engine: Engine, result: FitResult, beat: Callable[[int, str], None]) -> None:
        if result.status == "finished":  # one that was asked to stop goes on later
            rank_parts(run, engine, nets, result, beat)

    return Recipe(
        construct=lambda job: build_whole(job, uses),
        stepper=lambda engine: SandwichStepper(engine, nets),
        finish=finish,
    )


def rank_parts(run: RunDir, engine: Engine, nets: Nets, result: FitResult, beat: Callable[[int, str], None]) -> Ranking:
    """Score every part, write the shared weights and the ranking; return it."""
    began = time.perf_counter()
    whole = dict(engine.model.module.named_parameters())
    stepper = Stepper(engine)
    batches = [pair for step in range(nets.recalibrate) for pair in stepper.microbatches(step)]
    scores: list[Mapping[str, float]] = []
    for net in nets.uses:
        beat(result.step, "eval")
        scores.append(score(engine, Part(engine.job, net, whole), batches))
    sha256 = _write_weights(run, {name: each.detach() for name, each in whole.items()})
    widest = {f"val/{name}": value for name, value in evaluate(engine, "val").items()}
    ranking = Ranking(
        tuple(scores), str(run.path / WEIGHTS_FILE), sha256, widest, result.train_s, time.perf_counter() - began
    )
    write_ranking(run, ranking)
    _log.info("scored %d parts in %.1f s", len(scores), ranking.rank_s)
    return ranking


def _write_weights(run: RunDir, weights: Mapping[str, Tensor]) -> str:
    """Write the shared weights in plain layout, whole or not at all; return the file's SHA-256."""
    from safetensors.torch import save

    content = save(
        {name: each.cpu().contiguous(memory_format=torch.contiguous_format) for name, each in weights.items()}
    )
    path = run.path / WEIGHTS_FILE
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    make_durable(fresh)  # the ranking, by which it counts as trained, is so too, and comes after it
    os.replace(fresh, path)
    make_durable(run.path)
    return hashlib.sha256(content).hexdigest()
