"""Measures a job's pipeline on this machine: per-rank timelines of its median step, and the bubble beside the ideal."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from orchestrator.errors import PlanError
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.plan.stages import Stages
from orchestrator.spec.job import JobSpec
from orchestrator.verify.layouts import on_cpus

_WARM_STEPS = 2
_RESULT = "timelines.json"


@dataclass(frozen=True)
class Measured:
    """Timelines of the ranks of one pipeline (plain values), and bubbles as shares of the time."""

    stages: Stages
    timelines: tuple[dict[str, Any], ...]
    step_s: float
    measured_bubble: float
    ideal_bubble: float
    num_ranks: int


def measure_pipeline(job: JobSpec, num_steps: int = 7) -> Measured:
    """Train a few steps under the job's layout in its own precision; return the step of median length.

    Raises PlanError when the job has no pipeline.
    """
    from orchestrator.testing.ranks import run_ranks

    job = on_cpus(job)
    plan = build_plan(job, Available.unknown())
    if plan.stages is None:
        raise PlanError("the layout has no pipeline to measure", hint="set parallel.pipeline=2 or more")
    with TemporaryDirectory(prefix="timeline-") as folder:
        ranks = plan.layout.world_size
        run_ranks(write_timelines, ranks, job.model_dump(mode="json"), num_steps, folder, timeout_s=600.0)
        found = json.loads((Path(folder) / _RESULT).read_text(encoding="utf-8"))
    stages = plan.stages
    return Measured(stages, tuple(found["timelines"]), found["step_s"], found["bubble"], stages.ideal_bubble, ranks)


def write_timelines(rank: int, world_size: int, job: dict[str, Any], num_steps: int, folder: str) -> bool:
    """Measure steps as one rank; rank 0 writes the median one of its pipeline. Collective."""
    from orchestrator.parallel.process import Rank
    from orchestrator.parallel.timeline import Timeline, gather_timelines, measured_bubble, median_step, step_length
    from orchestrator.train.engine import build_engine
    from orchestrator.train.step import Stepper

    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    engine = build_engine(JobSpec.model_validate(job), Rank(rank, world_size, rank))
    stepper, pipeline = Stepper(engine), engine.model.pipeline
    if pipeline is None:
        raise PlanError("the layout has no pipeline to measure", hint="set parallel.pipeline=2 or more")
    for step in range(_WARM_STEPS):
        stepper.backward(step)
    measured: list[list[Timeline]] = []
    for step in range(_WARM_STEPS, _WARM_STEPS + num_steps):
        measured.append(gather_timelines(pipeline, lambda step=step: stepper.backward(step)))  # type: ignore[misc]
    if rank == 0:
        median = median_step(measured)
        found = {
            "timelines": [line.as_dict() for line in median],
            "step_s": step_length(median),
            "bubble": measured_bubble(median),
        }
        (Path(folder) / _RESULT).write_text(json.dumps(found), encoding="utf-8")
    return True


def save(measured: Measured, path: Path) -> None:
    """Write a picture (.svg, .png) or a trace for ui.perfetto.dev (.json)."""
    from orchestrator.parallel.timeline import Span, Timeline, draw, perfetto, title

    lines = [
        Timeline(line["rank"], line["step_s"], tuple(Span(**span) for span in line["spans"]))
        for line in measured.timelines
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(perfetto(lines), encoding="utf-8")
        return
    draw(lines, path, title(measured.stages, measured.measured_bubble))
