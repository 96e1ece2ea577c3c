"""The training function that Ray Train runs on every worker: thin, takes only text and numbers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.attempt import Errand
from orchestrator.cluster.rank import run_guarded
from orchestrator.cluster.seats import own_seat
from orchestrator.log import get_logger

if TYPE_CHECKING:
    from orchestrator.train.ports import StepReport

EVERY_S = 5.0
_log = get_logger("cluster")


def train_worker(config: dict[str, Any]) -> None:
    """Do what the rank that Ray assigned is to do.

    Keys: folder, attempt, token, resume, nodes (one per rank, or none), entry, seal.
    """
    import ray.train
    import ray.util

    context = ray.train.get_context()
    rank, local_rank = context.get_world_rank(), context.get_local_rank()
    node, address = ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()
    run_guarded(
        str(config["folder"]),
        rank=rank,
        world_size=context.get_world_size(),
        local_rank=local_rank,
        attempt=int(config["attempt"]),
        token=int(config["token"]),
        resume=bool(config["resume"]),
        report=RayReporter(),
        seat=own_seat(rank, local_rank, node=node, address=address),
        wanted_node=config["nodes"][rank] if config["nodes"] else "",
        errand=Errand(str(config["entry"]), str(config["seal"])),
    )


class RayReporter:
    """Tells Ray Train how far the run is, at the end and at checkpoints some seconds apart. Checkpoints stay ours.

    Ray takes one report per poll of its controller and blocks the next until then; and a report is a barrier, so every
    rank must make the same ones.
    """

    def __init__(self) -> None:
        self._reported_s = 0.0

    def __call__(self, report: StepReport) -> None:
        """Report, if it is time. Raises ConnectionError when Ray or another rank is gone."""
        if not self.is_due(report):
            return
        import ray.train
        from ray.exceptions import RayError

        began, self._reported_s = time.perf_counter(), report.train_s
        try:
            ray.train.report(dict(report.metrics))
        except RayError as error:  # the consequence of a fault elsewhere, which has its own words for it
            raise ConnectionError(f"the report of step {report.step} did not reach Ray: {error}") from error
        _log.info("step %d reported to Ray in %.3f s", report.step, time.perf_counter() - began)

    def is_due(self, report: StepReport) -> bool:
        """Say whether to report; equal on every rank."""
        return report.final or report.train_s - self._reported_s >= EVERY_S
