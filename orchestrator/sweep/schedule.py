"""How many trials run at a time and what each takes: said in one line before the first begins, and warmed up for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.cluster.gangs import room_of
from orchestrator.cluster.pool import Pool
from orchestrator.plan.plan import Resources
from orchestrator.spec.sweep import SweepSection
from orchestrator.sweep.feasible import Feasible, Limits, judge_point
from orchestrator.sweep.space import Space

_SAMPLES = 16


def sample_needs(data: Mapping[str, Any], space: Space, limits: Limits) -> list[Resources]:
    """Return what trials all over the space ask of the cluster, one entry per feasible sample."""
    found: list[Resources] = []
    for index in range(_SAMPLES):
        units = [((index + 0.5) / _SAMPLES * (axis + 1)) % 1 for axis in range(len(space.params))]
        judged = judge_point(data, space.from_units(units), (), limits)
        if isinstance(judged, Feasible):
            found.append(judged.plan.resources)
    return found


def warm_start(needs: Sequence[Resources], sweep: SweepSection, pool: Pool) -> tuple[Resources, int]:
    """Return the commonest size and how many gangs of it to start at once. `needs` is not empty."""
    need = max(needs, key=needs.count)
    caps = [room_of(need).times_in(pool.total), sweep.trials or 2**31]
    return need, min(caps + ([sweep.parallel_trials] if sweep.parallel_trials != "auto" else []))


def schedule_line(sweep: SweepSection, needs: Sequence[Resources], size: int | None, pool: Pool) -> str:
    """Return for example `24 trials, 2 at a time: 1 process with 1 CPU, of 2 CPUs`."""
    count = f"{sweep.trials} trials" if sweep.trials else f"up to {size} trials" if size else "trials"
    total = f"{pool.total.cpus:g} CPUs" + (f", {pool.total.gpus:g} GPUs" if pool.total.gpus else "")
    if not needs:
        return f"{count}, of {total}"
    cap = sweep.parallel_trials if sweep.parallel_trials != "auto" else 2**31
    fits = [min(cap, room_of(need).times_in(pool.total)) for need in needs]
    low, high = max(1, min(fits)), max(fits)
    many = f"{high} at a time" if low == high else f"{low} to {high} at a time"
    sizes = Counter((need.num_workers, need.cpus_per_worker, need.gpus_per_worker) for need in needs)
    return f"{count}, {many}: {'; '.join(_each(*each) for each in sorted(sizes))}, of {total}"


def _each(workers: int, cpus: float, gpus: float) -> str:
    processes = "1 process" if workers == 1 else f"{workers} processes"
    share = f"{cpus:g} CPU" + (f", {gpus:g} GPU" if gpus else "")
    return f"{processes} with {share}" + (" each" if workers > 1 else "")
