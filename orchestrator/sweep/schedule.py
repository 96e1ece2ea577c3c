"""How many trials run at a time and what each takes: said in one line before the first begins, and warmed up for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.cluster.pool import Pool
from orchestrator.plan.layout import Layout
from orchestrator.plan.plan import Resources
from orchestrator.spec.sweep import SweepSection
from orchestrator.sweep.feasible import Feasible, Limits, judge_point
from orchestrator.sweep.space import Space

Need = tuple[Resources, Layout]
_SAMPLES = 16


def sample_needs(data: Mapping[str, Any], space: Space, limits: Limits) -> list[Need]:
    """Return what trials all over the space ask of the cluster, one entry per feasible sample."""
    found: list[Need] = []
    for index in range(_SAMPLES):
        units = [((index + 0.5) / _SAMPLES * (axis + 1)) % 1 for axis in range(len(space.params))]
        judged = judge_point(data, space.from_units(units), (), limits)
        if isinstance(judged, Feasible):
            found.append((judged.plan.resources, judged.plan.layout))
    return found


def warm_start(needs: Sequence[Need], sweep: SweepSection, pool: Pool) -> tuple[Resources, int, Layout]:
    """Return the commonest size, how many gangs of it to start at once, and its layout. `needs` is not empty."""
    need, layout = max(needs, key=needs.count)
    caps = [pool.most(need, layout), sweep.trials or 2**31]
    caps += [sweep.parallel_trials] if sweep.parallel_trials != "auto" else []
    return need, min(caps), layout


def schedule_line(sweep: SweepSection, needs: Sequence[Need], size: int | None, pool: Pool) -> str:
    """Return for example `24 trials, 2 at a time: 1 process with 1 CPU, of 2 CPUs`."""
    count = f"{sweep.trials} trials" if sweep.trials else f"up to {size} trials" if size else "trials"
    total = what_is_there(pool)
    if not needs:
        return f"{count}, of {total}"
    cap = sweep.parallel_trials if sweep.parallel_trials != "auto" else 2**31
    fits = [pool.most(*need, cap) for need in dict.fromkeys(needs)]
    low, high = max(1, min(fits)), max(fits)
    many = f"{high} at a time" if low == high else f"{low} to {high} at a time"
    sizes = {(need.num_workers, need.cpus_per_worker, need.gpus_per_worker): need for need, _ in needs}
    return f"{count}, {many}: {'; '.join(what_it_takes(sizes[each]) for each in sorted(sizes))}, of {total}"


def what_it_takes(need: Resources) -> str:
    """Return for example `2 processes with 1 CPU, 0.5 GPU each`."""
    processes = "1 process" if need.num_workers == 1 else f"{need.num_workers} processes"
    share = f"{need.cpus_per_worker:g} CPU" + (f", {need.gpus_per_worker:g} GPU" if need.gpus_per_worker else "")
    return f"{processes} with {share}" + (" each" if need.num_workers > 1 else "")


def what_is_there(pool: Pool) -> str:
    """Return for example `6 CPUs, 2 GPUs on 2 nodes`."""
    found = f"{pool.cpus:g} CPUs" + (f", {pool.gpus:g} GPUs" if pool.gpus else "")
    return found + (f" on {len(pool.nodes)} nodes" if len(pool.nodes) > 1 else "")
