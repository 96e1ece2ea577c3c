"""`Pool`: warm workers on Ray in gangs. A gang is reserved all or nothing, trains one trial at a time, and is reused.

One process is a gang of one: an actor. Several are a placement group with an actor per bundle. The pool starts a gang
only when every rank has a seat on some node beside those that work, and gives idle gangs of another size back for that:
since nobody ever holds a part of a gang while waiting for the rest, sizes may be mixed and nothing deadlocks.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.cluster.failure import OOM_ADVICE, Failure, failure_of, kernel_oom_kills, root_cause
from orchestrator.cluster.gangs import Gang, end_gang, form_gang
from orchestrator.cluster.nodes import Node, Seat, as_node, find_seats, gangs_that_fit, less, suits
from orchestrator.cluster.session import RaySession
from orchestrator.cluster.trial_stage import COMPRESS
from orchestrator.cluster.trial_worker import Share
from orchestrator.plan.layout import Layout
from orchestrator.plan.plan import Resources

COMPRESS_S = 4 * 3600.0
"""What compressing a trial's model may take."""
TIMING_S = 1800.0
"""What timing it may take: everything else waits meanwhile."""
WORDS_S = 5.0
"""How long the other ranks of a gang are waited for when one has failed: theirs may be the cause."""

_LOOK_S = 1.0
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_DIED = {"ActorDiedError", "WorkerCrashedError"}  # what Ray says of these is long and no more than that
_SPENT = {"oom", "infra", "hang", "storage", "placement"}  # failures after which a process is not trusted again


@dataclass(frozen=True)
class PoolEvent:
    """What became of a trial: evaluated (`data`: step, metrics), ended (the result), measured (values) or failed."""

    trial: int
    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)
    failure: Failure | None = None


