"""`Launcher`: finds ranks for a training that compression asks for. On a cluster they are an attempt like a run's.

Handed to `compress.stage` as its `Launch`. Placed, watched and begun again after a fault by what does it for runs; only
what each rank does is another function.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cluster.attempt import Attempt, Errand, Order
from orchestrator.cluster.attempts import Executor
from orchestrator.cluster.events import Event
from orchestrator.cluster.fit import RayAttempt
from orchestrator.cluster.session import RaySession
from orchestrator.errors import NotAbleError, OrchestratorError, TrainError
from orchestrator.log import get_logger
from orchestrator.plan.available import Available
from orchestrator.plan.build import worker_resources
from orchestrator.runs import control
from orchestrator.runs.lease import acquire
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import RunRecord, now_iso, read_record, write_record

if TYPE_CHECKING:
    from torch import nn

    from orchestrator.compress.base import Context
    from orchestrator.compress.recover import Course, Recovered
    from orchestrator.plan.layout import Layout
    from orchestrator.plan.plan import Resources

_log = get_logger("cluster")
_ELSEWHERE = "or train on this machine: `orchestrator compress RUN --here`"


class Launcher:
    """Use as a context manager: the first training that needs a cluster joins or starts it, the end leaves it."""

    def __init__(self) -> None:
        self._session: RaySession | None = None

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def __call__(self, model: nn.Module, context: Context, course: Course, layout: Layout) -> Recovered:
        """Train `model` in place on the ranks of a layout, and say how it went. Raises TrainError when it fails."""
        need = worker_resources(context.cluster, Available.local(), layout)
        if not _takes_ray(context, need):
            from orchestrator.compress.ranks import train_here

            return train_here(model, context, course, layout)
        return self._train_on_ray(model, context, course, layout, need)

    def _train_on_ray(
        self, model: nn.Module, context: Context, course: Course, layout: Layout, need: Resources
    ) -> Recovered:
        from orchestrator.compress.handover import ENTRY, hand_over, take_back

        run = _claim(context.folder)
        errand = Errand(ENTRY, hand_over(run, model, context, course, layout, need))
        session = self._session or RaySession(
            context.cluster.address, num_cpus=max(1, int(Available.local().num_cpus)), log_file=run.logs / "ray.log"
        )
        if self._session is None:
            self._session = session
            session.start()

        def launch(order: Order) -> Attempt:
            return RayAttempt(replace(order, errand=errand), session, need, context.cluster, layout)

        control.allow_start(run)
        executor = Executor(
            run, acquire(run), launch, _wait, _tell, context.cluster.max_failures, context.job.train.seed
        )
        try:
            executor.execute(resume=False)
        except OrchestratorError as error:
            hint = f"{error.hint}\n  {_ELSEWHERE}" if isinstance(error, NotAbleError) else error.hint
            raise TrainError(f"training on {layout.describe()} failed: {error.message}", hint=hint) from error
        finally:
            with suppress(OrchestratorError):
                executor.lease.release()
        return take_back(run, read_record(run).attempt, model)


def _takes_ray(context: Context, need: Resources) -> bool:
    """Say whether the ranks are for Ray to place: on a cluster that was named, and where several take a GPU each."""
    return context.cluster.address is not None or (need.num_workers > 1 and need.device == "cuda")


def _claim(folder: Path) -> RunDir:
    """Make the folder of a step's next training, laid out like a run's; all nodes see it as they do those."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while (folder / f"training-{number}").exists():
        number += 1
    run = RunDir((folder / f"training-{number}").resolve())
    for each in (run.logs, run.failures, run.heartbeats):
        each.mkdir(parents=True)
    write_record(run, RunRecord(run_id=run.run_id, name=run.run_id, created=now_iso(), kind="training"))
    return run


def _tell(event: Event) -> None:
    _log.info("%s: %s", event.kind, event.text)


def _wait() -> None:
    """Look after nothing: a step's training has neither progress line nor tracking of its own."""
