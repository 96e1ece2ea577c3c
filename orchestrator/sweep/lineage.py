"""From whom a trial of a population descends, as comment, tags, rows and data: the values that trained it, in order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.sweep.objectives import Objective
from orchestrator.sweep.point import plain_copy, point_name
from orchestrator.sweep.trial import Trial


def lineage_of(trial: Trial | None, trials: Mapping[int, Trial]) -> list[Trial]:
    """Return the trial's ancestors, the first first, and itself; [] when it is no member of a population."""
    found: list[Trial] = []
    while trial is not None and trial.birth is not None:
        found.insert(0, trial)
        trial = trials[trial.birth.parent] if trial.birth.parent is not None else None
    return found


def lineage_rows(
    best: Trial | None, trials: Mapping[int, Trial], objectives: Sequence[Objective]
) -> list[tuple[str, str]]:
    """Return a row for every trial of the best one's lineage: its steps, its values, how its last evaluation was."""
    found = []
    for each in lineage_data(best, trials, objectives):
        scores = "".join(f", {name} {value:.4g}" for name, value in each["scores"].items())
        said = f"steps {each['from_step']} to {each['to_step']}: {point_name(each['values'])}{scores}"
        found.append((f"lineage {each['trial']}", said))
    return found


def lineage_data(
    best: Trial | None, trials: Mapping[int, Trial], objectives: Sequence[Objective]
) -> list[dict[str, Any]]:
    """Return the best trial's lineage as plain values; `scores` are those of each trial's last evaluation."""
    found = []
    for trial in lineage_of(best, trials):
        metrics = trial.curve[-1][1] if trial.curve else {}
        scores = {
            each.name: metrics[each.name] for each in objectives if math.isfinite(metrics.get(each.name, math.nan))
        }
        begins = trial.birth.begins if trial.birth is not None else 0
        found.append({
            "trial": trial.name, "from_step": begins, "to_step": trial.step, "values": plain_copy(trial.point),
            "scores": scores,
        })  # fmt: skip
    return found


def birth_data(trial: Trial, trials: Mapping[int, Trial]) -> dict[str, Any] | None:
    """Return generation, member, parent's name and the step from which it went on; None outside of populations."""
    birth = trial.birth
    if birth is None:
        return None
    parent = trials[birth.parent].name if birth.parent is not None else None
    return {"generation": birth.generation, "member": birth.member, "parent": parent, "from_step": birth.begins}


def lineage_tags(trial: Trial) -> dict[str, str]:
    """Return what the tracking store is told: generation, member and parent."""
    birth = trial.birth
    if birth is None:
        return {}
    parent = {"pbt.parent": f"t{birth.parent:03d}"} if birth.parent is not None else {}
    return {"pbt.generation": str(birth.generation), "pbt.member": str(birth.member)} | parent


def lineage_comment(trial: Trial) -> str:
    """Return a line for the trial's job file, which says what the file alone does not; "" outside of populations."""
    birth = trial.birth
    if birth is None:
        return ""
    parent = f"from the checkpoint of t{birth.parent:03d} at step {birth.begins}" if birth.parent is not None else ""
    begins = f"It begins {parent or 'like any run'} and ends at step {birth.until}."
    return f"# {begins} Run alone, this file trains from the first step to the last.\n"
