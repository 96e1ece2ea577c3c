"""How much of an objective's spread each parameter explains, by a forest fitted to the trials that have a result.

Shares of the impurity that splits on a parameter remove (Breiman, 2001), with the forest's own out-of-bag R2 beside
them: where that is low, the shares say nothing, and the figures say so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from orchestrator.sweep.objectives import Objective
from orchestrator.sweep.point import plain_copy
from orchestrator.sweep.space import Param, Space
from orchestrator.sweep.trial import Trial

FEWEST = 8
_ABSENT = -1e30  # below every value there can be: trees look at the order alone


def importance(trials: Sequence[Trial], space: Space, objectives: Sequence[Objective]) -> dict[str, dict[str, Any]]:
    """Return by objective `{"r2": ..., "shares": {path: share}}`; {} with fewer than 8 results or 2 parameters."""
    done = [trial for trial in trials if trial.state in ("finished", "stopped") and not _is_child(trial)]
    if len(done) < FEWEST or len(space.params) < 2:
        return {}
    from sklearn.ensemble import RandomForestRegressor

    rows = [[_coordinate(param, trial) for param in space.params] for trial in done]
    found: dict[str, dict[str, Any]] = {}
    for objective in objectives:
        values = [trial.values.get(objective.name, math.nan) for trial in done]
        if not all(map(math.isfinite, values)) or len(set(values)) < 2:
            continue
        forest = RandomForestRegressor(n_estimators=200, oob_score=True, random_state=0, min_samples_leaf=2)
        forest.fit(rows, values)
        shares = {param.path: float(s) for param, s in zip(space.params, forest.feature_importances_, strict=True)}
        found[objective.name] = {"r2": float(forest.oob_score_), "shares": shares}
    return found


def _is_child(trial: Trial) -> bool:
    """A trial that began from another's checkpoint owes its values to that one's parameters, too."""
    return trial.birth is not None and trial.birth.parent is not None


def _coordinate(param: Param, trial: Trial) -> float:
    """Return where a trial lies on a parameter's axis; below all where the parameter is absent, or had a value of
    another kind before the sweep was extended. Numbers outside of the present range have their place.
    """
    if param.path not in trial.point:
        return _ABSENT
    value = trial.point[param.path]
    if param.values is not None:
        known = [plain_copy(each) for each in param.values]
        return float(known.index(value)) if value in known else _ABSENT
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _ABSENT
    return math.log(value) if param.log and value > 0 else float(value)
