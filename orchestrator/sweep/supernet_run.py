"""Trains a supernet in a warm process of the sweep, in a folder among its trials, until all its parts are scored.

The driver's side: `orchestrator.supernet.stage` is the worker's. Ctrl-C lets it save and leave, a process that dies is
begun again from its newest checkpoint, and a folder that has its ranking is not trained again. So does a budget of the
sweep that is spent: what all attempts took is noted every two seconds.
"""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.checkpoint.manifest import parse_folder_name
from orchestrator.cluster.events import Event
from orchestrator.cluster.failure import Failure
from orchestrator.cluster.trial_worker import Share
from orchestrator.errors import ClusterError, NotAbleError, OrchestratorError, TrainError
from orchestrator.runs import control
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import make_durable, read_record
from orchestrator.runs.spool import SpoolWriter
from orchestrator.spec.job import JobSpec
from orchestrator.supernet.page import Nets, Ranking, read_ranking, taken_s, write_nets, write_taken
from orchestrator.sweep.feasible import Feasible
from orchestrator.sweep.point import short_value
from orchestrator.sweep.schedule import what_is_there, what_it_takes
from orchestrator.sweep.trial import Trial
from orchestrator.sweep.trial_run import TrialRun, default_uri
from orchestrator.sweep.workshop import Workshop
from orchestrator.tracking.request import write_request

SLOT = 0  # trials have those from 1 on
_POLL_S = 0.1
_TELL_S = 10.0
_NOTE_S = 2.0
_AGAIN = {"infra", "hang", "preemption"}  # nobody's fault: begun again from the newest checkpoint


@dataclass
class SupernetRun(TrialRun):
    """The training of a supernet: opened, told about and closed like a trial's, but it is none."""

    num_nets: int = 0
    taken_before_s: float = 0.0
    noted: float = 0.0

    @property
    def title(self) -> str:
        """What the job's file says it is."""
        return f"The widest net of {self.num_nets}, which share its weights"

    def open(self, sweep: RunDir) -> Share:
        """Make the folder, or take over what an earlier attempt left."""
        self.trial.attempts[0] = _attempts(self.run) + 1
        self.taken_before_s = taken_s(self.run)
        return replace(super().open(sweep), supernet=True)

    durable_record = True  # no ledger tells of a supernet: by its record the next attempt knows of this one

    def note(self, *, over: bool = False) -> None:
        """Note what all attempts took, every two seconds and when this one is over."""
        now = time.monotonic()
        if self.began and (over or now - self.noted > _NOTE_S):
            self.noted = now
            write_taken(self.run, self.taken_before_s + now - self.began)

    def _track(self, sweep: RunDir, job: JobSpec, *, resume: bool) -> None:
        track = job.track
        write_request(
            self.run,
            uri=track.uri or default_uri(sweep),
            experiment=track.experiment,
            run_name=f"{self.run.run_id} ({self.num_nets} nets)",
            offline=track.offline,
            resume=resume,
            tags={
                "orchestrator.kind": "supernet",
                "orchestrator.sweep": sweep.run_id,
                "orchestrator.run_id": f"{sweep.run_id}/{self.run.run_id}",
            },
            params={f"model.{key}": short_value(value) for key, value in job.model.options.items()},
            started_ms=time.time_ns() // 1_000_000,
        )
        self.spool = SpoolWriter(self.run.spool / "driver.jsonl")


def train_supernet(workshop: Workshop, name: str, wide: Feasible, nets: Nets) -> Ranking | None:
    """Return the ranking of the nets in `trials/NAME`, trained now unless it is there; None: told to stop before,
    or a budget is spent.

    Raises TrainError, ClusterError or NotAbleError when it cannot be trained.
    """
    run, steps = RunDir(workshop.run.trials / name), wide.plan.batch.total_steps
    work = SupernetRun(Trial(-1, {}, name, "supernet"), 0, wide, run, num_nets=len(nets.models))
    found = read_ranking(run, len(nets.models))
    if found is not None:
        if not _was_closed(run):  # the driver was killed between the ranking and its end
            work.spool = SpoolWriter(run.spool / "driver.jsonl")
            _finish(work, nets, found, steps)
        workshop.on_event(Event("supernet", f"{name}: trained and ranked before"))
        return found
    if why := workshop.spent():
        workshop.on_event(Event("supernet", f"{name}: not trained: {why}"))
        return None
    run.path.mkdir(parents=True, exist_ok=True)
    make_durable(run.path.parent)
    write_nets(run, nets)
    workshop.on_event(Event("supernet", f"{name}: {len(nets.models)} nets share the weights of one, {steps:,} steps"))
    try:
        result = _train(workshop, work)
    except OrchestratorError as error:
        work.close("failed", error.message, {}, {})
        raise
    except BaseException:
        work.close("interrupted", "the sweep ended before it was trained", {}, {})
        raise
    found = read_ranking(run, len(nets.models))
    if result["status"] != "finished" or found is None:
        why = _to_stop(workshop) or "the sweep was asked to stop"
        work.close("interrupted", why, {}, {})
        workshop.on_event(Event("supernet", f"{name}: stopped at step {int(result['step']):,}: {why}"))
        return None
    workshop.on_event(Event("supernet", f"{name}: {_finish(work, nets, found, int(result['step']))}"))
    return found


