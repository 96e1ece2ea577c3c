"""What came of a sweep, in words and plain data: verdict, description for MLflow, `summary.json`, `trials.csv`."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.spec.job import JobSpec
from orchestrator.sweep.correlation import STAND_ALONE, Correlation, as_rows, correlations
from orchestrator.sweep.layouts import LayoutRow, rows_as_data
from orchestrator.sweep.lineage import birth_data, lineage_data, lineage_rows
from orchestrator.sweep.objectives import Objective
from orchestrator.sweep.point import plain_copy, point_name, short_keys, short_value
from orchestrator.sweep.trial import Trial

MOST_ROWS = 30


@dataclass(frozen=True)
class Summary:
    """A sweep at one moment. `front` and `best` are numbers of trials; `exported` what exported models gave."""

    job: JobSpec
    objectives: Sequence[Objective]
    trials: Mapping[int, Trial]
    front: Sequence[int]
    elapsed_s: float
    why: str = ""
    exported: Mapping[int, Mapping[str, float]] | None = None
    layouts: Sequence[LayoutRow] = ()
    supernet_s: float = 0.0

    @property
    def best(self) -> Trial | None:
        """The front's trial that is best in the first objective; None when no trial has a result."""
        return self.trials[self.front[0]] if self.front else None

    @property
    def counts(self) -> dict[str, int]:
        """Number of trials by state."""
        return dict(Counter(trial.state for trial in self.trials.values()))

    @property
    def correlations(self) -> list[Correlation]:
        """How well what the searcher expected agrees with what came; [] when it expected nothing."""
        return correlations(self.trials.values(), self.objectives)

    @property
    def worker_s(self) -> float:
        """Seconds of workers used, by trials and by supernets."""
        return self.supernet_s + sum(trial.worker_s for trial in self.trials.values())

    @property
    def cost(self) -> float | None:
        """What the workers used have cost; None where the job does not say their price."""
        price = self.job.sweep.cost if self.job.sweep is not None else None
        return price.of(self.worker_s) if price is not None else None

    @property
    def saved_steps(self) -> tuple[int, int]:
        """(steps that early stopping left out, steps that all trials would have taken in full)."""
        done = [trial for trial in self.trials.values() if trial.state in ("finished", "stopped")]
        return (
            sum(max(0, trial.total_steps - trial.step) for trial in done if trial.state == "stopped"),
            sum(trial.total_steps for trial in done),
        )


def _said_of_ranking(summary: Summary) -> str:
    """Return the rank correlation with nets trained alone, for the verdict; "" when nothing was ranked."""
    alone = next((each for each in summary.correlations if each.against == STAND_ALONE), None)
    return f"; ranking: {alone.describe()}" if alone is not None and alone.pairs else ""


def count_words(counts: Mapping[str, int]) -> str:
    """Return `20 finished, 3 stopped early, 1 infeasible`."""
    words = {"stopped": "stopped early", "oom": "out of memory"}
    order = ("finished", "stopped", "infeasible", "oom", "diverged", "failed", "interrupted", "running", "waiting")
    return (
        ", ".join(f"{counts[state]} {words.get(state, state)}" for state in order if counts.get(state)) or "no trials"
    )


def verdict(state: str, summary: Summary) -> str:
    """Return the first line: the best trial and its values, the front, the counts."""
    best = summary.best
    if best is None:
        return f"{state}: no trial has a result ({count_words(summary.counts)})"
    values = ", ".join(f"{each.name} {number(best.values.get(each.name))}" for each in summary.objectives)
    front = f"; front of {len(summary.front)} trials" if len(summary.objectives) > 1 else ""
    ranked = _said_of_ranking(summary)
    counts = count_words(summary.counts)
    return f"{state}: best {best.name} with {values} ({point_name(best.point)}){front}; {counts}{ranked}"


