"""`check` and `plan`: what they print, in text and in JSON, and that a job that does not fit is refused at its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli.app import app
from orchestrator.plan.available import Available
from orchestrator.spec.load import load_job

JOB = """\
name: tiny
model: {use: cnn}
data: {use: digits}
train:
  epochs: 2
  batch_size: 32
parallel: {replicate: 2}
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Available, "local", classmethod(lambda cls: Available(4.0, 0, 2**33)))
    Path("tiny.yaml").write_text(JOB)
    return "tiny.yaml"


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_a_good_job_is_said_to_be_good(job: str) -> None:
    answer = run("check", job)
    assert answer.exit_code == 0
    assert answer.stdout.startswith("tiny.yaml: ok  2 ranks = replicate 2")


def test_quiet_says_nothing_of_a_good_job(job: str) -> None:
    assert run("check", job, "-q", "train.steps=5").output == ""


def test_the_resolved_job_can_be_loaded_again_and_has_every_default(job: str) -> None:
    answer = run("check", job, "--resolved", "train.steps=5")
    assert "replaces train.epochs = 2 (tiny.yaml:5)" in answer.stderr
    Path("resolved.yaml").write_text(answer.stdout)
    again = load_job("resolved.yaml").spec
    assert again.train.steps == 5
    assert again.model.options["channels"] == [16, 32]
    assert again.optim.options["lr"] > 0


def test_json_is_one_object_with_the_resolved_job(job: str) -> None:
    found = json.loads(run("check", job, "--json").stdout)
    assert found["ok"] is True
    assert found["files"] == ["tiny.yaml"]
    assert found["resolved"]["train"]["batch_size"] == 32


def test_a_job_that_does_not_fit_is_refused_at_its_line(job: str) -> None:
    answer = run("check", job, "parallel.replicate=3")
    assert answer.exit_code == 2
    assert "tiny.yaml:6:15  train.batch_size  32 does not divide by 3" in answer.stderr
    assert "set train.batch_size=30 or 33" in answer.stderr


def test_a_job_too_large_for_the_machine_names_the_override(job: str) -> None:
    found = json.loads(run("check", job, "parallel.replicate=8", "--json").stdout)
    assert found["kind"] == "PlanError"
    assert [(each["path"], each["code"]) for each in found["problems"]] == [("parallel", "too-few-cpus")]


def test_a_users_class_is_noted_as_checked_in_the_worker(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("nets_of_mine.py").write_text("raise SystemExit(99)\nclass Net: ...\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    answer = run("check", job, "model.use=nets_of_mine:Net")
    assert answer.exit_code == 0, answer.output
    assert "checked in the worker" in answer.stderr


def test_plan_prints_rows_and_with_v_the_rank_map(job: str) -> None:
    answer = run("plan", job, "-v")
    assert answer.exit_code == 0
    assert "2 ranks = replicate 2" in answer.stdout
    assert "rank 1: replicate 1\n" in answer.stdout
    both = run("plan", job, "-v", "parallel.shard=2").stdout
    assert "rank 1: replicate 0, shard 1\n" in both


def test_plan_with_v_lists_the_names_that_parameter_groups_match(job: str) -> None:
    answer = run("plan", job, "-v", "model.norm=none", "model.channels=[4]")
    names = [line.split()[0] for line in answer.stdout.splitlines() if "layers." in line]
    assert any(line.endswith("4 x 1 x 3 x 3") for line in answer.stdout.splitlines())
    found = json.loads(run("plan", job, "-v", "--json", "model.norm=none", "model.channels=[4]").stdout)
    assert [each["name"] for each in found["parameters"]] == names
    assert "parameters" not in json.loads(run("plan", job, "--json").stdout)


def test_plan_with_v_of_a_model_that_needs_numbers_says_that_it_cannot_list(
    job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("nets_with_numbers.py").write_text("import torch\ndef net(): return float(torch.ones(1))\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    answer = run("plan", job, "-v", "model.use=nets_with_numbers:net")
    assert answer.exit_code == 0, answer.output
    assert "cannot be built without memory" in answer.stderr


@pytest.mark.parametrize("mistake", ["model.channels=x", "parallel.replicate=3", "nonsense.key=1"])
def test_a_mistake_of_the_job_is_never_a_traceback(job: str, mistake: str) -> None:
    answer = run("plan", job, "-v", mistake)
    assert answer.exit_code == 2
    assert "error" in answer.stderr
    assert "Traceback" not in answer.output


def test_plan_as_json_has_the_numbers(job: str) -> None:
    found = json.loads(run("plan", job, "--json").stdout)
    assert found["plan"]["batch"]["microbatch"] == 16
    assert found["plan"]["resources"]["num_workers"] == 2
