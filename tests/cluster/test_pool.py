"""Why a gang failed, and what takes too long: the pool over actors that a test speaks for."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.cluster import pool as pool_module
from orchestrator.cluster.failure import Failure
from orchestrator.cluster.gangs import Gang
from orchestrator.cluster.pool import COMPRESS_S, TIMING_S, WORDS_S, Pool, PoolEvent
from orchestrator.cluster.trial_worker import Share
from orchestrator.plan.plan import Resources

ONE, TWO = Resources(1, 1.0, 0.0, "gloo", "cpu"), Resources(2, 1.0, 0.0, "gloo", "cpu")
PEER = Failure("infra", "RuntimeError", "connection closed by peer", rank=1, at_s=5.0)
MEMORY = Failure("oom", "MemoryError", "cannot allocate", rank=0, at_s=6.0)
MISTAKE = Failure("user", "ValueError", "no such thing", rank=0, at_s=6.0)


class RayError(Exception):
    """Stands for what Ray raises when an actor is gone."""


class RayTaskError(RayError):
    """Stands for what Ray raises when the call has raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"ray::TrialWorker.ready()\n  File x\n{type(cause).__name__}: {cause}")
        self.cause = cause


class ActorDiedError(RayError):
    """Stands for the end of an actor's process, or of its start."""

    actor_init_failed = False


class ActorUnschedulableError(RayError):
    """Stands for an actor that has no node."""


class FakeRay:
    """Calls are names; what they give is put into `done` by the test."""

    def __init__(self) -> None:
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
        self.done: dict[str, Any] = {}
        self.killed: list[Any] = []
        self.alive = ["here"]

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": name, "Alive": True, "Resources": {"CPU": 4.0}} for name in self.alive]

    def wait(self, calls: list[str], *, num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        return [call for call in calls if call in self.done][:num_returns], []

    def get(self, call: str) -> Any:
        found = self.done.pop(call)
        if isinstance(found, Exception):
            raise found
        return found

    def kill(self, actor: Any, *, no_restart: bool) -> None:
        self.killed.append(actor)


class FakeActor:
    def __init__(self, rank: int) -> None:
        self._rank = rank

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: f"{method}-{self._rank}")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    module = types.ModuleType("ray")
    module.__dict__.update({name: getattr(fake, name) for name in ("exceptions", "nodes", "wait", "get")})
    module.__dict__["kill"] = fake.kill
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setattr(
        pool_module,
        "form_gang",
        lambda ray, need, seats, pinned: Gang(need, seats, [FakeActor(rank) for rank in range(need.num_workers)]),
    )
    return fake


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    now = {"s": 1000.0}
    monkeypatch.setattr(pool_module.time, "monotonic", lambda: now["s"])
    return now


@pytest.fixture
def pool(ray: FakeRay) -> Pool:
    session: Any = SimpleNamespace(opened=SimpleNamespace(result=lambda: None))
    return Pool(session, start_s=60.0)


def train(pool: Pool, ray: FakeRay, need: Resources) -> None:
    pool.start(7, Share("folder"), need)
    for rank in range(need.num_workers):
        ray.done[f"ready-{rank}"] = {"kind": "ready", "address": "127.0.0.1", "port": 1}
    assert pool.poll(0.0) == []


def told(failure: Failure) -> dict[str, Any]:
    return {"kind": "failed", "failure": asdict(failure)}


def only(events: Sequence[PoolEvent]) -> Failure:
    assert [(event.trial, event.kind) for event in events] == [(7, "failed")]
    assert events[0].failure is not None
    return events[0].failure


@pytest.mark.parametrize("cause", [MEMORY, MISTAKE])
def test_a_rank_that_died_of_another_is_not_the_cause_though_it_is_heard_first(
    pool: Pool, ray: FakeRay, cause: Failure
) -> None:
    train(pool, ray, TWO)
    ray.done["start-1"] = told(PEER)
    assert pool.poll(0.0) == []
    assert [gang.trial for gang in pool._gangs] == [7]
    ray.done["start-0"] = told(cause)
    assert only(pool.poll(0.0)) == cause
    assert pool.free[0].cpus == 4.0


