"""From a finished run to verified exports, the final evaluation and what the tracking server is told."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import orchestrator
from orchestrator.cli.eval import command as eval_command
from orchestrator.cli.export import command as export_command
from orchestrator.errors import CheckpointError, ExportError
from orchestrator.export import finish as stage
from orchestrator.export import package
from orchestrator.export.finish import finish
from orchestrator.export.report import FinishResult
from orchestrator.export.restore import restore_model
from orchestrator.export.score import score
from orchestrator.export.source import read_checkpoint, read_job
from orchestrator.runs.paths import RunDir
from orchestrator.spec.job import JobSpec
from orchestrator.train.engine import load_dataset
from tests.export.making import CNN, MLP, VerifiedHere, make_job, train_run


@pytest.fixture(autouse=True)
def verified_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "Verification", VerifiedHere)
    monkeypatch.setattr(stage, "Verification", VerifiedHere)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = train_run(tmp_path_factory.mktemp("storage"), make_job(MLP, ("safetensors",), steps=60))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "Verification", VerifiedHere)
        patch.setattr(stage, "Verification", VerifiedHere)
        finish(run)
    return run


@pytest.fixture
def run(finished: RunDir, tmp_path: Path) -> RunDir:
    """A copy of a run whose finish stage is done."""
    shutil.copytree(finished.path, tmp_path / "runs" / finished.run_id)
    return RunDir(tmp_path / "runs" / finished.run_id)


def page(run: RunDir) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(run.finish.read_text())
    return content


def records(run: RunDir) -> list[dict[str, Any]]:
    (spool,) = run.spool.glob("finish-*.jsonl")
    return [json.loads(line) for line in spool.read_text().splitlines()]


def without_times(found: FinishResult) -> dict[str, Any]:
    content = found.as_json()
    del content["seconds"]
    for item in content["exports"]:
        del item["write_s"], item["reused"]
    return content


def test_the_program_is_always_made_and_evaluated(run: RunDir) -> None:
    found = page(run)
    assert [item["format"] for item in found["exports"]] == ["program", "safetensors"]
    assert all(item["ok"] for item in found["exports"])
    assert found["scored_format"] == "program"
    assert found["status"] == "ok"


def test_the_final_evaluation_is_that_of_the_best_checkpoint_on_the_test_split(run: RunDir) -> None:
    found, job = page(run), read_job(run)
    assert found["checkpoint"] == json.loads(run.result.read_text())["best_checkpoint"]
    tensors, step = read_checkpoint(run.checkpoints / found["checkpoint"])
    data = load_dataset(job)
    with torch.no_grad():
        wanted = score(restore_model(job.model, tensors), job, data, "test")
    assert found["metrics"] == wanted.named()
    assert found["step"] == step
    assert found["score"]["samples"] == len(data.splits["test"])
    assert found["score"]["batch_size"] == 256
    assert found["metrics"]["test/accuracy"] > 0.5


def test_the_confusion_matrix_adds_up_to_the_accuracy(run: RunDir) -> None:
    confusion = json.loads((run.artifacts / "confusion.json").read_text())
    counts = np.array(confusion["counts"])
    assert confusion["classes"] == [str(digit) for digit in range(10)]
    assert counts.sum() == page(run)["score"]["samples"]
    assert np.trace(counts) / counts.sum() == pytest.approx(page(run)["metrics"]["test/accuracy"])


@pytest.mark.parametrize("columns", [1, 2])
def test_the_confusion_matrix_of_two_classes_adds_up_to_the_accuracy_of_one_logit_and_of_two(columns: int) -> None:
    loss = {"use": "bce"} if columns == 1 else {"use": "cross_entropy"}
    job = JobSpec.model_validate(
        {
            "model": {"use": "mlp", "inputs": 2, "outputs": columns},
            "data": {"use": "synthetic", "kind": "blobs", "classes": 2, "num_samples": 100, "noise": 1.0},
            "train": {"steps": 1, "batch_size": 8, "loss": loss},
            "cluster": {"gpus_per_worker": 0},
        }
    )
    found = score(lambda inputs: inputs[:, :columns], job, load_dataset(job), "test")
    assert found.confusion is not None
    counts = np.array(found.confusion.counts)
    assert counts.shape == (2, 2)
    assert counts.sum() == found.samples
    assert counts.sum(axis=1).min() > 0
    assert np.trace(counts) / counts.sum() == pytest.approx(found.metrics["accuracy"])


def test_the_spool_tells_metrics_artifacts_and_the_model(run: RunDir) -> None:
    kinds = [record["kind"] for record in records(run)]
    assert kinds == ["metrics", "artifact", "artifact", "artifact", "model"]
    first, last = records(run)[0], records(run)[-1]
    assert first["step"] == page(run)["step"]
    assert set(first["values"]) == {"test/loss", "test/accuracy"}
    assert Path(last["path"]).name == "program"
    assert last["inputs"]["shape"] == [None, 64]
    assert np.load(run.artifacts / "input_example.npy").shape == (2, 64)


def test_a_second_run_gives_the_same_and_repeats_nothing(run: RunDir) -> None:
    first = finish(run)  # the copy lies elsewhere, so its paths are told once more
    told = records(run)
    again = finish(run)
    assert without_times(again) == without_times(first)
    assert again.metrics == page(run)["metrics"]
    assert all(outcome.reused for outcome in again.exports)
    assert records(run) == told


def test_an_unreadable_best_checkpoint_gives_way_to_the_last_and_is_told(run: RunDir) -> None:
    result = json.loads(run.result.read_text())
    result["best_checkpoint"] = "step-00000001-a1-000000"
    run.result.write_text(json.dumps(result))
    found = finish(run)
    assert found.checkpoint == result["last_checkpoint"]
    assert "step-00000001-a1-000000 passed over" in found.notes[0]


def test_without_any_checkpoint_it_says_so(run: RunDir) -> None:
    result = json.loads(run.result.read_text())
    run.result.write_text(json.dumps(result | {"best_checkpoint": None, "last_checkpoint": None}))
    with pytest.raises(CheckpointError, match="no checkpoint to export"):
        finish(run)


def test_before_training_has_ended_it_says_how_to_go_on(run: RunDir) -> None:
    run.result.unlink()
    with pytest.raises(ExportError) as caught:
        finish(run)
    assert "--resume" in caught.value.hint


def test_a_model_that_cannot_be_traced_is_still_saved_evaluated_and_reported(tmp_path: Path) -> None:
    run = train_run(tmp_path / "runs", make_job({"use": "tests.export.nets:Branching"}))
    found = finish(run)
    assert [(outcome.format, outcome.ok) for outcome in found.exports] == [("program", False), ("safetensors", True)]
    assert found.scored_format == "safetensors"
    assert set(found.metrics) == {"test/loss", "test/accuracy"}
    assert [outcome.format for outcome in found.failed] == ["program"]
    assert page(run)["status"] == "failed"
    assert "model" not in [record["kind"] for record in records(run)]


def test_a_float64_run_is_exported_in_float64(tmp_path: Path) -> None:
    run = train_run(tmp_path / "runs", make_job(MLP, precision="fp64"))
    finish(run)
    manifest = json.loads((run.exports / "program" / "manifest.json").read_text())
    assert manifest["inputs"]["dtype"] == "float64"


def test_the_stage_as_a_process_with_all_formats(tmp_path: Path) -> None:
    run = train_run(tmp_path / "runs", make_job(CNN, ("safetensors", "program", "onnx")))
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.export.finish", str(run.path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = page(run)
    assert [item["ok"] for item in found["exports"]] == [True, True, True]
    assert set(found["seconds"]) >= {"write", "evaluate", "verify_wait", "total"}
    for name in ("program", "onnx", "safetensors"):
        seen = CliRunner().invoke(eval_command, [run.run_id, "--format", name, "--storage", str(run.storage), "--json"])
        assert seen.exit_code == 0, seen.output
        metrics = json.loads(seen.output)["metrics"]
        assert metrics["test/accuracy"] == found["metrics"]["test/accuracy"]
        assert metrics["test/loss"] == pytest.approx(found["metrics"]["test/loss"], rel=1e-5)


def test_the_stage_as_a_process_leaves_its_reason_when_it_fails(run: RunDir) -> None:
    run.result.unlink()
    assert stage.main([str(run.path)]) == 1
    assert page(run)["status"] == "failed"
    assert "does not exist" in page(run)["error"]


class TestEval:
    def test_a_run_an_export_and_a_checkpoint_agree(self, run: RunDir) -> None:
        wanted = page(run)["metrics"]
        targets = [run.run_id, str(run.exports / "safetensors"), str(run.checkpoints / page(run)["checkpoint"])]
        for target in targets:
            seen = CliRunner().invoke(eval_command, [target, "--storage", str(run.storage), "--json"])
            assert json.loads(seen.output)["metrics"] == wanted, target

    def test_the_folder_of_a_run_wherever_it_lies(self, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
        wanted = page(run)["metrics"]
        assert orchestrator.evaluate(run.path).named() == wanted
        monkeypatch.chdir(run.storage)
        for target in (str(run.path), f"./{run.run_id}/", run.run_id):
            seen = CliRunner().invoke(eval_command, [target, "--storage", "elsewhere", "--json"])
            assert seen.exit_code == 0, seen.exception
            assert json.loads(seen.output)["metrics"] == wanted, target

    def test_a_path_that_is_nothing_of_ours(self, tmp_path: Path) -> None:
        seen = CliRunner().invoke(eval_command, [str(tmp_path)])
        assert "there is no run" in str(seen.exception)

    def test_another_split(self, run: RunDir) -> None:
        seen = CliRunner().invoke(eval_command, [run.run_id, "--split", "val", "--storage", str(run.storage)])
        assert "val/accuracy" in seen.output

    def test_an_export_that_was_moved_away_from_its_run(self, run: RunDir, tmp_path: Path) -> None:
        moved = run.exports.joinpath("program").rename(tmp_path / "model")
        seen = CliRunner().invoke(eval_command, [str(moved), "--json"])
        assert json.loads(seen.output)["metrics"] == page(run)["metrics"]

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["--split", "tets"], "no samples in split 'tets'"),
            (["--format", "onnx"], "has no export 'onnx'"),
        ],
    )
    def test_what_is_not_there(self, run: RunDir, arguments: list[str], reason: str) -> None:
        seen = CliRunner().invoke(eval_command, [run.run_id, "--storage", str(run.storage), *arguments])
        assert reason in str(seen.exception)


class TestExport:
    def test_adds_a_format_and_reuses_what_is_there(self, run: RunDir) -> None:
        seen = CliRunner().invoke(
            export_command, [run.run_id, "--format", "onnx,safetensors", "--storage", str(run.storage)]
        )
        assert seen.exit_code == 0, seen.output
        onnx, weights = seen.output.splitlines()
        assert "max |difference|" in onnx
        assert weights.endswith("reused)")

    def test_ends_with_1_when_a_format_fails(self, run: RunDir) -> None:
        body = export_command.callback
        assert body is not None
        code = body(run=run.run_id, formats="onxn", storage=str(run.storage), as_json=False, quiet=False, verbose=False)
        assert code == 1
