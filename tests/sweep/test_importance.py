"""Importance of parameters, of trials that may be of an earlier start with another space."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.sweep.importance import _ABSENT, _coordinate, importance
from orchestrator.sweep.objectives import Objective
from orchestrator.sweep.space import Param, Space
from orchestrator.sweep.trial import Trial

CLIP, RATE = Param("optim.clip_norm", low=0.5, high=2.0), Param("optim.lr", low=0.001, high=0.1, log=True)


def trial(number: int, **point: Any) -> Trial:
    values = {"val/loss": 1.0 + (number % 3) * 0.1}
    return Trial(number, {f"optim.{key}": value for key, value in point.items()}, "", state="finished", values=values)


def test_choices_that_became_a_range_do_not_crash_a_finished_search() -> None:
    trials = [trial(index, lr=0.01 * (index + 1), clip_norm=(None, 1.0, 1.5)[index % 3]) for index in range(9)]
    found = importance(trials, Space((CLIP, RATE), {}), [Objective("val/loss", "min")])
    assert set(found["val/loss"]["shares"]) == {"optim.clip_norm", "optim.lr"}


@pytest.mark.parametrize(
    ("value", "place"), [(None, _ABSENT), (True, _ABSENT), ("auto", _ABSENT), ([1.0], _ABSENT), (1.5, 1.5), (4, 4.0)]
)
def test_a_value_has_a_place_on_a_range_when_it_is_a_number(value: Any, place: float) -> None:
    assert _coordinate(CLIP, trial(0, clip_norm=value)) == place


def test_absence_is_told_from_every_value_of_a_range() -> None:
    shift = Param("optim.shift", low=-2.0, high=2.0)
    trials = [
        trial(index, lr=0.01, **({} if index % 2 else {"shift": (-1.2, -0.8)[index // 2 % 2]})) for index in range(16)
    ]
    for each in trials:
        each.values["val/loss"] = 1.0 if "optim.shift" in each.point else 2.0
    found = importance(trials, Space((shift, RATE), {}), [Objective("val/loss", "min")])
    assert found["val/loss"]["r2"] == pytest.approx(1.0)
    assert found["val/loss"]["shares"]["optim.shift"] == pytest.approx(1.0)
