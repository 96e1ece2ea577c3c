"""Compression in a sweep: a dimension like any other, its numbers those of the file, one training for many settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.compress.trial import recheck_trial
from orchestrator.errors import JobFileError, Problem
from orchestrator.runs.paths import RunDir
from orchestrator.spec.load import load_spec
from orchestrator.sweep.check import find_sweep_problems
from orchestrator.sweep.resume import require_same_job
from orchestrator.sweep.shared import training_hash
from tests.sweep.jobs import search, tiny_sweep
from tests.sweep.test_resume import begun
from tests.sweep.test_run import mlflow_runs

STEPS = [{"use": "prune", "ratio": 0.5}, {"use": "export"}]
RATIO = "compress.steps.0.ratio"
RATIOS = {RATIO: [0.25, 0.5, 0.75]}
OBJECTIVES = {"compress/val/accuracy": "max", "compress/size_bytes": "min", "compress/latency_ms": "min"}


def pruned(storage: Path, sweep: dict[str, Any], steps: Any = None, **compress: Any) -> dict[str, Any]:
    data = tiny_sweep(storage, {"space": RATIOS, "search": {"use": "grid"}, "trials": None, **sweep})
    data["model"] = {"use": "cnn", "channels": [16, 32], "norm": "none"}
    data["data"] = {"use": "digits"}
    data["train"] = {"steps": 20, "batch_size": 64, "eval_every_steps": 10}
    data["compress"] = {"steps": STEPS if steps is None else steps, "measure": {"rounds": 3}, **compress}
    return data


def problems(tmp_path: Path, sweep: dict[str, Any], steps: Any = None) -> dict[str, Problem]:
    return {each.path: each for each in find_sweep_problems(pruned(tmp_path, sweep, steps))}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_one_training_serves_three_settings_and_every_point_of_the_front_is_a_file_that_holds(tmp_path: Path) -> None:
    result, _ = search(pruned(tmp_path / "runs", {"objectives": OBJECTIVES, "export": "front"}))
    trials = [*result.summary.trials.values()]
    assert [trial.state for trial in trials] == ["finished"] * 3, [trial.reason for trial in trials]
    assert [trial.trained_by for trial in trials] == [{}, {0: "t000"}, {0: "t000"}]
    trained = [path for path in (result.path / "trials").iterdir() if any((path / "logs").glob("rank-*.log"))]
    assert [path.name for path in trained] == ["t000"]
    assert len({trial.values["val/loss"] for trial in trials}) == 1
    sizes = [trial.values["compress/size_bytes"] for trial in trials]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3
    assert all(trial.values["compress/latency_ms"] > 0 for trial in trials)
    for key in result.summary.front:
        run = RunDir(result.path / "trials" / result.summary.trials[key].name)
        files = [path for path in (run.compressed / "artifact").iterdir() if path.name.endswith(".onnx")]
        assert sum(path.stat().st_size for path in files) == result.summary.trials[key].values["compress/size_bytes"]
        assert recheck_trial(run) == (result.summary.exported or {})[key]
        assert "test/accuracy" in recheck_trial(run)
    page = json.loads((result.path / "sweep" / "summary.json").read_text())
    assert [trial["trained_by"] for trial in page["trials"]] == [{}, {"0": "t000"}, {"0": "t000"}]
    runs = mlflow_runs(tmp_path / "runs")
    ids = {each["id"]: each for each in runs if each["tags"]["orchestrator.kind"] == "trial"}
    stages = [each for each in runs if each["tags"]["orchestrator.kind"] == "stage"]
    said = sorted((ids[run["tags"]["mlflow.parentRunId"]]["name"][:4], run["name"], run["status"]) for run in stages)
    of_first = [("t000", name, "FINISHED") for name in ("0 train", "1 prune", "2 export")]
    assert said == of_first + [
        (trial, name, "FINISHED") for trial in ("t001", "t002") for name in ("1 prune", "2 export")
    ]
    assert {each["params"]["ratio"] for each in stages if each["name"] == "1 prune"} == {"0.25", "0.5", "0.75"}
    assert all(each["metrics"]["size_bytes"] > 0 for each in stages if each["name"] == "2 export")
    runs = {run["tags"].get("trial"): run for run in mlflow_runs(tmp_path / "runs")}
    assert runs["t001"]["tags"]["trial.trained_by"] == "t000"
    assert runs["t001"]["tags"]["trial.compressed_by"] == "prune -> export"
    assert runs["t001"]["metrics"]["compress/size_bytes"] == sizes[1]
    assert not (result.path / "sweep" / "trained").exists()


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.timeout(300)
def test_formats_are_searched_like_anything_else(tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="the extra `openvino` is not installed")
    sweep = {"space": {"compress.steps.0.format": ["onnx", "openvino"]}, "objectives": OBJECTIVES}
    steps = [{"use": "export"}, {"use": "quantise"}]
    result, _ = search(pruned(tmp_path / "runs", sweep, steps))
    trials = [*result.summary.trials.values()]
    assert [trial.state for trial in trials] == ["finished"] * 2, [trial.reason for trial in trials]
    assert [trial.trained_by for trial in trials] == [{}, {0: "t000"}]
    assert all(trial.values["compress/latency_ms"] > 0 for trial in trials)
    assert trials[0].values["compress/size_bytes"] != trials[1].values["compress/size_bytes"]
    files = {"t000": {"model.onnx"}, "t001": {"model.xml", "model.bin"}}
    front = [result.summary.trials[key].name for key in result.summary.front]
    for name in front:  # the files of the others are gone
        made = {path.name for path in (result.path / "trials" / name / "compress" / "artifact").iterdir()}
        assert made == {"manifest.json"} | files[name]
    assert front


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_front_of_weights_alone_is_kept_and_is_no_model_of_the_store(tmp_path: Path) -> None:
    steps = [{"use": "prune", "ratio": 0.5}, {"use": "export", "format": "safetensors"}]
    result, _ = search(pruned(tmp_path / "runs", {"space": {"optim.lr": [0.01]}, "objectives": OBJECTIVES}, steps))
    (trial,) = result.summary.trials.values()
    assert trial.state == "finished", trial.reason
    place = result.path / "trials" / trial.name / "compress" / "artifact"
    assert {path.name for path in place.iterdir()} == {"manifest.json", "weights.safetensors"}
    (told,) = (run for run in mlflow_runs(tmp_path / "runs") if run["tags"].get("trial") == trial.name)
    assert told["status"] == "FINISHED"
    assert told["metrics"]["compress/size_bytes"] == (place / "weights.safetensors").stat().st_size


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_compression_that_fails_is_a_failed_trial_with_the_reason_and_the_others_go_on(tmp_path: Path) -> None:
    space = {"compress.limits.size_ratio": [1.5, 1000.0]}
    result, _ = search(pruned(tmp_path / "runs", {"space": space}))
    first, second = result.summary.trials.values()
    assert first.state == "finished"
    assert second.state == "failed"
    assert second.reason.startswith("compression failed: ")
    assert "compress.limits.size_ratio asks for 1000" in second.reason
    assert result.exit_code == 3


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.timeout(300)
def test_an_extended_sweep_that_keeps_everything_goes_on_with_the_training_it_has(tmp_path: Path) -> None:
    data = pruned(tmp_path / "runs", {"trials": 3, "keep": "all", "parallel_trials": 1})
    first, _ = search({**data, "sweep": {**data["sweep"], "trials": 1}})
    assert first.summary.counts == {"finished": 1}
    second, _ = search(data, resume="latest")
    assert second.summary.counts == {"finished": 3}
    assert [trial.trained_by for trial in second.summary.trials.values()] == [{}, {0: "t000"}, {0: "t000"}]


@pytest.mark.parametrize(
    ("sweep", "steps", "path", "words"),
    [
        ({"objectives": {"compress/size_bytes": "min"}, "space": {"optim.lr": [0.1]}}, [], None, "no `compress.steps`"),
        ({"objectives": {"compress/size_byte": "min"}}, None, None, "no trial reports"),
        ({"objectives": {"compress/test/accuracy": "max"}}, None, None, "no trial reports"),
        (
            {"objectives": {"compress/size_bytes": "min"}, "space": {"compress.steps": [STEPS, []]}},
            None,
            None,
            "sweep.space.compress.steps.1 has no steps",
        ),
        ({"space": {"compress.steps.5.ratio": [0.5]}}, None, "sweep.space.compress.steps.5.ratio", "no such place"),
        ({"space": {"compress.steps.0.rato": [0.5]}}, None, "sweep.space.compress.steps.0.rato", "no such key"),
        ({"space": {"compress.steps.0.ratio": [0.5, 1.5]}}, None, "sweep.space.compress.steps.0.ratio.1", "refused"),
        ({"space": {"compress.steps": [STEPS, [{"use": "prun"}]]}}, None, "sweep.space.compress.steps.1", "prun"),
    ],
)
def test_a_mistake_is_told_before_trial_1(
    tmp_path: Path, sweep: dict[str, Any], steps: Any, path: str | None, words: str
) -> None:
    found = problems(tmp_path, sweep, steps)
    place = path or f"sweep.objectives.{next(iter(sweep['objectives']))}"
    assert place in found, found
    assert words in found[place].message


@pytest.mark.parametrize(
    ("sweep", "steps"),
    [
        ({"objectives": OBJECTIVES}, None),
        ({"objectives": OBJECTIVES, "space": {"compress.steps": [STEPS, STEPS[1:]]}}, []),
        ({"space": {"compress.steps": [STEPS, []]}}, None),
        ({"space": {RATIO: {"min": 0.1, "max": 0.7}}, "search": {"use": "random"}, "trials": 2}, None),
    ],
)  # fmt: skip
def test_a_sound_sweep_over_compression_has_no_problems(tmp_path: Path, sweep: dict[str, Any], steps: Any) -> None:
    assert problems(tmp_path, sweep, steps) == {}


def test_a_training_is_named_by_what_decides_it() -> None:
    def named(**changes: Any) -> str:
        job = pruned(Path("runs"), {})
        del job["sweep"]
        for section, values in changes.items():
            job[section] = {**job[section], **values}
        return training_hash(load_spec(job))

    assert named() == named(compress={"steps": STEPS[1:]}) == named(track={"experiment": "other"})
    assert len({named(), named(train={"seed": 1}), named(model={"channels": [8, 16]}), named(optim={"lr": 0.1})}) == 4


def test_a_resumed_sweep_may_not_change_how_models_are_compressed(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.job.write_text(load_spec(pruned(tmp_path, {})).model_dump_json())
    require_same_job(run, load_spec(pruned(tmp_path, {}, [{"use": "prune", "ratio": 0.1}, {"use": "export"}])))
    with pytest.raises(JobFileError) as caught:
        require_same_job(run, load_spec(pruned(tmp_path, {}, limits={"size_ratio": 2.0})))
    assert [problem.path for problem in caught.value.problems] == ["compress.limits.size_ratio"]
