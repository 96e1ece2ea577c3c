"""From a finished run, or an exported folder, to a compressed model and its report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from orchestrator.cli.compress import command
from orchestrator.cluster.ending import compress_stage, judge
from orchestrator.compress import pipeline, stage
from orchestrator.compress.base import Context
from orchestrator.compress.manifest import read_page
from orchestrator.compress.pipeline import Outcome, StepReport
from orchestrator.compress.recover import Course, Recovered
from orchestrator.compress.report import table
from orchestrator.compress.stage import compress_export, compress_run
from orchestrator.compress.timing import settle, summarise
from orchestrator.compress.trial import compress_trial
from orchestrator.errors import ExportError, JobFileError
from orchestrator.export import manifest as export_pages
from orchestrator.export import package
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.plan.layout import Layout
from orchestrator.runs.paths import RunDir
from orchestrator.spec.digest import job_digest
from orchestrator.spec.job import CompressSection, JobSpec, OptimSection
from tests.export.making import VerifiedHere, export, train_run

from .making import RESNET, check_here, make_job, make_trained


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return train_run(tmp_path_factory.mktemp("storage"), make_job(RESNET, control=True))


@pytest.fixture
def run(trained_run: RunDir, tmp_path: Path) -> RunDir:
    shutil.copytree(trained_run.path, tmp_path / "runs" / trained_run.run_id)
    return RunDir(tmp_path / "runs" / trained_run.run_id)


@pytest.mark.slow
def test_a_run_is_compressed_in_a_process_of_its_own_and_told_to_the_spool(run: RunDir) -> None:
    job = make_job(RESNET, control=True)
    events: list[str] = []
    run.logs.mkdir(exist_ok=True)
    found = compress_stage(run, job, lambda event: events.append(event.text))
    assert found["status"] == "ok", found
    assert "compressing: prune, finetune, export, quantise" in events
    records = [json.loads(line) for line in (run.spool / "finish-compress-a1.jsonl").read_text().splitlines()]
    values = next(record["values"] for record in records if record["kind"] == "metrics")
    assert {"compress/1_prune/size_bytes", "compress/2_finetune/val/accuracy", "compress/size_ratio"} <= set(values)
    assert "compress/control/test/accuracy" in values
    assert values["compress/ready_s_candidate"] < values["compress/ready_s_eager"]
    assert [record["flavour"] for record in records if record["kind"] == "model"] == ["onnx"]
    assert (run.artifacts / "compress" / "size_latency_accuracy.png").stat().st_size > 5000
    assert any("x smaller" in line for line in found["table"])
    end = judge(job, build_plan(job, Available.local()), {}, {"status": "ok"}, found, stopped=False)
    assert end.state == "finished"
    assert end.metrics["compress/size_ratio"] == found["metrics"]["compress/size_ratio"]


def test_a_compression_that_does_not_hold_fails_the_run_and_says_why() -> None:
    job = make_job(RESNET)
    found = {"status": "failed", "error": "nothing was compressed", "hint": "prune", "metrics": {}}
    end = judge(job, build_plan(job, Available.local()), {}, {"status": "ok"}, found, stopped=False)
    assert end.state == "failed"
    assert end.notes == ("compression failed: nothing was compressed; prune",)


def test_an_artifact_names_the_job_as_it_was_trained(tmp_path: Path) -> None:
    job = make_job(RESNET, [{"use": "export"}, {"use": "quantise"}])
    job = job.model_copy(update={"train": job.train.model_copy(update={"accumulate": 2})})
    outcome = pipeline.compress(make_trained(job, epochs=0.2), tmp_path / "compress", timed=False)
    page = read_page(outcome.folder / "artifact")
    assert page.job_digest == job_digest(job)
    assert page.job["train"]["accumulate"] == 2


def test_a_run_without_steps_needs_a_file_that_has_some(run: RunDir) -> None:
    with pytest.raises(JobFileError, match="has no compression steps"):
        compress_run(run, CompressSection())


@pytest.mark.parametrize("begin", [compress_run, compress_trial])
def test_what_became_of_a_compression_does_not_outlive_its_files(
    begin: Callable[[RunDir], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError

    trained = make_trained(make_job(RESNET), epochs=0)
    monkeypatch.setattr(stage, "open_trained", lambda *arguments: trained)
    monkeypatch.setattr(stage, "compress", fail)
    monkeypatch.setattr(pipeline, "compress", fail)
    run = RunDir(tmp_path)
    run.compress.write_text('{"status": "ok"}')
    with pytest.raises(ZeroDivisionError):
        begin(run)
    assert not run.compress.exists()


@pytest.mark.slow
def test_an_exported_folder_is_compressed_and_never_changed(tmp_path: Path) -> None:
    job = make_job(RESNET)
    (made,) = export(job, ["safetensors"], tmp_path / "export", torch.rand(45, 1, 8, 8))
    before = sorted((path.name, path.read_bytes()) for path in made.path.iterdir())
    steps = make_job(RESNET, ({"use": "export"}, {"use": "quantise"})).compress
    outcome = compress_export(made.path, tmp_path / "small", steps)
    assert outcome.ok, outcome.error
    assert (tmp_path / "small" / "artifact" / "model.onnx").is_file()
    assert sorted((path.name, path.read_bytes()) for path in made.path.iterdir()) == before


FINE = ({"use": "finetune", "epochs": 0.05}, {"use": "export", "format": "safetensors"})
PLAIN = ({"use": "prune", "ratio": 0.5}, {"use": "export", "format": "safetensors"})


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The export of a model that was not trained with the default optimiser."""
    monkeypatch.setattr(package, "Verification", VerifiedHere)
    monkeypatch.setattr(pipeline, "check_artifact", check_here)
    monkeypatch.setattr(pipeline, "time_artifact", lambda place: [])
    monkeypatch.setattr(pipeline, "weigh_processes", lambda place: {})
    job = make_job(RESNET)
    job = job.model_copy(update={"optim": OptimSection.model_validate({"use": "sgd", "lr": 0.1, "clip_norm": 1.0})})
    (made,) = export(job, ["safetensors"], tmp_path / "export", torch.rand(45, 1, 8, 8))
    return made.path


