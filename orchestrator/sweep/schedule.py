"""How many trials run at a time and what each takes, in one line, before the first begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from orchestrator.cluster.pool import Pool, room_of
from orchestrator.spec.job import JobSpec
from orchestrator.sweep.feasible import Feasible, Limits, judge_point
from orchestrator.sweep.space import Space

_SAMPLES = 16


def schedule_line(job: JobSpec, data: Mapping[str, Any], space: Space, pool: Pool, limits: Limits) -> str:
    """Return for example `24 trials, 2 at a time: each 1 process with 1 CPU, of 2 CPUs`."""
    sweep = job.sweep
    if sweep is None:
        return ""
    sizes: Counter[tuple[int, float, float]] = Counter()
    at_a_time: list[int] = []
    for index in range(_SAMPLES):
        unit = (index + 0.5) / _SAMPLES
        judged = judge_point(
            data, space.from_units([(unit * (n + 1)) % 1 for n in range(len(space.params))]), (), limits
        )
        if isinstance(judged, Feasible):
            need = judged.plan.resources
            sizes[(need.num_workers, need.cpus_per_worker, need.gpus_per_worker)] += 1
            at_a_time.append(room_of(need).times_in(pool.total))
    limit = sweep.parallel_trials if sweep.parallel_trials != "auto" else max(at_a_time, default=1)
    low, high = min([limit, *at_a_time]), min(limit, max(at_a_time, default=1))
    count = f"{sweep.trials} trials" if sweep.trials else f"up to {size} trials" if (size := space.size()) else "trials"
    many = f"{high} at a time" if low == high else f"{max(1, low)} to {high} at a time"
    each = "; ".join(_each(*size) for size in sorted(sizes))
    total = f"{pool.total.cpus:g} CPUs" + (f", {pool.total.gpus:g} GPUs" if pool.total.gpus else "")
    return f"{count}, {many}: {each}, of {total}" if each else f"{count}, of {total}"


def _each(workers: int, cpus: float, gpus: float) -> str:
    processes = "1 process" if workers == 1 else f"{workers} processes"
    share = f"{cpus:g} CPU" + (f", {gpus:g} GPU" if gpus else "")
    return f"{processes} with {share}" + (" each" if workers > 1 else "")
