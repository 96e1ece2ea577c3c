"""A sweep's mistakes are all told before trial 1, at once, with line and column; a sound sweep is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.check import load_and_plan
from orchestrator.errors import JobFileError, Problem
from orchestrator.sweep.check import find_sweep_problems

BAD = """\
model: {use: cnn, channels: [8, 16]}
data: {use: digits}
train: {epochs: 2}
sweep:
  space:
    model.chanels: [[8], [16]]
    model.channels: [[8, 16], [8, 8, 8, 8]]
    optim.lr: {min: 0, max: 0.1, log: true}
    model.dropout: {min: 0.0, max: 0.5, step: 0.1}
  constraints: ["model.dropout > 0.7"]
  objectives: {val/acuracy: max, model/params: min}
  scheduler: {use: asha}
  trials: 4
"""


def problems(**sweep: Any) -> dict[str, Problem]:
    data: dict[str, Any] = {
        "model": {"use": "cnn", "channels": [8, 16]},
        "data": {"use": "digits"},
        "train": {"epochs": 2},
        "sweep": {"space": {"optim.lr": [0.1, 0.2]}, "trials": 2, **sweep},
    }
    return {problem.path: problem for problem in find_sweep_problems(data)}


def test_six_different_mistakes_are_told_at_once_each_at_its_place(tmp_path: Path) -> None:
    job = tmp_path / "bad.yaml"
    job.write_text(BAD)
    with pytest.raises(JobFileError) as caught:
        load_and_plan(str(job), ())
    told = {problem.path: problem for problem in caught.value.problems}
    assert {path: problem.line for path, problem in told.items()} == {
        "sweep.space.model.chanels": 6,
        "sweep.space.model.channels.1": 7,
        "sweep.space.optim.lr": 8,
        "sweep.constraints.0": 10,
        "sweep.objectives.val/acuracy": 11,
        "sweep.scheduler": 12,
    }
    assert "did you mean `channels`" in told["sweep.space.model.chanels"].hint
    assert "cannot be halved 4 times" in told["sweep.space.model.channels.1"].message
    assert "has to begin above 0" in told["sweep.space.optim.lr"].message
    assert "model.dropout > 0.7 does not hold" in told["sweep.constraints.0"].message
    assert "did you mean `val/accuracy`" in told["sweep.objectives.val/acuracy"].hint
    assert "needs to know which metric" in told["sweep.scheduler"].message


@pytest.mark.parametrize(
    ("sweep", "path", "words"),
    [
        ({"space": {"sweep.trials": [1]}}, "sweep.space.sweep.trials", "cannot change itself"),
        ({"space": {"track.register_as": ["a", "b"]}}, "sweep.space.track.register_as", "belongs to the whole sweep"),
        ({"space": {"cluster.address": ["auto"]}}, "sweep.space.cluster.address", "belongs to the whole sweep"),
        (
            {
                "objectives": {"val/loss": "min", "time/train_s": "min"},
                "scheduler": {"use": "asha", "metric": "val/loss"},
            },
            "sweep.objectives",
            "ends trials early",
        ),
        (
            {"space": {"optim.lr": {"values": [0.1], "when": "plan.num_params > 10"}}},
            "sweep.space.optim.lr.when",
            "known of whole jobs only",
        ),
        ({"space": {"optim.lr": [0.1, "fast"]}}, "sweep.space.optim.lr.1", "refused"),
        ({"space": {"export.3.use": ["onnx"]}}, "sweep.space.export.3.use", "no such place"),
        ({"space": {"model.use": ["cnn", "cnnn"]}}, "sweep.space.model.use.1", "no models plug-in"),
        ({"space": {"train.epochs": {"min": 0, "max": 4}}}, "sweep.space.train.epochs.min", "refused"),
        ({"constraints": ["model.widht > 1"]}, "sweep.constraints.0", "no trial has"),
        (
            {"space": {"model.dropout": {"values": [0.1], "when": "model.bogus"}}},
            "sweep.space.model.dropout.when",
            "no",
        ),
        (
            {"space": {"model.hidden": [0, 8], "model.dropout": {"values": [0.1], "when": "model.hidden > 8"}}},
            "sweep.space.model.dropout.when",
            "model.hidden > 8 holds for no point (all 2 points tried)",
        ),
        (
            {
                "space": {
                    "optim.lr": {"min": 0.1, "max": 0.2},
                    "model.dropout": {"values": [0.1], "when": "optim.lr > 0.3"},
                }
            },
            "sweep.space.model.dropout.when",
            "optim.lr > 0.3 holds for no point (10,000 drawn points tried)",
        ),
        ({"start": [{"optim.lr": 0.3}]}, "sweep.start.0.optim.lr", "not in its space"),
        ({"start": [{"optim.lrr": 0.1}]}, "sweep.start.0.optim.lrr", "no parameter"),
        ({"search": {"use": "grid"}, "space": {"optim.lr": {"min": 0.1, "max": 0.2}}}, "sweep.space.optim.lr", "grid"),
        ({"trials": None}, "sweep", "never ends"),
        ({"scheduler": {"use": "asha"}, "repeats": 2}, "sweep.repeats", "repeats"),
        ({"scheduler": {"use": "asha", "metric": "val/f1"}}, "sweep.scheduler.metric", "no evaluation"),
        ({"scheduler": {"use": "median", "metric": "val/accuracy"}}, "sweep.scheduler.metric", "direction"),
        ({"objectives": {"test/accuracy": "max"}}, "sweep.objectives.test/accuracy", "no trial reports"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_told_where_it_stands(sweep: dict[str, Any], path: str, words: str) -> None:
    found = problems(**sweep)
    assert path in found, found
    assert words in found[path].message


@pytest.mark.parametrize(
    "sweep",
    [
        {"space": {"model": [{"use": "cnn", "channels": [4]}, {"use": "mlp", "inputs": 64, "outputs": 10}]}},
        {"space": {"model.hidden": [0, 8], "model.dropout": {"values": [0.1], "when": "model.hidden > 0"}}},
        {"space": {"parallel.replicate": [1, 2, 64]}},
        {"space": {"train.steps": [10, 20]}},
        {"search": {"use": "grid"}, "trials": None},
        {"scheduler": {"use": "asha"}},
        {"scheduler": {"use": "asha", "metric": "val/accuracy", "mode": "max"}},
        {"objectives": {"val/accuracy": "max", "time/train_s": "min"}, "scheduler": {"use": "fifo"}},
        {"constraints": ["plan.num_params < 1e6", "model.channels[1] < 64 or model.kernel_size == 3"]},
    ],
)  # fmt: skip
def test_a_sound_sweep_has_no_problems(sweep: dict[str, Any]) -> None:
    assert problems(**sweep) == {}


@pytest.mark.parametrize(
    "sweep",
    [
        {"constraints": ["optim.lr < 0.0002", "model.channels[0] + model.hidden < 10"]},
        {"constraints": ["optim.lr == 0.07"], "start": [{"optim.lr": 0.07}]},
        {"constraints": ["optim.lr == 0.07", "plan.num_params > 10"], "start": [{"optim.lr": 0.07}]},
    ],
)
def test_a_small_feasible_region_is_found(sweep: dict[str, Any]) -> None:
    space = {
        "optim.lr": {"min": 0.0001, "max": 0.1},
        "model.hidden": [0, 8, 16, 32],
        "model.channels": [[8, 16], [16, 32]],
    }
    assert problems(space=space, **sweep) == {}


def test_a_condition_on_a_start_point_alone_is_no_mistake() -> None:
    space = {"optim.lr": {"min": 0.1, "max": 0.2}, "model.dropout": {"values": [0.1], "when": "optim.lr == 0.2"}}
    assert problems(space=space, start=[{"optim.lr": 0.2}]) == {}
    assert list(problems(space=space)) == ["sweep.space.model.dropout.when"]


def test_a_value_that_needs_another_parameters_value_is_accepted() -> None:
    found = problems(space={"model.image_size": [8, 32], "model.channels": [[8, 8, 8, 8, 8], [4]]})
    assert "sweep.space.model.channels.0" not in found


def test_what_is_not_offered_says_why(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    sweep = "sweep: {space: {optim.lr: [0.1]}, search: {use: ax}, scheduler: {use: pb2}, trials: 2}\n"
    job.write_text(BAD.partition("sweep:")[0] + sweep)
    with pytest.raises(JobFileError) as caught:
        load_and_plan(str(job), ())
    told = {problem.path: problem.message for problem in caught.value.problems}
    assert told["sweep.search.use"].startswith("ax is not offered: Ax has moved")
    assert told["sweep.scheduler.use"].startswith("pb2 is not offered: it needs a Gaussian process")


def test_misspelt_options_of_searcher_and_scheduler_are_errors(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    text = BAD.partition("sweep:")[0]
    job.write_text(
        text + "sweep:\n  space: {optim.lr: [0.1]}\n  search: {use: tpe, startups: 3}\n"
        "  scheduler: {use: asha, reductoin: 3}\n  trails: 4\n  trials: 4\n"
    )
    with pytest.raises(JobFileError) as caught:
        load_and_plan(str(job), ())
    assert [problem.path for problem in caught.value.problems] == [
        "sweep.search.startups",
        "sweep.scheduler.reductoin",
        "sweep.trails",
    ]
