"""`Report`: what a sweep says of itself, on its way and at its end: to MLflow, to `summary.json` and `trials.csv`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import write_json
from orchestrator.spec.job import JobSpec
from orchestrator.supernet.page import supernet_seconds
from orchestrator.sweep.check import build_space
from orchestrator.sweep.closing import front_of
from orchestrator.sweep.correlation import as_metrics, as_tags
from orchestrator.sweep.crown import crown
from orchestrator.sweep.importance import importance
from orchestrator.sweep.ledger import Ledger
from orchestrator.sweep.objectives import objectives_of
from orchestrator.sweep.summary import Summary, as_csv, as_data, note_rows
from orchestrator.sweep.told import SweepTracking
from orchestrator.sweep.trial import ENDED
from orchestrator.tracking.note import build_note
from orchestrator.tracking.request import TrackingState, read_state


@dataclass
class Report:
    """One start's. `tracking` is there as soon as its sender was started."""

    run: RunDir
    job: JobSpec
    ledger: Ledger
    command: str
    tracking: SweepTracking | None = None

    def summary(self, elapsed_s: float, why: str, exported: Mapping[int, Mapping[str, float]] | None = None) -> Summary:
        """Return the sweep as it stands."""
        objectives = objectives_of(self.job)
        front = front_of(self.ledger, objectives)
        spent_s = supernet_seconds(self.run)
        return Summary(self.job, objectives, self.ledger.trials, front, elapsed_s, why, exported, supernet_s=spent_s)

    def progress(self, ended: int, summary: Summary) -> None:
        """Tell MLflow how far the search is: best values and counts, at the number of trials that have ended."""
        if self.tracking is None:
            return
        best = summary.best
        values = {f"best/{each.name}": best.values[each.name] for each in summary.objectives} if best else {}
        counts = {f"trials/{state}": float(count) for state, count in summary.counts.items() if state in ENDED}
        self.tracking.metrics(ended, values | counts | {"trials/front": float(len(summary.front))})

    def end(self, state: str, said: str, summary: Summary) -> tuple[int, TrackingState]:
        """Write the files, tell MLflow, wait until all is shipped; return how many records remain, and the state."""
        crown(self.run, self.ledger, summary.front)
        trials = [*summary.trials.values()]
        shares = importance(trials, build_space(self.job), summary.objectives) if state == "finished" else {}
        page = {"name": self.run.run_id, "state": state, **as_data(summary), "importance": shares}
        write_json(self.run.sweep / "summary.json", page)
        (self.run.sweep / "trials.csv").write_text(as_csv(summary), encoding="utf-8")
        if self.tracking is None:
            return 0, TrackingState("starting")
        self.tracking.keep(self.run.sweep / "trials.csv", "sweep")
        self.tracking.keep(self.run.sweep / "summary.json", "sweep")
        if summary.best is not None:
            self.tracking.tags({"best_trial": summary.best.name})
        found = summary.correlations
        if found:
            self.tracking.metrics(sum(trial.is_over for trial in trials), as_metrics(found))
            self.tracking.tags(as_tags(found))
        rows = [("state", state), *note_rows(summary)]
        note = build_note(said, rows, command=self.command, text=self.job.track.description)
        return self.tracking.end(state, note)


def model_version(run: RunDir, summary: Summary) -> Mapping[str, str] | None:
    """Return the registered version of the best trial's model; None when it has none."""
    if summary.best is None:
        return None
    state = read_state(RunDir(run.trials / summary.best.name))
    return state.model_version or state.compressed_version


def best_values(summary: Summary) -> dict[str, float]:
    """Return the best trial's values."""
    return dict(summary.best.values) if summary.best is not None else {}