def _finish(work: SupernetRun, nets: Nets, found: Ranking, step: int) -> str:
    """Tell the record and the tracking store what came of it; return it in words."""
    said = f"{len(nets.models)} nets scored in {found.rank_s:.1f} s after {found.train_s:.1f} s of training"
    _keep(work, nets, found)
    work.trial.step = step
    shutil.rmtree(work.run.checkpoints, ignore_errors=True)  # the shared weights have a file of their own
    work.close("finished", said, {f"supernet/{key}": value for key, value in found.whole.items()}, {})
    return said


def _was_closed(run: RunDir) -> bool:
    try:
        return read_record(run).state == "finished"
    except NotAbleError:  # a power cut took it
        return False


def _train(workshop: Workshop, work: SupernetRun) -> dict[str, Any]:
    need, failures = work.feasible.plan.resources, 0
    while True:
        if not workshop.pool.can_start(need):
            raise NotAbleError(
                f"the supernet needs {what_it_takes(need)}; the cluster has {what_is_there(workshop.pool)}",
                hint="lower cluster.cpus_per_worker or cluster.gpus_per_worker",
            )
        workshop.pool.start(SLOT, work.open(workshop.run), need)
        try:
            ended = _wait(workshop, work)
        finally:
            work.note(over=True)
            work.began = 0.0
        if not isinstance(ended, Failure):
            return ended
        failures += 1
        if _to_stop(workshop):
            return {"status": "stopped", "step": work.trial.step}
        if ended.kind not in _AGAIN or failures > workshop.job.cluster.max_failures:
            kind = TrainError if ended.kind in ("train", "user", "oom") else ClusterError
            raise kind(f"the supernet could not be trained: {ended.describe()}", hint=ended.hint)
        workshop.on_event(Event("supernet", f"{work.run.run_id}: {ended.message}; begun again"))


def _wait(workshop: Workshop, work: SupernetRun) -> dict[str, Any] | Failure:
    """Answer its evaluations until it ends or fails."""
    told = time.monotonic()
    while True:
        work.note()
        stop = _to_stop(workshop)
        if stop:
            control.request_stop(work.run, stop)
        for event in workshop.pool.poll(_POLL_S):
            if event.kind == "evaluated":
                work.trial.step = int(event.data["step"])
                workshop.pool.answer(SLOT, stop=bool(stop))
                if time.monotonic() - told > _TELL_S:
                    told = time.monotonic()
                    workshop.on_event(Event("supernet", _progress(work, event.data["metrics"])))
            elif event.failure is not None:
                return event.failure
            else:
                return dict(event.data)
        if work.is_hung():
            workshop.pool.kill(SLOT)
            return Failure("hang", "Hang", "the process was silent for too long", step=work.trial.step)
        workshop.tick()


def _to_stop(workshop: Workshop) -> str:
    return "the sweep was asked to stop" if workshop.stopping else workshop.spent()


def _progress(work: SupernetRun, metrics: dict[str, float]) -> str:
    said = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    return f"{work.run.run_id}: step {work.trial.step:,} of {work.feasible.plan.batch.total_steps:,}, widest net {said}"


def _attempts(run: RunDir) -> int:
    """Return how many there were by the record, or by the checkpoints where a power cut took that."""
    saves = [found[1] for path in run.checkpoints.glob("*") if (found := parse_folder_name(path.name)) is not None]
    try:
        return max([read_record(run).attempt, *saves])
    except NotAbleError:
        return max(saves, default=0)


def _keep(work: SupernetRun, nets: Nets, ranking: Ranking) -> None:
    """Hand the ranking as a table to the tracking store."""
    path = work.run.path / "ranking.csv"
    keys = list(dict.fromkeys(key for model in nets.models for key in model if key != "use"))
    names = list(ranking.scores[0])
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*keys, *names])
        writer.writerows(
            _row(model, keys) + [score[name] for name in names]
            for model, score in zip(nets.models, ranking.scores, strict=True)
        )
    if work.spool is not None:
        work.spool.record("artifact", path=str(path), artifact_path="supernet")


def _row(model: Any, keys: Sequence[str]) -> list[Any]:
    return [short_value(model[key]) if key in model else "" for key in keys]
