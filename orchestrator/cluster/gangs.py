"""`Gang`: workers that train one trial together, reserved all or nothing. Formed and ended here, used by the pool."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from orchestrator.cluster.failure import Failure
from orchestrator.cluster.trial_worker import Share, TrialWorker
from orchestrator.plan.plan import Resources


@dataclass(frozen=True)
class Room:
    """CPUs and GPUs: of a cluster, of a gang."""

    cpus: float
    gpus: float

    def times_in(self, whole: Room) -> int:
        """Return how many of this fit in `whole`."""
        pairs = ((self.cpus, whole.cpus), (self.gpus, whole.gpus))
        return min((int((there + 1e-6) // mine) for mine, there in pairs if mine > 0), default=0)

    def fits(self, free: Room) -> bool:
        """Say whether this fits in what is free."""
        return self.cpus <= free.cpus + 1e-6 and self.gpus <= free.gpus + 1e-6

    def __sub__(self, other: Room) -> Room:
        return Room(self.cpus - other.cpus, self.gpus - other.gpus)


def room_of(need: Resources) -> Room:
    """Return what a gang of these workers takes."""
    return Room(need.num_workers * need.cpus_per_worker, need.num_workers * need.gpus_per_worker)


@dataclass
class Gang:
    """Actors that train together. `trial` is what they train, None while idle; `waiting` are their calls under way.

    `failures` are the words of ranks that failed, the first at `failed_at`; after `deadline` (on the monotonic clock)
    what is under way counts as failed: it took more than `limit_s`.
    """

    need: Resources
    room: Room
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


def form_gang(ray: Any, need: Resources) -> Gang:
    """Reserve and start a gang. The reservation of several is one placement group: all or nothing."""
    options: dict[str, Any] = {"num_cpus": need.cpus_per_worker, "num_gpus": need.gpus_per_worker}
    group = None
    if need.num_workers > 1:
        from ray.util.placement_group import placement_group

        bundle = {"CPU": need.cpus_per_worker} | ({"GPU": need.gpus_per_worker} if need.gpus_per_worker else {})
        group = placement_group([bundle] * need.num_workers, strategy="PACK")
    actor_class = ray.remote(TrialWorker)
    actors = []
    for index in range(need.num_workers):
        if group is not None:
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, index)
        actors.append(actor_class.options(**options).remote())
    return Gang(need, room_of(need), actors, group)


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
