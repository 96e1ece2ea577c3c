"""A training that begins from another's checkpoint: not a bit is lost, and no other foreign checkpoint is taken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.checkpoint.fork import Fork, take
from orchestrator.checkpoint.manifest import CheckpointMeta, FileEntry, Manifest, folder_name
from orchestrator.errors import CheckpointError
from orchestrator.parallel.process import Rank
from orchestrator.spec.job import JobSpec
from orchestrator.testing.ranks import RankError, run_ranks
from orchestrator.train.engine import build_engine
from orchestrator.train.loop import NullSaver, Trainer
from orchestrator.train.ports import Ports
from orchestrator.train.progress import Progress
from orchestrator.train.step import Stepper

from .fitting import ListRecorder, fit_once, tiny_job

LAYOUTS = {"one": (1, 1), "replicate": (2, 1), "shard": (1, 2)}
CURVES = ("train/loss", "train/grad_norm", "train/lr", "val/loss", "val/accuracy")


def run(
    folder: Path, job: dict[str, Any], *, until: int | None = None, fork: Fork | None = None, **more: Any
) -> dict[str, Any]:
    parallel = job.get("parallel", {})
    count = parallel.get("replicate", 1) * parallel.get("shard", 1)
    given = (job, str(folder), fork is not None, more.get("stop_after"), more.get("attempt", 1), until, fork)
    return run_ranks(fit_once, count, *given)[0]


def with_rate(lr: float) -> dict[str, Any]:
    job = tiny_job()
    return {**job, "optim": {**job["optim"], "lr": lr}}


def change_the_rate(rank: int, world_size: int, job: dict[str, Any], step: int, lr: float) -> dict[str, Any]:
    """Train without a stop, with another learning rate from one step on; return what came of the step after it."""
    recorder = ListRecorder()
    engine = build_engine(JobSpec.model_validate(job), Rank(rank, world_size, rank))
    trainer = Trainer(engine, Ports(recorder=recorder), NullSaver())
    for _ in range(step):
        trainer.advance()
    trainer.stepper = Stepper(replace(engine, base_rates=tuple(lr for _ in engine.base_rates)))
    trainer.advance()
    weights = {name: each.detach().clone() for name, each in engine.model.module.named_parameters()}
    return {"recorded": recorder.values, "weights": weights}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_training_cut_into_forks_is_the_whole_one_bit_for_bit(layout: str, tmp_path: Path) -> None:
    replicate, shard = LAYOUTS[layout]
    job = {**tiny_job(), "parallel": {"replicate": replicate, "shard": shard}}
    whole = run(tmp_path / "whole", job)
    parts = [run(tmp_path / "0", job, until=8)]
    for index, until in ((1, 16), (2, 24)):
        fork = take(tmp_path / f"{index - 1}", until - 8, tmp_path / f"{index}")
        parts.append(run(tmp_path / f"{index}", job, until=until, fork=fork))
    assert [(part["status"], part["step"]) for part in parts] == [("finished", step) for step in (8, 16, 24)]
    for name in CURVES:
        together = {step: value for part in parts for step, value in part["recorded"].get(name, {}).items()}
        assert together == whole["recorded"][name], name
    for name, weight in whole["weights"].items():
        assert torch.equal(parts[-1]["weights"][name], weight), name


def test_the_first_step_of_a_fork_is_what_its_parent_would_have_done_with_the_new_values(tmp_path: Path) -> None:
    run(tmp_path / "parent", with_rate(0.01), until=8)
    child = run(tmp_path / "child", with_rate(0.03), until=9, fork=take(tmp_path / "parent", 8, tmp_path / "child"))
    never_stopped = run_ranks(change_the_rate, 1, with_rate(0.01), 8, 0.03)[0]
    for name in ("train/loss", "train/grad_norm", "train/lr"):
        assert child["recorded"][name] == {9: never_stopped["recorded"][name][9]}, name
    for name, weight in never_stopped["weights"].items():
        assert torch.equal(child["weights"][name], weight), name


def test_the_best_of_a_fork_is_one_of_its_own_evaluations(tmp_path: Path) -> None:
    parent = run(tmp_path / "parent", with_rate(0.01), until=16)
    worse = run(tmp_path / "child", with_rate(3.0), fork=take(tmp_path / "parent", 16, tmp_path / "child"))
    assert parent["best_step"] <= 16
    assert worse["best_step"] == 24
    assert worse["best_metrics"]["val/loss"] > parent["best_metrics"]["val/loss"]
    assert str(worse["best"]).startswith("step-00000024-")
    assert Progress(8, 2, 1, 0.5, 8, {"a": 1.0}, {"a": 1.0}, 0, 9.0).anew() == Progress(
        8, skipped_in_a_row=1, last_metrics={"a": 1.0}
    )


def test_a_fork_that_was_killed_goes_on_from_its_own_checkpoints(tmp_path: Path) -> None:
    run(tmp_path / "parent", with_rate(0.01), until=8)
    plain = run(tmp_path / "plain", with_rate(0.03), fork=take(tmp_path / "parent", 8, tmp_path / "plain"))
    fork = take(tmp_path / "parent", 8, tmp_path / "cut")
    run(tmp_path / "cut", with_rate(0.03), fork=fork, stop_after=19)
    again = run(tmp_path / "cut", with_rate(0.03), fork=fork, attempt=2)
    assert again["best_step"] == plain["best_step"]
    for name, weight in plain["weights"].items():
        assert torch.equal(again["weights"][name], weight), name


def test_no_other_checkpoint_of_another_job_is_begun_from(tmp_path: Path) -> None:
    run(tmp_path / "parent", with_rate(0.01), until=8)
    fork = take(tmp_path / "parent", 8, tmp_path / "child")
    place = tmp_path / "child" / fork.checkpoint
    for wrong in (Fork("step-00000008-a1-000000", fork.sha256), Fork(fork.checkpoint, "0" * 64)):
        with pytest.raises(RankError, match="saved by a job with another model, data, optimiser"):
            run(tmp_path / "child", with_rate(0.03), fork=wrong)
    page = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").unlink()  # its other name, in the parent's folder, stays as it is
    (place / "manifest.json").write_text(json.dumps({**page, "created": "later"}))
    with pytest.raises(RankError, match="saved by a job with another model, data, optimiser"):
        run(tmp_path / "child", with_rate(0.03), fork=fork)


def test_a_fork_whose_checkpoint_is_gone_does_not_start_from_scratch(tmp_path: Path) -> None:
    run(tmp_path / "parent", with_rate(0.01), until=8)
    fork = take(tmp_path / "parent", 8, tmp_path / "child")
    (tmp_path / "child" / fork.checkpoint).rename(tmp_path / "elsewhere")
    with pytest.raises(RankError, match="from which this training begins, is not in"):
        run(tmp_path / "child", with_rate(0.03), fork=fork)


def committed(folder: Path, step: int, content: bytes = b"weights") -> Path:
    place = folder / folder_name(step, 1, "abcdef")
    place.mkdir(parents=True)
    (place / "data").write_bytes(content)
    manifest = Manifest(step, 1, 1, 1, False, (FileEntry("data", len(content), "0" * 64),), CheckpointMeta(step))
    (place / "manifest.json").write_bytes(manifest.to_json())
    return place


def test_the_checkpoint_of_the_step_is_linked_alone_and_outlives_its_parent(tmp_path: Path) -> None:
    committed(tmp_path / "parent", 10)
    place = committed(tmp_path / "parent", 20)
    committed(tmp_path / "parent", 30)
    committed(tmp_path / "child", 40)  # left there by a driver that was killed while it linked
    fork = take(tmp_path / "parent", 20, tmp_path / "child")
    assert [path.name for path in (tmp_path / "child").iterdir()] == [place.name] == [fork.checkpoint]
    assert (tmp_path / "child" / place.name / "data").samefile(place / "data")
    for path in place.iterdir():
        path.unlink()
    assert (tmp_path / "child" / place.name / "data").read_bytes() == b"weights"
    assert fork.is_of(tmp_path / "child" / place.name)


def test_every_folder_that_is_made_has_a_durable_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent's checkpoint may be deleted afterwards: a power cut must not take the child's with a folder's name."""
    place = committed(tmp_path / "t000" / "checkpoints", 20)
    synced: list[Path] = []
    monkeypatch.setattr("orchestrator.checkpoint.fork.Disk.sync_folder", lambda disk, path: synced.append(path))
    take(place.parent, 20, tmp_path / "t001" / "checkpoints")
    made = [tmp_path / "t001", tmp_path / "t001" / "checkpoints", tmp_path / "t001" / "checkpoints" / place.name]
    assert {path.parent for path in made} <= set(synced)


def test_a_checkpoint_that_is_not_there_cannot_be_taken(tmp_path: Path) -> None:
    committed(tmp_path / "parent", 10)
    with pytest.raises(CheckpointError, match="has no checkpoint of step 20, from which another training"):
        take(tmp_path / "parent", 20, tmp_path / "child")


def test_where_there_are_no_hard_links_the_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = committed(tmp_path / "parent", 20)

    def refuse(*names: str) -> None:
        raise OSError("not supported")

    monkeypatch.setattr("orchestrator.checkpoint.fork.os.link", refuse)
    fork = take(tmp_path / "parent", 20, tmp_path / "child")
    assert not (tmp_path / "child" / place.name / "data").samefile(place / "data")
    assert fork.is_of(tmp_path / "child" / place.name)
