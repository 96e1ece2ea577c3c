"""The process that trains a supernet: ranks every part, the same each time, and goes on where it was stopped."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from orchestrator.parallel.process import Rank
from orchestrator.runs.lease import acquire
from orchestrator.runs.paths import RunDir
from orchestrator.spec.job import JobSpec
from orchestrator.supernet.page import ranking_path, read_ranking
from orchestrator.supernet.stage import recipe_of
from orchestrator.train.engine import build_engine
from orchestrator.train.entry import run_rank
from orchestrator.train.evaluate import evaluate
from tests.supernet.nets import NETS, PARTS, folder_of, job_data


def train(run: RunDir, *, attempt: int = 1, resume: bool = False, stop_at: int | None = None) -> str:
    """Train and rank as a worker does; `stop_at`: told to stop at the evaluation of that step."""

    def judge(step: int, metrics: Mapping[str, float]) -> bool:
        return step == stop_at

    lease, root = acquire(run), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        return run_rank(
            run, rank=0, world_size=1, local_rank=0, attempt=attempt, token=lease.token, resume=resume,
            judge=judge, recipe=recipe_of(run),
        ).status  # fmt: skip
    finally:
        lease.release()
        root.handlers[:], root.level = handlers, level  # as it was before this process played a worker


def answer(run: RunDir) -> Any:
    found = read_ranking(run, len(PARTS))
    assert found is not None
    return found


def test_every_part_is_scored_and_the_same_again(tmp_path: Path) -> None:
    runs = [folder_of(tmp_path / name, job_data()) for name in ("one", "two")]
    for run in runs:
        assert train(run) == "finished"
    one, two = map(answer, runs)
    assert one.scores == two.scores
    assert one.sha256 == two.sha256
    assert len(one.scores) == len(PARTS)
    assert all(set(each) == {"val/loss", "val/accuracy"} for each in one.scores)
    assert one.scores[-1] == pytest.approx(one.whole)  # the widest part is the wide net


def test_one_that_was_stopped_goes_on_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, halves = folder_of(tmp_path / "whole", job_data()), folder_of(tmp_path / "halves", job_data())
    train(whole)
    assert train(halves, stop_at=6) == "stopped"
    assert not ranking_path(halves).exists()
    assert train(halves, attempt=2, resume=True) == "finished"
    assert answer(halves).scores == answer(whole).scores
    for name, each in load_file(answer(halves).file).items():
        assert torch.equal(each, load_file(answer(whole).file)[name]), name


def test_a_trial_that_begins_with_a_part_scores_what_the_ranking_says(tmp_path: Path) -> None:
    run = folder_of(tmp_path / "wide", job_data())
    train(run)
    found = answer(run)
    for number, part in enumerate(PARTS):
        data = job_data(part)
        data["train"]["init"] = {"file": found.file, "sha256": found.sha256, "cut_from": dict(PARTS[-1])}
        scores = evaluate(build_engine(JobSpec.model_validate(data), Rank()), "val")
        assert {f"val/{name}": value for name, value in scores.items()} == pytest.approx(found.scores[number]), part


def test_training_helps_every_part(tmp_path: Path) -> None:
    before, after = folder_of(tmp_path / "a", job_data(steps=1)), folder_of(tmp_path / "b", job_data(steps=90))
    for run in (before, after):
        train(run)
    for bad, good in zip(answer(before).scores, answer(after).scores, strict=True):
        assert good["val/accuracy"] > bad["val/accuracy"] + 0.2
    assert NETS.num_random == 2