class Pool:
    """All gangs of one sweep. Every method is called by the one driver thread."""

    def __init__(self, session: RaySession, start_s: float = 900.0) -> None:
        """Waits until the session is open. A gang that is not up after `start_s` has failed (others hold the room)."""
        import ray

        session.opened.result()
        self._ray = ray
        self._start_s = start_s
        self._gangs: list[Gang] = []
        self._looked, self._nodes = -math.inf, list[Node]()

    def warm(self, need: Resources, count: int, layout: Layout | None = None) -> None:
        """Start up to `count` gangs of this size, as far as there is room: they import torch meanwhile."""
        for _ in range(count):
            seats = find_seats(self.nodes, self.free, need, layout)
            if seats is None:
                return
            for actor in self._form(need, seats).actors:
                actor.ready.remote()

    def can_start(self, need: Resources, layout: Layout | None = None) -> bool:
        """Say whether a trial with these workers can start now; idle gangs of another size make way for it.

        `layout` says what the workers shall be to one another: those of a tensor group share a node. None: only data.
        """
        return self._idle(need, layout) is not None or self._make_room(need, layout) is not None

    def start(self, trial: int, share: Share, need: Resources, layout: Layout | None = None) -> None:
        """Give a trial to an idle gang, or to a new one. `can_start` has said that there is room."""
        self._begin(self._gang(need, layout), trial, share)

    def measure(self, trial: int, folder: str, need: Resources, tasks: Sequence[str]) -> None:
        """Have a trained trial compressed or timed by an idle gang or a new one: event `measured` (data: values).

        What takes longer than `COMPRESS_S` or `TIMING_S` has failed.
        """
        gang = self._gang(need, None)
        gang.trial, gang.said, gang.failures, gang.is_up = trial, {}, [], True
        gang.oom_kills = kernel_oom_kills()
        gang.limit_s = COMPRESS_S if COMPRESS in tasks else TIMING_S
        gang.deadline = time.monotonic() + gang.limit_s
        gang.waiting[gang.actors[0].measure.remote(folder, tuple(tasks))] = 0

    def has_room(self, need: Resources) -> bool:
        """Say whether so much is held by nobody who works."""
        return find_seats(self.nodes, self._unused(), need) is not None

    def most(self, need: Resources, layout: Layout | None = None, at_most: int = 1 << 20) -> int:
        """Return how many trials with these workers the cluster has room for at a time."""
        return gangs_that_fit(self.nodes, need, layout, at_most)

    def poll(self, timeout_s: float) -> list[PoolEvent]:
        """Return what happened; waits for it up to `timeout_s`."""
        calls = [call for gang in self._gangs for call in gang.waiting]
        if not calls:
            time.sleep(timeout_s)
            return []
        late = [gang for gang in self._gangs if gang.waiting and time.monotonic() > gang.deadline]
        if late:
            return [self._failed(gang, self._too_late(gang)) for gang in late]
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
    def nodes(self) -> list[Node]:
        """All nodes that are alive, as if nothing ran on them. Nodes come and go: looked up once a second."""
        if time.monotonic() - self._looked > _LOOK_S:
            alive = [node for node in self._ray.nodes() if node["Alive"]]
            self._nodes = [as_node(node["NodeID"], node["Resources"]) for node in alive]
            self._looked = time.monotonic()
        return self._nodes

    @property
    def cpus(self) -> float:
        """CPUs of all nodes together."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes together."""
        return sum(sum(node.gpus) for node in self.nodes)

    @property
    def free(self) -> list[Node]:
        """What no gang holds, on every node."""
        return less(self.nodes, [seat for gang in self._gangs for seat in gang.seats])

    def close(self) -> None:
        """End every process and give every reservation back."""
        for gang in list(self._gangs):
            self._disband(gang)

    def _of(self, trial: int) -> Gang | None:
        return next((gang for gang in self._gangs if gang.trial == trial), None)

    def _idle(self, need: Resources, layout: Layout | None) -> Gang | None:
        there = {node.name for node in self.nodes}
        for gang in [each for each in self._gangs if each.trial is None]:
            if any(seat.node not in there for seat in gang.seats):  # it died with its node, and no trial is at fault
                self._disband(gang)
        idle = [each for each in self._gangs if each.trial is None and each.need == need]
        return next((each for each in idle if suits(self.nodes, each.seats, need, layout)), None)

    def _unused(self) -> list[Node]:
        return less(self.nodes, [seat for gang in self._gangs if gang.trial is not None for seat in gang.seats])

    def _make_room(self, need: Resources, layout: Layout | None) -> tuple[Seat, ...] | None:
        """Return seats that are free, ending idle gangs where they are in the way; None when it would not help."""
        if find_seats(self.nodes, self._unused(), need, layout) is None:
            return None
        for gang in [None, *(each for each in self._gangs if each.trial is None)]:
            if gang is not None:
                self._disband(gang)
            seats = find_seats(self.nodes, self.free, need, layout)
            if seats is not None:
                return seats
        return None

    def _gang(self, need: Resources, layout: Layout | None) -> Gang:
        """Return an idle gang, or a new one; without room (a node is gone) Ray queues it until its limit."""
        gang = self._idle(need, layout)
        return gang or self._form(need, self._make_room(need, layout) or ())

    def _form(self, need: Resources, seats: tuple[Seat, ...]) -> Gang:
        gang = form_gang(self._ray, need, seats, pinned=bool(seats) and len(self.nodes) > 1)
        self._gangs.append(gang)
        return gang

    def _begin(self, gang: Gang, trial: int, share: Share) -> None:
        gang.trial, gang.share, gang.said, gang.oom_kills = trial, share, {}, kernel_oom_kills()
        gang.failures, gang.deadline = [], math.inf if gang.is_up else time.monotonic() + self._start_s
        if gang.is_up and len(gang.actors) == 1:
            gang.waiting[gang.actors[0].start.remote(share)] = 0
            return
        for rank, actor in enumerate(gang.actors):  # who meets where is known once all of them are up
            gang.waiting[actor.ready.remote()] = rank

    def _start_gang(self, gang: Gang) -> None:
        """Let the ranks begin; rank 0's host is where they meet.

        Their `local_rank`, which picks the GPU, is 0: Ray shows each actor its own GPUs only.
        """
        gang.is_up, gang.deadline = True, math.inf
        master = (str(gang.said[0]["address"]), int(gang.said[0]["port"]))
        gang.said = {}
        for rank, actor in enumerate(gang.actors):
            mine = replace(gang.share, rank=rank, world_size=len(gang.actors), master=master)
            gang.waiting[actor.start.remote(mine)] = rank

    def _collect(self, gang: Gang, done: list[Any]) -> Iterator[PoolEvent]:
        for call in [each for each in gang.waiting if each in done]:
            rank = gang.waiting.pop(call)
            try:
                said = self._ray.get(call)
            except self._ray.exceptions.RayError as error:
                self._note(gang, self._how_it_died(gang, rank, error))
                continue
            if said["kind"] == "evaluated" and gang.trial is not None:
                yield PoolEvent(gang.trial, "evaluated", said)
            elif said["kind"] == "measured" and gang.trial is not None:
                trial, gang.trial, gang.deadline = gang.trial, None, math.inf
                yield PoolEvent(trial, "measured", said)
            elif said["kind"] == "failed":
                self._note(gang, Failure(**said["failure"]))
            else:
                gang.said[rank] = said
        if gang.failures:
            if self._is_told(gang):
                yield self._failed(gang, _cause(gang.failures))
        elif len(gang.said) == len(gang.actors) and gang.trial is not None:
            if gang.said[0]["kind"] == "ready":
                self._start_gang(gang)
                return
            trial, gang.trial = gang.trial, None
            yield PoolEvent(trial, "ended", gang.said[0]["result"])

    def _note(self, gang: Gang, failure: Failure) -> None:
        gang.failed_at = gang.failed_at if gang.failures else time.monotonic()
        gang.failures.append(failure)

    def _is_told(self, gang: Gang) -> bool:
        """Say whether the cause of a gang's failure is known: the first rank heard may have died of another's end."""
        surely = any(failure.kind == "oom" for failure in gang.failures)
        return surely or not gang.waiting or time.monotonic() - gang.failed_at > WORDS_S

    def _failed(self, gang: Gang, failure: Failure) -> PoolEvent:
        trial = gang.trial or 0
        if len(gang.actors) > 1 or failure.kind in _SPENT or gang.waiting:
            self._disband(gang)  # the other ranks hang in a collective, memory is in doubt, or it is still at it
        gang.trial, gang.failures, gang.deadline = None, [], math.inf
        return PoolEvent(trial, "failed", failure=failure)

    def _too_late(self, gang: Gang) -> Failure:
        if gang.is_up:
            what = "compressing the model" if gang.limit_s == COMPRESS_S else "timing the model"
            return Failure("user", "TooLong", f"{what} took longer than {gang.limit_s / 60:.0f} min and was ended")
        text = f"{len(gang.actors)} workers were not up within {self._start_s:.0f} s: others hold the room"
        return Failure("placement", "NoRoom", text, hint="raise cluster.wait_s, or wait for other jobs")

    def _how_it_died(self, gang: Gang, rank: int, error: Exception) -> Failure:
        """Say what Ray knows. An exception that a living process raised counts as one that a rank has told of."""
        name, cause = type(error).__name__, getattr(error, "cause", None)
        told = isinstance(error, self._ray.exceptions.RayTaskError) and not isinstance(
            cause, self._ray.exceptions.RayError
        )
        if kernel_oom_kills() > gang.oom_kills:
            said = Failure("oom", "Killed", "killed because memory ran out", OOM_ADVICE)
        elif told and isinstance(cause, BaseException):
            said = replace(
                failure_of(cause, rank=rank, step=-1), traceback=_COLOUR.sub("", str(error))
            )  # the cause has lost its own
        elif "OutOfMemory" in name or "memory monitor" in str(error).lower():
            said = Failure("oom", "Killed", "killed because memory ran out", OOM_ADVICE)
        elif name in _DIED and not getattr(error, "actor_init_failed", False):
            said = Failure("infra", "WorkerDied", "a worker process ended without a word (killed, or crashed)")
        else:
            said = Failure("infra", name, _ends_of(str(error)))
        return replace(said, rank=rank, at_s=time.time())

    def _disband(self, gang: Gang) -> None:
        self._gangs.remove(gang)
        end_gang(self._ray, gang)


def _ends_of(text: str) -> str:
    """Return the first and the last line of what Ray says: what happened, and below a traceback why."""
    lines = [line.strip() for line in _COLOUR.sub("", text).splitlines() if line.strip()] or ["no message"]
    return lines[0][:300] if len(lines) == 1 else f"{lines[0][:300]} ... {lines[-1][:300]}"


def _cause(failures: Sequence[Failure]) -> Failure:
    """Return why a gang failed. Where memory ran out all else came of it, though the killed rank is heard of last."""
    return next((each for each in failures if each.kind == "oom"), root_cause(failures, None))
