"""A pipeline measured: what every rank did during one step, as spans, a Perfetto trace, a picture and the bubble.

Times are wall-clock on each rank, counted from a barrier before the step; on a GPU the device is waited for at the end
of every span, which keeps spans apart and makes the step slower than an unmeasured one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.pipelining import schedules as torch_schedules

from orchestrator.errors import PlanError
from orchestrator.parallel.pipeline import Pipeline
from orchestrator.plan.stages import Stages

WORK = ("forward", "backward", "input backward", "weight backward", "loss")
COLORS = {
    "forward": "#4c78a8",
    "loss": "#9ecae9",
    "backward": "#54a24b",
    "input backward": "#54a24b",
    "weight backward": "#b6992d",
    "wait": "#d9d9d9",
}
SAID = {"wait": "send, receive (waiting)"}


@dataclass(frozen=True)
class Span:
    """One thing a rank did. `stage` and `microbatch` are -1 for waiting; times in seconds from the barrier."""

    kind: str
    stage: int
    microbatch: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Timeline:
    """The spans of one pipeline rank during one step, which took `step_s` seconds from the barrier."""

    rank: int
    step_s: float
    spans: tuple[Span, ...]

    @property
    def busy_s(self) -> float:
        """Seconds of computing."""
        return sum(span.end_s - span.start_s for span in self.spans if span.kind in WORK)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def measure_step(pipeline: Pipeline, step: Callable[[], object]) -> Timeline:
    """Run `step` (one that calls `pipeline.forward_backward`) and return what this rank did in that call. Collective.

    Raises PlanError before the pipeline's first step: its schedule is made then.
    """
    schedule = pipeline._schedule
    if schedule is None:
        raise PlanError("a pipeline is measured from its second step on", hint="run a step first")
    recorder = _Recorder(torch.cuda.is_available() and dist.get_backend(pipeline.group) == "nccl")
    with recorder.listening(pipeline, schedule):
        step()
    return Timeline(pipeline.rank, recorder.total_s, tuple(recorder.spans))


def gather_timelines(pipeline: Pipeline, step: Callable[[], object]) -> list[Timeline]:
    """Measure a step on all ranks of this pipeline and return their timelines, alike on each. Collective."""
    mine = measure_step(pipeline, step)
    lines: list[Any] = [None] * dist.get_world_size(pipeline.group)
    dist.all_gather_object(lines, mine, group=pipeline.group)
    return lines


def step_length(timelines: Sequence[Timeline]) -> float:
    """Return the seconds that the step took, which are those of its slowest rank."""
    return max(timeline.step_s for timeline in timelines)


def median_step(measured: Sequence[list[Timeline]]) -> list[Timeline]:
    """Return the step of median length."""
    return sorted(measured, key=step_length)[len(measured) // 2]


def measured_bubble(timelines: Sequence[Timeline]) -> float:
    """Return the share of the ranks' time in which they did not compute, sending and waiting included."""
    step_s = step_length(timelines)
    return 1.0 - sum(timeline.busy_s for timeline in timelines) / (step_s * len(timelines))


