"""`orchestrator verify`: several jobs at once, overrides told by their `=`, exit codes, one JSON object."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from orchestrator.cli.app import app
from orchestrator.cli.verify import numbers, split_words

TEXT = """
model: {use: mlp, inputs: 64, hidden: [8], outputs: 10}
data: {use: digits, flat: true}
optim: {use: sgd, lr: 0.1}
train: {steps: 5, batch_size: 16, precision: fp64}
parallel: {replicate: 2}
"""


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["verify", *words])


@pytest.fixture
def jobs(tmp_path: Path) -> list[str]:
    found = []
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(TEXT)
        found.append(str(tmp_path / f"{name}.yaml"))
    return found


def test_a_word_with_an_equals_sign_is_an_override_unless_it_is_a_file(tmp_path: Path) -> None:
    odd = tmp_path / "a=b.yaml"
    odd.write_text(TEXT)
    assert split_words(("a.yaml", "train.steps=2", "b.yaml", str(odd))) == (
        ["a.yaml", "b.yaml", str(odd)],
        ["train.steps=2"],
    )


def test_ranks_are_numbers() -> None:
    assert numbers("2, 4,8") == [2, 4, 8]
    with pytest.raises(click.UsageError, match="from 2 to 64"):
        numbers("1")


def test_several_jobs_are_verified_in_one_go(jobs: list[str]) -> None:
    result = run(*jobs, "--steps", "1", "--json", "parallel.shard=1")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["ok"]
    assert [each["job"] for each in found["jobs"]] == jobs
    assert found["jobs"][0]["comparisons"][0]["layout"] == "2 ranks = replicate 2"


def test_a_layout_that_does_not_fit_is_bad_input_and_nothing_runs(jobs: list[str]) -> None:
    result = run(*jobs, "parallel.replicate=3")
    assert result.exit_code == 2
    assert "train.batch_size" in result.output
    assert "..." not in result.output


def test_without_a_job_it_asks_for_one() -> None:
    result = run()
    assert result.exit_code == 2
    assert "which job?" in result.output


def test_a_layout_that_changes_the_result_ends_with_one_and_names_the_parameter(tmp_path: Path) -> None:
    text = TEXT.replace("mlp, inputs: 64, hidden: [8], outputs: 10", '"tests.verify.broken:RankDependent"')
    (tmp_path / "job.yaml").write_text(text.replace("precision: fp64", "precision: fp64, loss: {use: cross_entropy}"))
    result = run(str(tmp_path / "job.yaml"), "--steps", "1")
    assert result.exit_code == 1
    assert "first at step 1: loss differs by" in result.output
    assert "first parameter at step 1: gradients of " in result.output
