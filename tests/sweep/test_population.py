"""Who is replaced in a population, by whom, and how values are changed: against decisions made by hand."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from orchestrator import plugins
from orchestrator.errors import JobFileError
from orchestrator.plan.plan import BatchPlan
from orchestrator.spec.load import load_spec
from orchestrator.sweep.check import build_space
from orchestrator.sweep.generations import ends_of
from orchestrator.sweep.objectives import Objective
from orchestrator.sweep.pbt import MOST_ATTEMPTS, Pbt
from orchestrator.sweep.population import Standing, choose_parent, explore, is_ordered, moved, share_of
from orchestrator.sweep.search import SearchTask
from orchestrator.sweep.space import Param, Space

NONE = -math.inf


def standings(*scores: float) -> list[Standing]:
    return [Standing(member, score, {"optim.lr": 0.01 * (member + 1)}) for member, score in enumerate(scores)]


def parents(scores: list[float], count: int) -> list[set[int | None]]:
    """Return for every member all parents that it may get."""
    former = standings(*scores)
    members = range(len(scores))
    return [{choose_parent(former, each, count, random.Random(seed)) for seed in range(40)} for each in members]


def test_the_worst_begin_from_one_of_the_best_and_the_others_go_on() -> None:
    assert parents([0.1, 0.9, 0.5, 0.7], 1) == [{1}, {1}, {2}, {3}]
    assert parents([0.1, 0.9, 0.5, 0.7, 0.2, 0.3], 2) == [{1, 3}, {1}, {2}, {3}, {1, 3}, {5}]
    assert parents([2.0, 1.0], 1) == [{0}, {0}]


def test_members_without_a_result_are_all_replaced() -> None:
    assert parents([NONE, 0.9, NONE, 0.7], 1) == [{1}, {1}, {1}, {3}]
    assert parents([NONE, NONE, 0.1, NONE], 2) == [{2}, {2}, {2}, {2}]
    assert parents([NONE, NONE], 1) == [{None}, {None}]


def test_of_equal_members_the_first_is_the_better_one() -> None:
    assert parents([0.5, 0.5, 0.5, 0.5], 1) == [{0}, {1}, {2}, {0}]


@pytest.mark.parametrize(
    ("population", "quantile", "count"),
    [(2, 0.25, 1), (4, 0.25, 1), (8, 0.25, 2), (10, 0.25, 3), (5, 0.5, 2), (9, 0.01, 1)],
)
def test_a_quantile_is_at_least_one_member_and_at_most_half(population: int, quantile: float, count: int) -> None:
    assert share_of(population, quantile) == count


@pytest.mark.parametrize(
    ("param", "value", "up", "then"),
    [
        (Param("x", low=1e-4, high=0.1, log=True), 0.01, True, 0.012),
        (Param("x", low=1e-4, high=0.1, log=True), 0.012, False, 0.01),
        (Param("x", low=1e-4, high=0.1), 0.09, True, 0.1),  # no farther than the range
        (Param("x", low=1e-4, high=0.1), 0.1, True, 0.0833333),  # at its end: the other way
        (Param("x", low=0.0, high=0.1), 0.0, True, 0.0),  # only drawn anew, nothing times 1.2 is more
        (Param("x", low=0.0, high=0.5, step=0.1), 0.1, True, 0.2),  # 0.12 is on no grid: one step
        (Param("x", low=0.0, high=0.5, step=0.1), 0.0, False, 0.1),
        (Param("x", low=1, high=100, whole=True), 50, True, 60),
        (Param("x", low=1, high=100, whole=True), 2, True, 3),
        (Param("x", low=1, high=100, whole=True), 1, False, 2),
        (Param("x", (0.1, 0.2, 0.4)), 0.2, True, 0.4),
        (Param("x", (0.1, 0.2, 0.4)), 0.4, True, 0.2),
        (Param("x", (0.4, 0.2, 0.1)), 0.2, True, 0.1),
        (Param("x", ("cosine", "linear")), "linear", True, "linear"),
        (Param("x", (True, False)), True, False, True),
        (Param("x", ([0.9, 0.99], [0.8, 0.9])), [0.8, 0.9], True, [0.8, 0.9]),
        (Param("x", (3,)), 3, True, 3),
    ],
)
def test_a_value_moves_by_the_factor_within_its_space(param: Param, value: Any, up: bool, then: Any) -> None:
    found = moved(param, value, 1.2, up=up)
    assert found == (pytest.approx(then) if isinstance(then, float) else then)
    assert type(found) is type(then)
    assert param.holds(found)


def test_choices_are_ordered_when_they_are_numbers_that_rise_or_fall() -> None:
    assert is_ordered([1, 2, 4])
    assert is_ordered([4.0, 2, 1])
    assert not is_ordered([1, 4, 2])
    assert not is_ordered([False, True])
    assert not is_ordered(["a", "b"])


def space_of(params: dict[str, Any]) -> Space:
    job = {"model": {"use": "cnn"}, "data": {"use": "digits"}, "train": {"epochs": 1}}
    return build_space(load_spec({**job, "sweep": {"space": params, "trials": 1}}))


def test_values_are_drawn_anew_as_often_as_asked_and_lie_in_the_space() -> None:
    space = space_of({"optim.lr": {"min": 1e-4, "max": 0.1, "log": True}, "optim.use": ["adamw", "sgd"],
                      "optim.momentum": {"min": 0.5, "max": 0.9, "when": "optim.use == 'sgd'"}})  # fmt: skip
    anew = 0
    for seed in range(400):
        found = explore(space, {"optim.lr": 0.01, "optim.use": "adamw"}, random.Random(seed), perturb=1.2, resample=0.3)
        assert space.holds(found)
        anew += found["optim.lr"] not in (0.012, 0.00833333)
    assert 0.22 < anew / 400 < 0.38


def pbt_of(**options: Any) -> Pbt:
    space = space_of({"optim.lr": {"min": 1e-4, "max": 0.1, "log": True}})
    searcher = plugins.build("searchers", "pbt", options, SearchTask(space, (Objective("val/loss", "min"),), seed=3))
    assert isinstance(searcher, Pbt)
    return searcher


def test_a_decision_depends_on_what_was_told_and_on_nothing_else() -> None:
    former = standings(0.1, 0.9, 0.5, 0.7)
    asked = [(generation, member, attempt) for generation in (1, 2) for member in range(4) for attempt in (0, 1)]
    one, other = pbt_of(population=4), pbt_of(population=4)
    found = {each: one.breed(*each, former) for each in asked}
    random.Random(0).shuffle(asked)
    assert {each: other.breed(*each, former[::-1]) for each in asked} == found
    replaced = [one.breed(generation, 0, attempt, former) for generation in (1, 2) for attempt in range(6)]
    assert all(each is not None and each.parent == 1 and each.is_changed for each in replaced)
    assert len({str(each) for each in replaced}) > 3, "another generation, another attempt: other values"
    kept = found[1, 2, 0]
    assert kept is not None
    assert (kept.parent, kept.point, kept.is_changed) == (2, former[2].point, False)


def test_values_that_stay_infeasible_give_way_to_the_parents_own() -> None:
    former = standings(0.1, 0.9, 0.5, 0.7)
    child = pbt_of(population=4).breed(1, 0, MOST_ATTEMPTS, former)
    assert child is not None
    assert (child.parent, child.point, child.is_changed) == (1, former[1].point, False)
    assert pbt_of(population=2).breed(1, 0, 0, standings(NONE, NONE)) is None


def test_a_copy_whose_values_could_not_move_is_not_said_to_have_changed() -> None:
    space = space_of({"optim.schedule": [{"use": "cosine"}, {"use": "constant"}]})
    former = [Standing(member, score, {"optim.schedule": {"use": "cosine"}}) for member, score in enumerate((0.9, 0.1))]
    searcher = plugins.build("searchers", "pbt", {"population": 2, "resample": 0.5}, SearchTask(space, ()))
    found = [searcher.breed(1, 1, attempt, former) for attempt in range(MOST_ATTEMPTS)]
    assert {(each.point["optim.schedule"]["use"], each.is_changed) for each in found} == {
        ("cosine", False), ("constant", True),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"population": 1}, "population must be at least 2"),
        ({"population": 4, "interval": 0}, "interval must be at least 1 evaluation"),
        ({"population": 4, "quantile": 0.6}, "quantile must be above 0 and at most 0.5"),
        ({"population": 4, "perturb": 1.0}, "perturb must be above 1"),
        ({"population": 4, "resample": 1.5}, "resample is a probability"),
        ({}, "population"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(JobFileError, match=said):
        pbt_of(**options)


def test_generations_end_at_evaluations_and_the_last_with_the_training() -> None:
    def batch(total: int, every: int | None, size: int = 16, samples: int = 100) -> BatchPlan:
        return BatchPlan(size, 1, 1, size, size, samples, total, every, None)

    assert ends_of(batch(20, 5), 1) == [5, 10, 15, 20]
    assert ends_of(batch(20, 5), 2) == [10, 20]
    assert ends_of(batch(20, 5), 3) == [15, 20]
    assert ends_of(batch(18, 5), 1) == [5, 10, 15, 18]
    assert ends_of(batch(20, 5), 4) == [20]
    assert ends_of(batch(19, None), 1) == [7, 13, 19], "at the ends of epochs"
    for each in (batch(50, None), batch(9, None, 250), batch(7, 1), batch(20, 30)):
        for end, number in zip(ends_of(each, 1), range(1, 99), strict=False):
            assert each.due(each.eval_every_steps, end)
            assert each.count_due(each.eval_every_steps, end) == number