class _Recorder:
    def __init__(self, synchronise: bool) -> None:
        self.spans: list[Span] = []
        self._synchronise = synchronise
        self.total_s = 0.0
        self._begin = 0.0

    def _whole(self, call: Callable[..., Any], group: dist.ProcessGroup) -> Callable[..., Any]:
        """Let all ranks begin at once, and take the time of the whole."""

        def timed(*given: Any, **named: Any) -> Any:
            dist.barrier(group=group)
            self._begin = time.perf_counter()
            result = call(*given, **named)
            self.total_s = self.now()
            return result

        return timed

    def now(self) -> float:
        if self._synchronise:
            torch.cuda.synchronize()
        return time.perf_counter() - self._begin

    @contextmanager
    def listening(self, pipeline: Pipeline, schedule: Any) -> Iterator[None]:
        """Time the stages' methods, the loss and the waiting for neighbours; all is as before afterwards."""
        stages = getattr(schedule, "_stages", None) or [schedule._stage]
        waiting = torch_schedules._wait_batch_p2p
        loss = schedule._loss_fn
        schedule.step = self._whole(schedule.step, pipeline.group)
        for stage in stages:
            stage.forward_one_chunk = self._timed(stage.forward_one_chunk, stage.stage_index, lambda named: "forward")
            stage.backward_one_chunk = self._timed(stage.backward_one_chunk, stage.stage_index, _kind_of_backward)
            stage.backward_weight_one_chunk = self._timed(
                stage.backward_weight_one_chunk, stage.stage_index, lambda named: "weight backward"
            )
        torch_schedules._wait_batch_p2p = self._timed(waiting, -1, lambda named: "wait")
        schedule._loss_fn = self._timed(loss, len(pipeline.stages.layers) - 1, lambda named: "loss")
        try:
            yield
        finally:
            torch_schedules._wait_batch_p2p = waiting
            schedule._loss_fn = loss
            del schedule.step  # the class's own again, as for the stages
            for stage in stages:
                for name in ("forward_one_chunk", "backward_one_chunk", "backward_weight_one_chunk"):
                    delattr(stage, name)

    def _timed(self, call: Callable[..., Any], stage: int, kind: Callable[[dict[str, Any]], str]) -> Callable[..., Any]:
        @wraps(call)
        def timed(*given: Any, **named: Any) -> Any:
            start = self.now()
            result = call(*given, **named)
            microbatch = given[0] if given and isinstance(given[0], int) else -1
            self.spans.append(Span(kind(named), stage, microbatch, start, self.now()))
            return result

        return timed


def _kind_of_backward(named: dict[str, Any]) -> str:
    return "backward" if named.get("full_backward", True) else "input backward"


def perfetto(timelines: Sequence[Timeline]) -> str:
    """Return a trace for ui.perfetto.dev (Chrome's JSON format), a row per rank, microseconds."""
    events: list[dict[str, Any]] = []
    for line in timelines:
        events.append({"ph": "M", "name": "thread_name", "pid": 0, "tid": line.rank, "args": {"name": _row(line)}})
        for span in line.spans:
            event = {"ph": "X", "pid": 0, "tid": line.rank, "name": _label(span), "cat": span.kind}
            events.append({**event, "ts": span.start_s * 1e6, "dur": (span.end_s - span.start_s) * 1e6})
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def title(stages: Stages, bubble: float) -> str:
    """Return what stands over the picture: the schedule, and its bubble as measured and in theory."""
    return (
        f"{stages.schedule}, {stages.microbatches} microbatches: bubble {bubble:.0%} measured, "
        f"{stages.ideal_bubble:.0%} ideal"
    )


def draw(timelines: Sequence[Timeline], path: Path, title: str) -> None:
    """Draw a row per rank into `path` (.svg or .png): time to the right, what is blank is idle."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.2 + 0.6 * len(timelines)))
    axes = figure.subplots()
    for row, line in enumerate(timelines):
        for span in sorted(line.spans, key=lambda each: each.kind != "wait"):
            width = (span.end_s - span.start_s) * 1e3
            axes.barh(row, width, left=span.start_s * 1e3, color=COLORS[span.kind], edgecolor="white", linewidth=0.4)
            if span.microbatch >= 0 and width > 0.02 * line.step_s * 1e3:
                at = (span.start_s + span.end_s) / 2 * 1e3
                axes.text(at, row, str(span.microbatch), ha="center", va="center", fontsize=7, color="white")
    axes.set_yticks(range(len(timelines)), [_row(line) for line in timelines])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds, measured")
    axes.set_title(title, fontsize=9)
    kinds = dict.fromkeys(span.kind for line in timelines for span in line.spans)
    handles = [axes.barh(0, 0, color=COLORS[kind], label=SAID.get(kind, kind)) for kind in kinds]
    handles.append(axes.barh(0, 0, color="white", edgecolor="#8a94a6", label="idle"))
    axes.legend(handles=handles, fontsize=7, ncols=len(handles), loc="upper center", bbox_to_anchor=(0.5, -0.35))
    figure.savefig(path, bbox_inches="tight")


def _row(line: Timeline) -> str:
    return f"pipeline rank {line.rank}"


def _label(span: Span) -> str:
    return span.kind if span.stage < 0 else f"{span.kind}, stage {span.stage}, microbatch {span.microbatch}"
