"""`verify` says that a good layout agrees with one process, and names the first place where a bad one does not."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import PlanError
from orchestrator.spec.job import JobSpec
from orchestrator.verify.layouts import fitting
from orchestrator.verify.run import verify_job


def job(model: dict[str, Any], **parallel: int) -> JobSpec:
    return JobSpec.model_validate(
        {
            "model": model,
            "data": {"use": "digits", "flat": True},
            "optim": {"use": "adamw", "lr": 0.01, "clip_norm": 0.5},
            "train": {"steps": 10, "batch_size": 24, "loss": {"use": "cross_entropy"}},
            "parallel": {"replicate": 1, **parallel},
        }
    )


@pytest.mark.parametrize("axis", ["replicate", "shard"])
def test_a_users_plain_module_agrees_under_every_axis(axis: str) -> None:
    report = verify_job(job({"use": "tests.verify.broken:Plain"}, **{axis: 2}))
    assert report.agrees
    assert {worst.group for worst in report.comparisons[0].groups} >= {"loss", "gradients", "weights", "clipped norm"}
    assert any("dropout" in note for note in report.notes)


def test_a_model_that_differs_by_rank_is_found_and_named() -> None:
    report = verify_job(job({"use": "tests.verify.broken:RankDependent"}, replicate=2), num_steps=2)
    assert not report.agrees
    first = report.comparisons[0].first
    assert first is not None
    assert (first.step, first.group) == (1, "loss")
    failed = {worst.group: worst.name for worst in report.comparisons[0].groups if not worst.agrees}
    assert failed["gradients"] in {"first.weight", "first.bias", "second.weight", "second.bias"}


def test_all_layouts_up_to_four_ranks_that_fit_the_batch_are_found() -> None:
    found = {
        (each.layout.replicate, each.layout.shard) for each in fitting(job({"use": "tests.verify.broken:Plain"}), 4)
    }
    assert found == {(2, 1), (1, 2), (3, 1), (1, 3), (4, 1), (1, 4), (2, 2)}


def test_all_layouts_that_split_sequences_are_tried_both_ways() -> None:
    text = {"use": "text", "corpus": "python", "seq_len": 12, "max_bytes": 50_000}
    model = {"use": "transformer", "seq_len": 12, "dim": 16, "layers": 2, "heads": 4, "kv_heads": 2}
    spec = JobSpec.model_validate({"model": model, "data": text, "train": {"steps": 1, "batch_size": 12}})
    labels = [each.label for each in fitting(spec, 3) if each.layout.context > 1]
    assert labels == [
        "2 ranks = context 2",
        "2 ranks = context 2, ring attention",
        "3 ranks = context 3, ring attention",
    ]


def test_one_process_has_nothing_to_compare() -> None:
    with pytest.raises(PlanError, match="nothing to compare"):
        verify_job(job({"use": "tests.verify.broken:Plain"}))
