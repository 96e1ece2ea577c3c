"""Importance of parameters, of trials that may be of an earlier start with another space."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.sweep.importance import _coordinate, importance
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
    ("value", "place"), [(None, -1.0), (True, -1.0), ("auto", -1.0), ([1.0], -1.0), (1.5, 1.5), (4, 4.0)]
)
def test_a_value_has_a_place_on_a_range_when_it_is_a_number(value: Any, place: float) -> None:
    assert _coordinate(CLIP, trial(0, clip_norm=value)) == place
