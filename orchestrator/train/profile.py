"""A torch profiler trace of a few steps of rank 0, opened in Perfetto or chrome://tracing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.runs.paths import RunDir
from orchestrator.runs.spool import SpoolWriter

_SKIP_STEPS, _WARMUP_STEPS, _TRACED_STEPS = 5, 2, 5


def trace_path(run: RunDir) -> Path:
    """Return where the trace of a run lies."""
    return run.artifacts / "profile" / "trace.json"


def record_trace(spool: SpoolWriter, run: RunDir) -> None:
    """Hand the trace, if one was made, to the tracking store as `profile/trace.json`."""
    if trace_path(run).is_file():
        spool.record("artifact", path=str(trace_path(run)), artifact_path="profile")


class StepProfiler:
    """Traces a few steps into `trace_path`, past the first few where the run is long enough; nothing unless asked."""

    def __init__(self, enabled: bool, run: RunDir | None, num_steps: int) -> None:
        self._profiler: Any = None
        if not enabled or run is None:
            return
        from torch.profiler import profile, schedule

        target = trace_path(run)
        target.parent.mkdir(parents=True, exist_ok=True)
        is_short = num_steps < _SKIP_STEPS + _WARMUP_STEPS + _TRACED_STEPS
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
