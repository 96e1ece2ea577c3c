"""`Gang`: workers that train one trial together, reserved all or nothing. Formed and ended here, used by the pool."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from orchestrator.cluster.failure import Failure
from orchestrator.cluster.nodes import Seat
from orchestrator.cluster.rooms import NODE_LABEL
from orchestrator.cluster.trial_worker import Share, TrialWorker
from orchestrator.plan.plan import Resources


@dataclass
class Gang:
    """Actors that train together. `trial` is what they train, None while idle; `waiting` are their calls under way.

    `failures` are the words of ranks that failed, the first at `failed_at`; after `deadline` (on the monotonic clock)
    what is under way counts as failed: it took more than `limit_s`.
    """

    need: Resources
    seats: tuple[Seat, ...]
    actors: list[Any]
    group: Any = None
    trial: int | None = None
    share: Share = field(default_factory=lambda: Share(""))
    waiting: dict[Any, int] = field(default_factory=dict)
    said: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    failed_at: float = 0.0
    oom_kills: int = 0
    is_up: bool = False
    limit_s: float = 0.0
    deadline: float = math.inf


def form_gang(ray: Any, need: Resources, seats: tuple[Seat, ...], *, pinned: bool) -> Gang:
    """Reserve and start a gang. The reservation of several is one placement group: all or nothing.

    `pinned`: every rank goes to the node of its seat; else there is one node only, and nothing to choose.
    """
    options: dict[str, Any] = {"num_cpus": need.cpus_per_worker, "num_gpus": need.gpus_per_worker}
    if need.num_workers == 1:
        strategy = _on_node(seats[0].node) if pinned else None
        actor = ray.remote(TrialWorker).options(**options, scheduling_strategy=strategy).remote()
        return Gang(need, seats, [actor])
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    bundle = {"CPU": need.cpus_per_worker} | ({"GPU": need.gpus_per_worker} if need.gpus_per_worker else {})
    labels = [{NODE_LABEL: seat.node} for seat in seats] if pinned else None
    group = placement_group([bundle] * need.num_workers, strategy="PACK", bundle_label_selector=labels)
    actors = [
        ray.remote(TrialWorker)
        .options(**options, scheduling_strategy=PlacementGroupSchedulingStrategy(group, index))
        .remote()
        for index in range(need.num_workers)
    ]
    return Gang(need, seats, actors, group)


def _on_node(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def end_gang(ray: Any, gang: Gang) -> None:
    """Kill a gang's processes and give back what was reserved for them."""
    gang.trial = None
    for actor in gang.actors:
        with suppress(ray.exceptions.RayError, ValueError):
            ray.kill(actor, no_restart=True)
    if gang.group is not None:
        from ray.util.placement_group import remove_placement_group

        with suppress(ray.exceptions.RayError):
            remove_placement_group(gang.group)