def test_a_rank_that_the_kernel_killed_for_memory_is_heard_after_its_peers(
    pool: Pool, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "kernel_oom_kills", lambda: 0)
    train(pool, ray, TWO)
    ray.done["start-1"] = told(PEER)
    assert pool.poll(0.0) == []
    monkeypatch.setattr(pool_module, "kernel_oom_kills", lambda: 1)
    ray.done["start-0"] = RayError("the actor died")
    assert only(pool.poll(0.0)).kind == "oom"


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (ImportError("libcudart.so.12: cannot open shared object file"), "user"),
        (RuntimeError("CUDA out of memory"), "oom"),
        (ConnectionError("connection reset by peer"), "infra"),
    ],
)
def test_what_a_call_raises_is_told_as_if_the_rank_had(pool: Pool, ray: FakeRay, cause: Exception, kind: str) -> None:
    pool.start(7, Share("folder"), ONE)
    ray.done["ready-0"] = RayTaskError(cause)
    found = only(pool.poll(0.0))
    assert (found.kind, found.type, found.message, found.rank) == (kind, type(cause).__name__, str(cause), 0)
    assert "ray::TrialWorker.ready()" in found.traceback


def test_the_end_of_a_process_is_told_in_short_and_all_else_in_rays_words(pool: Pool, ray: FakeRay) -> None:
    unborn = ActorDiedError(
        "The actor died because of an error raised in its creation task\x1b[39m\n  File x\nOSError: no y\n"
    )
    unborn.actor_init_failed = True
    found = []
    nowhere = ActorUnschedulableError("The actor is not schedulable: the node is gone")
    for error in (ActorDiedError("died\n\tname: x\n"), unborn, nowhere, RayTaskError(RayError("an argument is lost"))):
        train(pool, ray, ONE)
        ray.done["start-0"] = error
        found.append(only(pool.poll(0.0)))
    assert [each.kind for each in found] == ["infra"] * 4
    assert found[0].message == "a worker process ended without a word (killed, or crashed)"
    assert found[1].message == "The actor died because of an error raised in its creation task ... OSError: no y"
    assert found[2].message == "The actor is not schedulable: the node is gone"
    assert found[3].message == "ray::TrialWorker.ready() ... RayError: an argument is lost"


def test_ranks_without_a_word_are_waited_for_a_moment_only(pool: Pool, ray: FakeRay, clock: dict[str, float]) -> None:
    train(pool, ray, TWO)
    ray.done["start-1"] = told(PEER)
    assert pool.poll(0.0) == []
    clock["s"] += WORDS_S - 0.1
    assert pool.poll(0.0) == []
    clock["s"] += 0.2
    assert only(pool.poll(0.0)) == PEER
    assert len(ray.killed) == 2


def test_a_process_alone_is_believed_at_once(pool: Pool, ray: FakeRay) -> None:
    train(pool, ray, ONE)
    ray.done["start-0"] = told(MISTAKE)
    assert only(pool.poll(0.0)) == MISTAKE
    assert ray.killed == []


@pytest.mark.parametrize(
    ("tasks", "limit_s", "words"), [(("compress",), COMPRESS_S, "compressing"), (("latency",), TIMING_S, "timing")]
)
def test_a_measurement_that_never_ends_is_a_failure_with_a_plain_reason(
    pool: Pool, ray: FakeRay, clock: dict[str, float], tasks: tuple[str, ...], limit_s: float, words: str
) -> None:
    pool.measure(7, "folder", ONE, tasks)
    clock["s"] += limit_s - 1
    assert pool.poll(0.0) == []
    clock["s"] += 2
    failure = only(pool.poll(0.0))
    assert failure.kind == "user"  # it is not begun again
    assert failure.message == f"{words} the model took longer than {limit_s / 60:.0f} min and was ended"
    assert len(ray.killed) == 1
    assert pool.free[0].cpus == 4.0


def test_a_training_has_no_such_limit(pool: Pool, ray: FakeRay, clock: dict[str, float]) -> None:
    pool.measure(7, "folder", ONE, ("latency",))
    ray.done["measure-0"] = {"kind": "measured", "values": {}}
    assert [event.kind for event in pool.poll(0.0)] == ["measured"]
    pool.start(7, Share("folder"), ONE)
    clock["s"] += 10 * COMPRESS_S
    assert pool.poll(0.0) == []


def test_workers_that_are_not_up_in_time_have_failed(pool: Pool, clock: dict[str, float]) -> None:
    pool.start(7, Share("folder"), TWO)
    clock["s"] += 61.0
    assert only(pool.poll(0.0)).kind == "placement"


def test_idle_processes_of_a_node_that_is_gone_are_given_no_trial(
    pool: Pool, ray: FakeRay, clock: dict[str, float]
) -> None:
    pool.warm(ONE, 3)
    ray.alive = ["another"]
    clock["s"] += 2.0
    assert pool.can_start(ONE)
    assert len(ray.killed) == 3
    pool.start(7, Share("folder"), ONE)
    assert pool.free[0].cpus == 3.0
