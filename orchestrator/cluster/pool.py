"""`Pool`: warm workers on Ray in gangs. A gang is reserved all or nothing, trains one trial at a time, and is reused.

One process is a gang of one: an actor. Several are a placement group with an actor per bundle. The pool starts a gang
only when all of it fits beside those that work, and gives idle gangs of another size back for that: since nobody ever
holds a part of a gang while waiting for the rest, sizes may be mixed and nothing deadlocks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.cluster.failure import OOM_ADVICE, Failure, kernel_oom_kills, root_cause
from orchestrator.cluster.session import RaySession
from orchestrator.cluster.trial_worker import Share, TrialWorker
from orchestrator.plan.plan import Resources

_SPENT = {"oom", "infra", "hang", "storage", "placement"}  # failures after which a process is not trusted again


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


@dataclass(frozen=True)
class PoolEvent:
    """What became of a trial: evaluated (`data`: step, metrics), ended (the result), measured (values) or failed."""

    trial: int
    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)
    failure: Failure | None = None


@dataclass
class Gang:
    """Actors that train together. `trial` is what they train, None while idle; `waiting` are their calls under way."""

    need: Resources
    room: Room
    actors: list[Any]
    group: Any = None
    trial: int | None = None
    share: Share = field(default_factory=lambda: Share(""))
    waiting: dict[Any, int] = field(default_factory=dict)
    said: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    oom_kills: int = 0
    is_up: bool = False
    began: float = 0.0


class Pool:
    """All gangs of one sweep. Every method is called by the one driver thread."""

    def __init__(self, session: RaySession, start_s: float = 900.0) -> None:
        """Waits until the session is open. A gang that is not up after `start_s` has failed (others hold the room)."""
        import ray

        session.opened.result()
        self._ray = ray
        total = ray.cluster_resources()
        self.total = Room(float(total.get("CPU", 0.0)), float(total.get("GPU", 0.0)))
        self._start_s = start_s
        self._gangs: list[Gang] = []

    def warm(self, need: Resources, count: int) -> None:
        """Start up to `count` gangs of this size, as far as there is room: they import torch meanwhile."""
        for _ in range(count):
            if not room_of(need).fits(self.free):
                return
            for actor in self._form(need, room_of(need)).actors:
                actor.ready.remote()

    def can_start(self, need: Resources) -> bool:
        """Say whether a trial with these workers can start now; idle gangs of another size make way for it."""
        return self._idle(need) is not None or self._make_room(room_of(need))

    def start(self, trial: int, share: Share, need: Resources) -> None:
        """Give a trial to an idle gang, or to a new one. `can_start` has said that there is room."""
        gang = self._idle(need) or self._form(need, room_of(need))
        self._begin(gang, trial, share)

    def measure(self, trial: int, folder: str, need: Resources, tasks: Sequence[str]) -> None:
        """Have a trained trial compressed or timed by an idle gang or a new one: event `measured` (data: values)."""
        gang = self._idle(need) or self._form(need, room_of(need))
        gang.trial, gang.said, gang.began, gang.is_up = trial, {}, time.monotonic(), True
        gang.waiting[gang.actors[0].measure.remote(folder, tuple(tasks))] = 0

    def has_room(self, room: Room) -> bool:
        """Say whether so much is held by nobody who works."""
        return room.fits(self._unused())

    def poll(self, timeout_s: float) -> list[PoolEvent]:
        """Return what happened; waits for it up to `timeout_s`."""
        calls = [call for gang in self._gangs for call in gang.waiting]
        if not calls:
            time.sleep(timeout_s)
            return []
        late = [gang for gang in self._gangs if gang.waiting and not gang.is_up and self._is_late(gang)]
        if late:
            return [self._failed(gang, self._no_room(gang)) for gang in late]
        done, _ = self._ray.wait(calls, num_returns=1, timeout=timeout_s)
        if done:
            done, _ = self._ray.wait(calls, num_returns=len(calls), timeout=0)
        return [event for gang in list(self._gangs) for event in self._collect(gang, done)]

    def answer(self, trial: int, *, stop: bool) -> None:
        """Answer the evaluation that the trial's rank 0 waits on."""
        gang = self._of(trial)
        if gang is not None:
            gang.waiting[gang.actors[0].next.remote(stop)] = 0

    def kill(self, trial: int) -> None:
        """End a trial's processes now; nothing more is told of it."""
        gang = self._of(trial)
        if gang is not None:
            self._disband(gang)

    @property
    def working(self) -> list[int]:
        """Trials that are under way."""
        return [gang.trial for gang in self._gangs if gang.trial is not None]

    @property
    def free(self) -> Room:
        """What no gang holds."""
        free = self.total
        for gang in self._gangs:
            free = free - gang.room
        return free

    def close(self) -> None:
        """End every process and give every reservation back."""
        for gang in list(self._gangs):
            self._disband(gang)

    def _of(self, trial: int) -> Gang | None:
        return next((gang for gang in self._gangs if gang.trial == trial), None)

    def _idle(self, need: Resources) -> Gang | None:
        return next((each for each in self._gangs if each.trial is None and each.need == need), None)

    def _unused(self) -> Room:
        unused = self.free
        for gang in self._gangs:
            if gang.trial is None:
                unused = Room(unused.cpus + gang.room.cpus, unused.gpus + gang.room.gpus)
        return unused

    def _make_room(self, room: Room) -> bool:
        if not room.fits(self._unused()):
            return False
        for gang in [each for each in self._gangs if each.trial is None]:
            if room.fits(self.free):
                break
            self._disband(gang)
        return True

    def _form(self, need: Resources, room: Room) -> Gang:
        """Reserve and start a gang. The reservation of several is one placement group: all or nothing."""
        ray = self._ray
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
        gang = Gang(need, room, actors, group)
        self._gangs.append(gang)
        return gang

    def _begin(self, gang: Gang, trial: int, share: Share) -> None:
        gang.trial, gang.share, gang.said, gang.oom_kills = trial, share, {}, kernel_oom_kills()
        gang.began = time.monotonic()
        if gang.is_up and len(gang.actors) == 1:
            gang.waiting[gang.actors[0].start.remote(share)] = 0
            return
        for rank, actor in enumerate(gang.actors):  # who meets where is known once all of them are up
            gang.waiting[actor.ready.remote()] = rank

    def _start_gang(self, gang: Gang) -> None:
        """Let the ranks begin; rank 0's host is where they meet.

        Their `local_rank`, which picks the GPU, is 0: Ray shows each actor its own GPUs only.
        """
        gang.is_up = True
        master = (str(gang.said[0]["address"]), int(gang.said[0]["port"]))
        gang.said = {}
        for rank, actor in enumerate(gang.actors):
            mine = replace(gang.share, rank=rank, world_size=len(gang.actors), master=master)
            gang.waiting[actor.start.remote(mine)] = rank

    def _collect(self, gang: Gang, done: list[Any]) -> Iterator[PoolEvent]:
        failures: list[Failure] = []
        for call in [each for each in gang.waiting if each in done]:
            rank = gang.waiting.pop(call)
            try:
                said = self._ray.get(call)
            except self._ray.exceptions.RayError as error:
                failures.append(self._how_it_died(gang, error))
                continue
            if said["kind"] == "evaluated" and gang.trial is not None:
                yield PoolEvent(gang.trial, "evaluated", said)
            elif said["kind"] == "measured" and gang.trial is not None:
                trial, gang.trial = gang.trial, None
                yield PoolEvent(trial, "measured", said)
            elif said["kind"] == "failed":
                failures.append(Failure(**said["failure"]))
            else:
                gang.said[rank] = said
        if failures:
            yield self._failed(gang, root_cause(failures, None))
        elif len(gang.said) == len(gang.actors) and gang.trial is not None:
            if gang.said[0]["kind"] == "ready":
                self._start_gang(gang)
                return
            trial, gang.trial = gang.trial, None
            yield PoolEvent(trial, "ended", gang.said[0]["result"])

    def _failed(self, gang: Gang, failure: Failure) -> PoolEvent:
        trial = gang.trial or 0
        if len(gang.actors) > 1 or failure.kind in _SPENT:
            self._disband(gang)  # the other ranks hang in a collective, or memory is in doubt
        gang.trial = None
        return PoolEvent(trial, "failed", failure=failure)

    def _is_late(self, gang: Gang) -> bool:
        return time.monotonic() - gang.began > self._start_s

    def _no_room(self, gang: Gang) -> Failure:
        text = f"{len(gang.actors)} workers were not up within {self._start_s:.0f} s: others hold the room"
        return Failure("placement", "NoRoom", text, hint="raise cluster.wait_s, or wait for other jobs")

    def _how_it_died(self, gang: Gang, error: Exception) -> Failure:
        oom = kernel_oom_kills() > gang.oom_kills or "OutOfMemory" in type(error).__name__
        if oom or "memory monitor" in str(error).lower():
            return Failure("oom", "Killed", "killed because memory ran out", OOM_ADVICE)
        return Failure("infra", "WorkerDied", "a worker process ended without a word (killed, or crashed)")

    def _disband(self, gang: Gang) -> None:
        """Kill a gang's processes and give back what was reserved for them."""
        self._gangs.remove(gang)
        gang.trial = None
        for actor in gang.actors:
            with suppress(self._ray.exceptions.RayError, ValueError):
                self._ray.kill(actor, no_restart=True)
        if gang.group is not None:
            from ray.util.placement_group import remove_placement_group

            with suppress(self._ray.exceptions.RayError):
                remove_placement_group(gang.group)
