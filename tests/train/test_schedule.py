"""Schedules are pure functions of the step."""

from __future__ import annotations

import pytest

from orchestrator.errors import JobFileError
from orchestrator.spec.base import Use
from orchestrator.train.schedule import build_schedule

TOTAL = 100


def factors(**keys: object) -> list[float]:
    schedule = build_schedule(Use.model_validate(keys))
    return [schedule.factor(step, TOTAL) for step in range(TOTAL)]


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "wsd"])
def test_every_schedule_warms_up_linearly_and_reaches_the_base_rate(name: str) -> None:
    found = factors(use=name, warmup_steps=9)
    assert found[:9] == pytest.approx([(step + 1) / 10 for step in range(9)])
    assert found[9] == pytest.approx(1.0)


def test_cosine_and_linear_end_at_their_final_factor() -> None:
    for name in ("cosine", "linear", "wsd"):
        assert factors(use=name, final=0.1)[-1] == pytest.approx(0.1)


def test_linear_is_half_way_down_in_the_middle() -> None:
    assert factors(use="linear")[49] == pytest.approx(0.505, abs=0.01)


def test_wsd_is_flat_until_it_decays() -> None:
    found = factors(use="wsd", warmup_steps=5, decay=0.2)
    assert found[5:80] == [1.0] * 75
    assert found[90] == pytest.approx(9 / 20)


def test_constant_stays() -> None:
    assert set(factors(use="constant")) == {1.0}


def test_a_misspelt_key_is_refused() -> None:
    with pytest.raises(JobFileError, match="warmup_step"):
        build_schedule(Use.model_validate({"use": "cosine", "warmup_step": 3}))
