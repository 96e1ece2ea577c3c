"""What a user sees of sweeps: preview, overrides of the space, plain lines, exit codes, a note from `run`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator.cli.sweep import _closing_lines
from orchestrator.runs.paths import RunDir
from orchestrator.spec.load import load_job, load_spec
from orchestrator.sweep.birth import Birth
from orchestrator.sweep.objectives import objectives_of
from orchestrator.sweep.result import SweepResult
from orchestrator.sweep.summary import Summary
from orchestrator.sweep.trial import Trial
from tests.sweep.jobs import tiny_sweep

ROOT = Path(__file__).parents[2]


def orchestrator(*words: str, timeout: int = 240) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def test_a_preview_shows_the_space_and_starts_nothing(tmp_path: Path) -> None:
    done = orchestrator("sweep", str(ROOT / "jobs/sweep_digits.yaml"), "--dry-run", f"cluster.storage={tmp_path / 'r'}")
    assert done.returncode == 0, done.stderr
    assert "0.002 to 0.01 in steps of 0.004" in done.stdout
    assert "for example" in done.stdout
    assert not (tmp_path / "r").exists()


def test_parameters_of_the_space_can_be_overridden_though_their_keys_have_dots() -> None:
    def space(*overrides: str) -> dict[str, object]:
        found: dict[str, object] = load_job(ROOT / "jobs/sweep_digits.yaml", overrides).data["sweep"]["space"]
        return found

    assert space("sweep.space.optim.lr.max=0.2")["optim.lr"] == {"min": 0.002, "max": 0.2, "step": 0.004}
    assert space("sweep.space.optim.lr=[0.1]")["optim.lr"] == [0.1]
    assert space("sweep.space.model.kernel_size=[3, 5]")["model.kernel_size"] == [3, 5]


def test_a_job_without_a_sweep_says_so(tmp_path: Path) -> None:
    done = orchestrator("sweep", str(ROOT / "jobs/smoke.yaml"))
    assert done.returncode == 2
    assert "no sweep section" in done.stderr


@pytest.mark.parametrize("parent", [None, 0])
def test_the_closing_lines_send_nobody_to_a_file_that_does_not_train_the_best(
    parent: int | None, tmp_path: Path
) -> None:
    job = load_spec(tiny_sweep(tmp_path, {}))
    births = [Birth(0, 0, 0, 10)] + [Birth(1, 0, 10, 20, 0)] * (parent is not None)
    trials = {number: Trial(number, {}, "", state="finished", birth=birth) for number, birth in enumerate(births)}
    summary = Summary(job, objectives_of(job), trials, (len(births) - 1,), 1.0)
    said = "\n".join(_closing_lines(SweepResult(RunDir(tmp_path / "tiny-1"), "finished", "", summary), "job.yaml"))
    assert "orchestrator ui" in said
    assert ("orchestrator run" in said) == (parent is None), (
        "one that began from a checkpoint is not trained by its job"
    )


@pytest.mark.ray
@pytest.mark.slow
def test_plain_lines_off_a_terminal_and_exit_code_3_when_some_trials_failed(tmp_path: Path) -> None:
    fault = {"use": "tests.cluster.faults:Fault", "what": "raise", "step": 3}
    data = tiny_sweep(
        tmp_path / "runs", {"space": {"train.callbacks": [[], [fault]]}, "search": {"use": "grid"}, "trials": None}
    )
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(data))
    done = orchestrator("sweep", str(job))
    assert done.returncode == 3, done.stderr
    lines = done.stderr.splitlines()
    assert any(line.startswith("schedule  ") for line in lines)
    assert any(line.startswith("trial     t000* finished") for line in lines)
    assert any("t001  failed" in line and "broken on purpose" in line for line in lines)
    assert "\x1b" not in done.stderr
    assert "failed t001" in done.stdout
    runs = json.loads(orchestrator("runs", "--json", "--storage", str(tmp_path / "runs")).stdout)
    assert "tiny-1" in json.dumps(runs)


@pytest.mark.soak
def test_run_trains_the_job_as_it_stands_and_names_the_other_verb(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(tiny_sweep(tmp_path / "runs", {})))
    done = orchestrator("run", str(job))
    assert done.returncode == 0, done.stderr
    assert "searches its sweep section" in done.stderr
    assert not (tmp_path / "runs" / "tiny-1" / "trials").exists()