def as_before(folder: Path) -> str:
    """Make an export one of the time before there was the section; return the digest of its job."""
    page = export_pages.read_manifest(folder)
    job = {name: section for name, section in page.job.items() if name != "optim"}
    export_pages.write_manifest(folder, replace(page, job=job))
    return page.job_digest


def test_an_export_is_trained_further_with_the_optimiser_of_its_run(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(model: nn.Module, context: Context, course: Course, layout: Layout) -> Recovered:
        assert (context.job.optim.use, context.job.optim.options) == ("sgd", {"lr": 0.1})
        raise ExportError("that was all")

    outcome = compress_export(exported, tmp_path / "small", make_job(RESNET, FINE).compress, launch)
    assert outcome.error == "that was all"
    page = export_pages.read_manifest(exported)
    assert job_digest(JobSpec.model_validate(page.job)) == page.job_digest


def test_an_export_that_does_not_say_its_optimiser_is_not_trained_with_another(exported: Path, tmp_path: Path) -> None:
    digest = as_before(exported)
    outcome = compress_export(exported, tmp_path / "small", make_job(RESNET, FINE).compress)
    assert "did not keep the optimiser" in outcome.error
    assert "export the run again" in outcome.hint
    outcome = compress_export(exported, tmp_path / "small", make_job(RESNET, PLAIN).compress)
    assert outcome.ok, outcome.error
    page = read_page(tmp_path / "small" / "artifact")
    assert page.job_digest == digest
    assert "optim" not in page.job


def test_the_command_prints_the_table_and_ends_with_1_when_it_does_not_hold(run: RunDir, tmp_path: Path) -> None:
    job = tmp_path / "steps.yaml"
    job.write_text(
        "model: {use: resnet}\ndata: {use: digits}\ncompress:\n  steps: [{use: export}]\n  limits: {size_ratio: 100}\n"
    )
    done = CliRunner().invoke(command, [run.run_id, str(job), "--storage", str(run.storage)], standalone_mode=False)
    assert done.return_value == 1
    assert "FAILED: " in done.output
    assert "0_trained" in done.output
    assert "1_export" in done.output


def test_noise_forbids_a_figure_and_a_slower_file_is_called_slower() -> None:
    loud = summarise({"eager": [2.0], "candidate": [1.0], "again": [1.2]}, one_thread=True)
    assert loud == {"noise": pytest.approx(0.2), "verdict": "too noisy, no figure"}
    calm = summarise({"eager": [0.5], "candidate": [1.0], "again": [1.01]}, one_thread=False)
    assert calm["speedup"] == 0.5
    waiting = summarise({"eager": [9.0], "candidate": [1.0], "again": [1.01]}, one_thread=False, limit_s=3.0)
    assert waiting["verdict"].startswith("no figure: eager PyTorch is far slower than with one thread")
    assert "speedup" not in waiting
    step = StepReport(0, "trained", 0.0, 100, 10, {"val/loss": 1.0})
    checked = {
        "samples": 1,
        "split": "test",
        "metrics": {},
        "size_bytes": 50,
        "size_ratio": 2.0,
        "integer_operators": 0,
    }
    rows = [{"batch": 1, "threads": 1, **calm}, {"batch": 32, "threads": 2, **loud}]
    text = "\n".join(table(Outcome(Path(), (), step, checked, rows)))
    assert "SLOWER: 2.00 x the time of fp32 eager" in text
    assert "batch 32, 2 threads: too noisy, no figure (the same file twice differs by 20%)" in text


def test_a_noisy_measurement_is_tried_again_and_the_number_of_attempts_is_told() -> None:
    loud, calm = {"verdict": "too noisy, no figure", "noise": 0.2}, {"verdict": "ok", "noise": 0.0}
    answers = iter([loud, calm])
    assert settle(lambda: next(answers)) == calm | {"attempts": 2}
    assert settle(lambda: loud, attempts=3) == loud | {"attempts": 3}