def note_rows(summary: Summary) -> list[tuple[str, str]]:
    """Return the table of the description: counts, costs, the front."""
    rows = [("trials", count_words(summary.counts))]
    if summary.why:
        rows.append(("ended", summary.why))
    money = f", cost {summary.cost:.4g}" if summary.cost is not None else ""
    rows.append(("spent", f"{summary.elapsed_s:.0f} s, {summary.worker_s:.0f} worker seconds{money}"))
    saved, whole = summary.saved_steps
    if saved:
        rows.append(("saved by stopping early", f"{saved:,} of {whole:,} steps ({100 * saved / whole:.0f} %)"))
    if summary.supernet_s:
        rows.append(("supernet", f"{summary.supernet_s:.0f} of the worker seconds, to train and rank"))
    shared = sum(len(trial.trained_by) for trial in summary.trials.values())
    if shared:
        rows.append(("trainings reused", f"{shared} (trials that differ only in `compress` share one)"))
    rows += [("ranking", each.describe()) for each in summary.correlations]
    for key in summary.front[:MOST_ROWS]:
        trial = summary.trials[key]
        values = ", ".join(f"{each.name} {number(trial.values.get(each.name))}" for each in summary.objectives)
        tested = (summary.exported or {}).get(key, {})
        test = "".join(
            f", {name} {number(value)}"
            for name, value in tested.items()
            if name != "test/loss" and name not in trial.values
        )
        rows.append(
            (
                f"{'front' if len(summary.objectives) > 1 else 'best'} {trial.name}",
                f"{values}{test}: {point_name(trial.point)}",
            )
        )
    rows.extend(lineage_rows(summary.best, summary.trials, summary.objectives))
    rows.extend((f"layout {row.trial}", row.describe()) for row in summary.layouts[:MOST_ROWS])
    return rows


def number(value: float | None) -> str:
    """Return a value for people; a dash when there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    if float(value).is_integer() and abs(value) < 1e12:
        return f"{int(value):,}"
    return f"{value:.4g}"


def as_data(summary: Summary) -> dict[str, Any]:
    """Return everything as plain JSON-ready values: read by the figures, by `--json` and by people."""
    best = summary.best
    saved, whole = summary.saved_steps
    return {
        "objectives": {each.name: each.direction for each in summary.objectives},
        "best": best.name if best else None,
        "front": [summary.trials[key].name for key in summary.front],
        "counts": summary.counts,
        "elapsed_s": round(summary.elapsed_s, 3),
        "worker_s": round(summary.worker_s, 3),
        "supernet_s": round(summary.supernet_s, 3),
        "cost": summary.cost,
        "saved_steps": saved,
        "whole_steps": whole,
        "ended": summary.why,
        "rank_correlation": as_rows(summary.correlations),
        "layouts": rows_as_data(summary.layouts),
        "lineage": lineage_data(best, summary.trials, summary.objectives),
        "trials": [_trial_data(trial, summary) for _, trial in sorted(summary.trials.items())],
    }


def _trial_data(trial: Trial, summary: Summary) -> dict[str, Any]:
    return {
        "name": trial.name,
        "state": trial.state,
        "reason": trial.reason,
        "point": plain_copy(trial.point),
        "values": _finite(trial.values),
        "test": _finite((summary.exported or {}).get(trial.number, {})),
        "front": trial.number in summary.front,
        "step": trial.step,
        "total_steps": trial.total_steps,
        "evaluations": trial.evaluations,
        "seconds": round(trial.seconds, 3),
        "workers": trial.workers,
        "origin": trial.origin,
        "settings": plain_copy(trial.settings),
        "predicted": _finite(trial.predicted),
        "ranked_by": trial.ranked_by,
        "trained_by": {str(index): name for index, name in trial.trained_by.items()},
        "birth": birth_data(trial, summary.trials),
        "hash": trial.digest,
    }


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    """Leave out what JSON has no number for."""
    return {key: value for key, value in values.items() if math.isfinite(value)}


def as_csv(summary: Summary) -> str:
    """Return one row per trial: name, state, what varies, objectives, steps, seconds, reason; of a population's also
    whose checkpoint it began from."""
    paths = list(dict.fromkeys(path for trial in summary.trials.values() for path in trial.point))
    shorts = short_keys(paths)
    names = [each.name for each in summary.objectives]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    bred = ["generation", "parent"] if any(trial.birth is not None for trial in summary.trials.values()) else []
    known = [name for name in names if any(name in trial.predicted for trial in summary.trials.values())]
    heads = [*(shorts[path] for path in paths), *names, *(f"predicted {name}" for name in known)]
    writer.writerow(["trial", "state", "front", "origin", *bred, *heads, "step", "seconds", "reason"])
    for _, trial in sorted(summary.trials.items()):
        cells = [short_value(trial.point[path]) if path in trial.point else "" for path in paths]
        values = [trial.values.get(name, "") for name in names]
        expected = [trial.predicted.get(name, "") for name in known]
        front = "yes" if trial.number in summary.front else ""
        birth = birth_data(trial, summary.trials) or {}
        whose = [birth.get(key, "") for key in bred]
        writer.writerow(
            [
                trial.name,
                trial.state,
                front,
                trial.origin,
                *whose,
                *cells,
                *values,
                *expected,
                trial.step,
                f"{trial.seconds:.2f}",
                trial.reason,
            ]
        )
    return out.getvalue()
