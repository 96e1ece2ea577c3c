"""What cannot be trained as a population is told before trial 1, all at once, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.check import load_and_plan
from orchestrator.errors import JobFileError, Problem
from orchestrator.runs.catalog import create_run
from orchestrator.runs.record import write_json
from orchestrator.spec.load import load_spec
from orchestrator.sweep.check import find_sweep_problems
from orchestrator.sweep.resume import require_same_job
from tests.sweep.jobs import tiny_sweep

RATE = {"min": 0.001, "max": 0.1, "log": True}
PBT = {"use": "pbt", "population": 4}


def problems(
    space: dict[str, Any] | None = None, search: dict[str, Any] | None = None, **more: Any
) -> dict[str, Problem]:
    sections = {key: more.pop(key) for key in ("model", "optim", "train", "compress") if key in more}
    sweep = {"space": space or {"optim.lr": RATE}, "search": {**PBT, **(search or {})}, "trials": None, **more}
    return {each.path: each for each in find_sweep_problems(tiny_sweep(Path("runs"), sweep, **sections))}


@pytest.mark.parametrize(
    "space",
    [
        {"optim.lr": RATE, "optim.weight_decay": {"min": 0.0, "max": 0.1}, "optim.betas": [[0.9, 0.999], [0.8, 0.99]]},
        {"optim.clip_norm": {"min": 0.1, "max": 2.0}, "model.dropout": {"min": 0.0, "max": 0.5}},
        {"optim.schedule": [{"use": "cosine"}, {"use": "constant"}], "optim.lr": RATE},
        {"optim.schedule": [{"use": "cosine"}], "optim.schedule.warmup_steps": {"min": 1, "max": 9}},
        {"train.loss.label_smoothing": {"min": 0.0, "max": 0.2}},
    ],
)
def test_what_leaves_the_checkpoint_as_it_is_may_change(space: dict[str, Any]) -> None:
    assert problems(space, train={"loss": {"use": "cross_entropy"}}) == {}


def test_a_population_ends_by_itself_and_takes_whole_generations() -> None:
    assert problems() == problems(trials=8) == problems(trials=16) == {}
    for trials in (6, 20):
        assert "4 of 4 trials make 16" in problems(trials=trials)["sweep.trials"].message


def test_whatever_the_checkpoint_depends_on_is_refused_with_the_reason() -> None:
    space = {
        "optim.lr": RATE,
        "model.hidden": [[4], [8], [16], [32]],
        "train.batch_size": [8, 16],
        "train.seed": [0, 1],
        "train.steps": [20, 40],
        "train.compile": [False, True],
        "data.num_samples": [128, 256],
        "parallel.replicate": [1, 2],
        "optim.use": ["adamw", "sgd"],
        "optim.groups": [[], [{"match": "*", "lr": 0.1}]],
    }
    told = problems(space)
    assert set(told) == {f"sweep.space.{path}" for path in space if path != "optim.lr"}
    assert all(each.message.startswith("may not change in mid-training, as pbt does: ") for each in told.values())
    assert told["sweep.space.train.batch_size"].message.endswith("the position in the data is counted in batches")
    assert told["sweep.space.model.hidden"].message.endswith("the checkpoint's weights are those of one model")
    assert "dropout rates of the model may change" in told["sweep.space.model.hidden"].hint


def test_everything_else_that_does_not_go_with_a_population_is_told_at_once() -> None:
    told = problems(
        {"optim.lr": [0.01, 0.02, 0.03]},
        {"interval": 4},
        objectives={"val/loss": "min", "model/params": "min"},
        scheduler={"use": "asha"},
        repeats=2,
        start=[{"optim.lr": 0.01}] * 5,
        train={"monitor": {"patience": 3}},
        compress={"steps": [{"use": "export"}, {"use": "quantise"}]},
    )
    messages = {path: each.message for path, each in told.items()}
    assert "over within one generation of 4 evaluations" in messages["sweep.search.interval"]
    assert "ranks a generation by one number" in messages["sweep.objectives"]
    assert "all trials of a generation end together" in messages["sweep.scheduler"]
    assert "compares single trainings" in messages["sweep.repeats"]
    assert "the first generation has 4 trials" in messages["sweep.start"]
    assert "the space has 3 points" in messages["sweep.space"]
    assert "ends a training early" in messages["train.monitor.patience"]
    assert "every trial of every generation would be compressed" in messages["compress.steps"]


def test_a_number_that_no_evaluation_reports_does_not_rank() -> None:
    told = problems(objectives={"time/step_s": "min"})["sweep.objectives"]
    assert (told.message, told.hint) == (
        "no evaluation reports time/step_s, by which pbt ranks", "take one of val/loss, val/accuracy",
    )  # fmt: skip


def test_an_option_by_which_the_optimiser_keeps_less_is_refused() -> None:
    optim = {"use": "sgd"}
    told = problems({"optim.momentum": {"min": 0.0, "max": 0.9}}, optim=optim)["sweep.space.optim.momentum"]
    assert told.message == "with 0.0 the optimiser keeps less than with 0.9, which a checkpoint of it would lack"
    assert problems({"optim.momentum": {"min": 0.1, "max": 0.9}}, optim=optim) == {}


def test_so_is_one_of_a_group_of_parameters() -> None:
    groups = [{"match": "*.bias", "momentum": 0.9}, {"match": "*.weight", "nesterov": True}]
    optim = {"use": "sgd", "groups": groups}
    told = problems({"optim.groups.0.momentum": {"min": 0.0, "max": 0.9}}, optim=optim)
    assert list(told) == ["sweep.space.optim.groups.0.momentum"]
    assert told["sweep.space.optim.groups.0.momentum"].message.startswith(
        "with 0.0 the optimiser keeps less than with 0.9"
    )
    assert problems({"optim.groups.0.momentum": {"min": 0.5, "max": 0.9}, "optim.groups.0.lr": RATE}, optim=optim) == {}


def test_pbt_under_scheduler_is_sent_to_search(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        "model: {use: cnn}\ndata: {use: digits}\ntrain: {epochs: 2}\n"
        "sweep: {space: {optim.lr: [0.1, 0.2]}, scheduler: {use: pbt}, trials: 2}\n"
    )
    with pytest.raises(JobFileError) as caught:
        load_and_plan(str(job), ())
    told = next(each for each in caught.value.problems if each.path == "sweep.scheduler.use")
    assert told.message.startswith("pbt is a searcher here")
    assert "`search: {use: pbt, population: 8}`" in told.hint


def refusal(tmp_path: Path, before: dict[str, Any], now: dict[str, Any]) -> JobFileError | None:
    run = create_run(tmp_path, "tiny", kind="sweep")
    base = {"space": {"optim.lr": RATE}, "trials": None}
    write_json(run.job, load_spec(tiny_sweep(tmp_path, base | before)).model_dump(mode="json"))
    try:
        require_same_job(run, load_spec(tiny_sweep(tmp_path, base | now)))
    except JobFileError as error:
        return error
    return None


def resume(tmp_path: Path, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    error = refusal(tmp_path, before, now)
    return [each.path for each in error.problems] if error is not None else []


def test_what_decides_a_population_stays_when_it_is_resumed(tmp_path: Path) -> None:
    same = {"search": PBT}
    assert resume(tmp_path, same, same | {"trials": 8, "time_s": 60.0, "export": "best", "keep": "all"}) == []
    assert resume(tmp_path, same, {"search": PBT | {"population": 8}}) == ["sweep.search"]
    assert resume(tmp_path, same, same | {"seed": 4, "constraints": ["optim.lr < 1"]}) == [
        "sweep.constraints", "sweep.seed",
    ]  # fmt: skip
    wider = {"space": {"optim.lr": RATE | {"max": 0.5}}}
    assert resume(tmp_path, same, same | wider) == ["sweep.space"]
    assert resume(tmp_path, {"search": {"use": "random"}, "trials": 4}, same) == ["sweep.search"]
    assert resume(tmp_path, same, {"search": {"use": "random"}, "trials": 4}) == ["sweep.search"]
    error = refusal(tmp_path, same, same | wider)
    assert error is not None
    assert error.hint == "only budgets, start points, `export` and `keep` may change"
