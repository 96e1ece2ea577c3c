"""An attempt on Ray: one TorchTrainer (Train V2) that never retries by itself. Ray places and starts the workers."""

from __future__ import annotations

import socket
import uuid
from concurrent.futures import Future
from typing import Any

from orchestrator.cluster.attempt import Ended, Order
from orchestrator.cluster.failure import OOM_ADVICE, Failure, kernel_oom_kills
from orchestrator.cluster.rooms import as_scaling, wait_for_seats
from orchestrator.cluster.session import RaySession
from orchestrator.errors import OrchestratorError
from orchestrator.plan.layout import Layout
from orchestrator.plan.plan import Resources
from orchestrator.runs.heartbeat import Heartbeat, kill_rank, read_heartbeats
from orchestrator.spec.job import ClusterSection


class RayAttempt:
    """The workers of one attempt, started by a TorchTrainer that runs on the session's thread."""

    def __init__(
        self,
        order: Order,
        session: RaySession,
        need: Resources,
        cluster: ClusterSection,
        layout: Layout | None = None,
    ) -> None:
        """Without `layout` Ray chooses the nodes alone."""
        self._layout = layout
        self._order = order
        self._session = session
        self._need = need
        self._cluster = cluster
        self._done: Future[Any] | None = None
        self._oom_kills = 0

    def start(self) -> None:
        """Queue the trainer behind the start of the cluster; returns at once."""
        self._oom_kills = kernel_oom_kills()
        self._done = self._session.submit(self._fit)

    def poll(self) -> Ended | None:
        """Return how the trainer ended, None while it runs. Raises what says that the cluster is of no use."""
        if self._done is None or not self._done.done():
            return None
        error = self._done.exception()
        if error is None:
            return Ended()
        if isinstance(error, OrchestratorError):
            raise error
        return Ended(_how_it_died(error, kernel_oom_kills() > self._oom_kills))

    def kill(self) -> None:
        """Kill the workers, wherever they are; without any sign of them, the cluster that was started for them."""
        beats = read_heartbeats(self._order.run)
        for beat in beats:
            kill_rank(beat)
        remote = [beat for beat in beats if beat.host != socket.gethostname()]
        if not beats and self._session.local:
            self._session.kill()
        elif remote:
            _kill_remote(remote)

    def _fit(self) -> None:
        opened = self._session.opened.exception()
        if opened is not None:
            raise opened
        nodes: tuple[str, ...] = ()
        if not self._session.local:
            self._session.wait_for(self._need, self._cluster.wait_s)
            if self._layout is not None:
                nodes = wait_for_seats(self._layout, self._need, self._cluster.wait_s)
        build_trainer(self._order, self._need, self._cluster, local=self._session.local, nodes=nodes).fit()


def build_trainer(
    order: Order, need: Resources, cluster: ClusterSection, *, local: bool, nodes: tuple[str, ...] = ()
) -> Any:
    """Return the TorchTrainer of an attempt. Its storage gets a fresh name, and nothing in it is ever read back.

    `nodes` names the node of every rank, ranks of a node side by side: Ray numbers workers node by node, in that order.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from orchestrator.cluster.worker import train_worker

    kind = TorchTrainer
    if local:
        from orchestrator.cluster.lean import LeanTorchTrainer

        kind = LeanTorchTrainer
    # Hung ranks are found by their heartbeats; the collectives' own limit is only the last resort.
    timeout_s = int(max(cluster.start_timeout_s, 10 * cluster.step_timeout_s))
    return kind(
        train_worker,
        train_loop_config={
            "folder": str(order.run.path),
            "attempt": order.attempt,
            "token": order.token,
            "resume": int(order.resume),
            "nodes": list(nodes),
            "entry": order.errand.entry,
            "seal": order.errand.seal,
        },
        torch_config=TorchConfig(backend=need.backend, timeout_s=timeout_s),
        scaling_config=ScalingConfig(**as_scaling(need, nodes)),
        run_config=RunConfig(
            name=f"a{order.attempt}-{uuid.uuid4().hex[:8]}",
            storage_path=str(order.run.ray),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )


def _kill_remote(beats: list[Heartbeat]) -> None:
    """Kill ranks on other nodes through tasks that run there; a node that does not answer is left to Ray."""
    import ray

    nodes = {node["NodeManagerHostname"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}

    def kill(beat: Heartbeat) -> bool:
        return kill_rank(beat)

    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    waiting = [
        ray.remote(kill)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(nodes[beat.host], soft=False))
        .remote(beat)
        for beat in beats
        if beat.host in nodes
    ]
    ray.wait(waiting, num_returns=len(waiting), timeout=10.0)


def _how_it_died(error: BaseException, out_of_memory: bool) -> Failure:
    """Say what Ray knows; the ranks' own words, where there are any, are preferred to it."""
    failures = getattr(error, "worker_failures", None) or {}
    rank, cause = next(iter(sorted(failures.items())), (-1, error))
    text = str(cause)
    if out_of_memory or "OutOfMemory" in type(cause).__name__ or "memory monitor" in text.lower():
        return Failure("oom", "Killed", "a worker was killed because memory ran out", hint=OOM_ADVICE, rank=rank)
    if "preempt" in text.lower() or "node was drained" in text.lower():
        return Failure("preemption", type(cause).__name__, _first_line(text), rank=rank)
    if "ActorDied" in type(cause).__name__ or "died" in text.lower():
        return Failure("infra", "WorkerDied", "a worker process ended without a word (killed, or crashed)", rank=rank)
    return Failure("infra", type(cause).__name__, _first_line(text), rank=rank)


def _first_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else "no message"
