"""From numbers to points: ranges, choices, conditions, the grid; names and hashes of points."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.spec.load import load_spec
from orchestrator.spec.sweep import SweepParam
from orchestrator.sweep.check import build_space
from orchestrator.sweep.point import apply_point, point_hash, point_name
from orchestrator.sweep.source import complete
from orchestrator.sweep.space import Space, build_param

BASE = {
    "model": {"use": "cnn", "channels": [8, 16]},
    "data": {"use": "digits"},
    "train": {"epochs": 2},
}


def space(params: dict[str, Any]) -> Space:
    return build_space(load_spec({**BASE, "sweep": {"space": params, "trials": 1}}))


@given(st.floats(0, 1, exclude_max=True))
def test_every_value_drawn_from_a_range_lies_in_it(unit: float) -> None:
    for given_as in (
        {"min": 1e-5, "max": 0.1, "log": True},
        {"min": 0, "max": 7},
        {"min": 1, "max": 1000, "log": True},
        {"min": 0.1, "max": 0.7, "step": 0.2},
        {"min": 2, "max": 11, "step": 3},
    ):
        param = build_param("x", SweepParam(**given_as))
        assert param.holds(param.at(unit)), (given_as, param.at(unit))


def test_ends_of_ranges_and_kinds_of_numbers() -> None:
    whole = build_param("x", SweepParam(min=1, max=3))
    assert [whole.at(unit) for unit in (0.0, 0.5, 0.99)] == [1, 2, 3]
    assert whole.count == 3
    assert build_param("x", SweepParam(min=1.0, max=3)).count is None
    from_zero = build_param("x", SweepParam(min=0.0, max=1))  # one end is not written whole
    assert (from_zero.count, from_zero.at(0.25)) == (None, 0.25)
    assert build_param("x", SweepParam(min=-1, max=0.0)).count is None
    assert build_param("x", SweepParam(min=0, max=1)).count == 2
    steps = build_param("x", SweepParam(min=0.0, max=0.5, step=0.1))
    assert [steps.item(index) for index in range(steps.count or 0)] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]


def test_the_grid_visits_every_point_once_and_leaves_absent_parameters_out() -> None:
    found = space(
        {
            "model.dropout": {"values": [0.1, 0.2], "when": "model.hidden > 0"},
            "model.hidden": [0, 16],
            "optim.lr": [0.1, 0.2],
        }
    )
    points = list(found.grid())
    assert [param.path for param in found.params] == ["model.hidden", "model.dropout", "optim.lr"]
    assert found.size() == len(points) == 2 + 4
    assert len({point_hash(point) for point in points}) == 6
    assert all(("model.dropout" in point) == (point["model.hidden"] > 0) for point in points)


def test_whole_sections_as_choices_bring_parameters_of_their_own() -> None:
    found = space(
        {
            "model": [{"use": "cnn", "channels": [4, 8]}, {"use": "mlp", "inputs": 64, "outputs": 10}],
            "model.hidden": {"values": [[32], [64]], "when": "model.use == 'mlp'"},
        }
    )
    assert found.size() == 3
    mlp = apply_point(BASE, {"model": {"use": "mlp", "inputs": 64, "outputs": 10}, "model.hidden": [32]})
    assert mlp["model"] == {"use": "mlp", "inputs": 64, "outputs": 10, "hidden": [32]}
    assert BASE["model"] == {"use": "cnn", "channels": [8, 16]}


def test_a_point_changes_lists_parts_and_lengths_as_an_override_would() -> None:
    data = {**BASE, "optim": {"use": "adamw", "betas": [0.9, 0.99]}}
    changed = apply_point(data, {"model.channels.1": 4, "train.steps": 7, "optim.use": "sgd", "optim.lr": 0.1})
    assert changed["model"]["channels"] == [8, 4]
    assert changed["train"] == {"steps": 7}
    assert changed["optim"] == {"use": "sgd", "lr": 0.1}


def test_names_are_short_and_tell_paths_apart_and_hashes_do_not_depend_on_order() -> None:
    point = {"optim.lr": 0.00213, "model.channels": [8, 16], "optim.schedule.use": "cosine", "model.use": "cnn"}
    assert point_name(point) == "lr 0.00213, channels 8-16, schedule.use cosine, model.use cnn"
    assert point_hash(point) == point_hash(dict(reversed(point.items())))
    assert point_hash(point) != point_hash({**point, "optim.lr": 0.00214})


def test_a_start_point_takes_what_it_leaves_out_from_the_job() -> None:
    found = space({"optim.lr": {"min": 1e-4, "max": 0.1, "log": True}, "model.channels": [[8, 16], [4]]})
    assert complete({"optim.lr": 0.05}, found) == {"optim.lr": 0.05, "model.channels": [8, 16]}


def test_conditions_in_a_circle_are_refused() -> None:
    from orchestrator.errors import JobFileError

    with pytest.raises(JobFileError, match="circle"):
        space(
            {
                "model.hidden": {"values": [1], "when": "model.dropout > 0"},
                "model.dropout": {"values": [0.1], "when": "model.hidden > 0"},
            }
        )
