"""What `train.profile` asks for: torch's trace of some steps of rank 0, and what a pipeline's ranks did in a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.parallel.pipeline import Pipeline
from orchestrator.parallel.timeline import (
    Timeline,
    draw,
    gather_timelines,
    measured_bubble,
    median_step,
    perfetto,
    title,
)
from orchestrator.runs.paths import RunDir
from orchestrator.runs.spool import SpoolWriter
from orchestrator.train.ports import Recorder

_SKIP_STEPS, _WARMUP_STEPS, _TRACED_STEPS = 5, 2, 5
_MEASURED_STEPS = 3

T = TypeVar("T")


def trace_path(run: RunDir) -> Path:
    """Return where the trace of a run lies."""
    return run.artifacts / "profile" / "trace.json"


def pipeline_paths(run: RunDir) -> tuple[Path, Path]:
    """Return where the trace and the picture of a run's pipeline lie."""
    return run.artifacts / "profile" / "pipeline.json", run.artifacts / "figures" / "pipeline.svg"


def record_trace(spool: SpoolWriter, run: RunDir) -> None:
    """Hand what was made to the tracking store: traces under `profile/`, the pipeline's picture under `figures/`."""
    for path in (trace_path(run), *pipeline_paths(run)):
        if path.is_file():
            spool.record("artifact", path=str(path), artifact_path=path.parent.name)


class StepProfiler:
    """Traces a few steps into `trace_path`, past the first few where the run is long enough; nothing unless asked."""

    def __init__(self, enabled: bool, run: RunDir | None, num_steps: int) -> None:
        self._profiler: Any = None
        if not enabled or run is None:
            return
        from torch.profiler import profile, schedule

        target = trace_path(run)
        target.parent.mkdir(parents=True, exist_ok=True)
        is_short = _is_short(num_steps)
        skip, warmup = (0, 0) if is_short else (_SKIP_STEPS, _WARMUP_STEPS)
        self._profiler = profile(
            schedule=schedule(wait=skip, warmup=warmup, active=_TRACED_STEPS, repeat=1),
            on_trace_ready=lambda profiler: profiler.export_chrome_trace(str(target)),
        )
        self._profiler.start()

    def step(self) -> None:
        """Tell the profiler that a step is over."""
        if self._profiler is not None:
            self._profiler.step()

    def close(self) -> None:
        """Stop tracing."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None


def measured_steps(num_steps: int) -> range:
    """Return which steps of an attempt of `num_steps` a pipeline is measured in.

    The first step builds the schedule; torch's tracer, which slows rank 0 alone, begins after the fifth step, or with
    the first where the run is short. Both are kept clear of as far as the steps reach.
    """
    first = _SKIP_STEPS - _MEASURED_STEPS
    if _is_short(num_steps):
        first = max(1, min(_TRACED_STEPS, num_steps - 1))
    return range(first, min(first + _MEASURED_STEPS, num_steps))


def _is_short(num_steps: int) -> bool:
    return num_steps < _SKIP_STEPS + _WARMUP_STEPS + _TRACED_STEPS


class PipelineProfiler:
    """Measures some steps of a pipeline and keeps the one of median length. Every rank takes part alike."""

    def __init__(self, pipeline: Pipeline | None, run: RunDir | None, recorder: Recorder, num_steps: int) -> None:
        """Without `pipeline` nothing is measured. `run` is where rank 0 leaves its files; None writes nothing."""
        self._pipeline, self._run, self._recorder = pipeline, run, recorder
        self._steps = measured_steps(num_steps) if pipeline is not None else range(0)
        self._taken = 0
        self._found: list[list[Timeline]] = []

    def take(self, step: Callable[[], T], number: int) -> T:
        """Take a step (its `number` counts from 1 over the whole run), measured if it is its turn. Collective."""
        taken, self._taken = self._taken, self._taken + 1
        if self._pipeline is None or taken not in self._steps:
            return step()
        results: list[T] = []
        self._found.append(gather_timelines(self._pipeline, lambda: results.append(step())))
        if self._taken == self._steps.stop:
            self._tell(self._pipeline, number)
        return results[0]

    def _tell(self, pipeline: Pipeline, number: int) -> None:
        median = median_step(self._found)
        bubbles = {"perf/bubble_measured": measured_bubble(median), "perf/bubble_ideal": pipeline.stages.ideal_bubble}
        self._recorder.metrics(number, bubbles)
        if self._run is not None:
            path = pipeline_paths(self._run)[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(perfetto(median), encoding="utf-8")

    def close(self) -> None:
        """Draw the picture, which takes a second and therefore waits until training is over."""
        if self._pipeline is None or self._run is None or not self._found:
            return
        median, path = median_step(self._found), pipeline_paths(self._run)[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(median, path, title(self._pipeline.stages, measured_bubble(median)))
