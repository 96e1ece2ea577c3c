"""`verify` is able to fail: each planted fault is found, and the first step, group and parameter at fault are named."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import TrainError
from orchestrator.spec.job import JobSpec
from orchestrator.verify.compare import Comparison
from orchestrator.verify.run import verify_job
from orchestrator.verify.trace import write_trace

from . import faults

MODEL = {"use": "transformer", "seq_len": 8, "dim": 16, "layers": 2, "heads": 4, "kv_heads": 2, "vocab": 256}
BROKEN = {**MODEL, "use": "tests.verify.broken_plans"}
DATA = {"use": "text", "corpus": "python", "seq_len": 8, "max_bytes": 50_000}
DIGITS = {"use": "digits", "flat": True}
PERCEPTRON = {"use": "mlp", "inputs": 64, "hidden": [8], "outputs": 10}


def job(model: dict[str, Any], data: dict[str, Any] = DATA, precision: str = "fp64", **parallel: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "model": model,
            "data": data,
            "optim": {"use": "sgd", "lr": 0.1, "clip_norm": 0.01},
            "train": {"steps": 10, "batch_size": 8, "precision": precision},
            "parallel": {"replicate": 1, **parallel},
        }
    )


def finding(spec: JobSpec, write: Any = write_trace) -> Comparison:
    """Return the one comparison of a job, which must have failed."""
    report = verify_job(spec, num_steps=1, write=write)
    assert not report.agrees
    (found,) = report.comparisons
    assert found.error == ""
    return found


def failed(found: Comparison) -> dict[str, str]:
    return {worst.group: worst.name for worst in found.groups if not worst.agrees}


def test_a_norm_that_a_tensor_plan_forgets_is_named() -> None:
    first = finding(job(BROKEN, tensor=2)).first
    assert first is not None
    assert (first.step, first.group, first.name) == (1, "gradients", "layers.block2.attention_norm.weight")


def test_queries_that_meet_the_wrong_keys_change_the_loss() -> None:
    found = finding(job(BROKEN, tensor=2, sequence=False))
    assert found.first is not None
    assert (found.first.step, found.first.group) == (1, "loss")
    assert found.first_tensor is not None
    assert (found.first_tensor.group, found.first_tensor.name) == ("gradients", failed(found)["gradients"])


def test_a_mis_scaled_pipeline_gradient_is_found_although_the_loss_is_right() -> None:
    found = finding(job(MODEL, pipeline=2), faults.scaled_pipeline)
    assert "loss" not in failed(found)
    assert found.first is not None
    assert (found.first.step, found.first.group) == (1, "gradients")
    assert found.first.difference == pytest.approx(0.75)  # four microbatches: a quarter of the gradient


def test_an_unsummed_shared_parameter_is_named() -> None:
    found = finding(job({**MODEL, "tied_embeddings": True}, pipeline=2), faults.unsummed_shared)
    assert "loss" not in failed(found)
    assert found.first is not None
    assert (found.first.group, found.first.name) == ("gradients", "layers.head.weight (a copy that went its own way)")


def test_a_ring_that_merges_blocks_without_rescaling_changes_the_loss() -> None:
    found = finding(job(MODEL, context=2, context_attention="ring"), faults.unscaled_ring)
    assert found.first is not None
    assert (found.first.step, found.first.group) == (1, "loss")


def test_gradients_that_a_ring_leaves_behind_are_found_although_the_loss_is_right() -> None:
    found = finding(job(MODEL, context=2, context_attention="ring"), faults.ring_gradients_left_behind)
    assert "loss" not in failed(found)
    assert found.first is not None
    assert (found.first.step, found.first.group) == (1, "gradients")


def test_a_clip_norm_that_leaves_out_the_other_stages_is_found() -> None:
    found = finding(job(MODEL, pipeline=2), faults.own_norm)
    assert found.first is not None
    assert (found.first.step, found.first.group) == (1, "gradient norm")
    assert {"gradient norm", "clipped norm", "weights"} <= set(failed(found))
    assert "gradients" not in failed(found)


def test_a_model_that_cannot_run_in_float64_says_so_and_is_held_to_its_own_precision() -> None:
    report = verify_job(job(PERCEPTRON, DIGITS, "fp32", replicate=2), num_steps=1, write=faults.needs_float32)
    assert report.agrees
    assert [comparison.precision for comparison in report.comparisons] == ["fp32"]
    assert report.notes[0] == "the model cannot run in fp64: NotImplementedError: this kernel knows no double"


def test_a_model_that_cannot_run_at_all_is_an_error() -> None:
    with pytest.raises(TrainError, match="one process cannot run the job: NotImplementedError"):
        verify_job(job(PERCEPTRON, DIGITS, replicate=2), num_steps=1, write=faults.needs_float32)


def test_a_layout_that_dies_is_a_finding_and_the_others_still_run() -> None:
    report = verify_job(job(PERCEPTRON, DIGITS), num_steps=1, max_ranks=2, write=faults.dies_on_two)
    assert not report.agrees
    errors = {comparison.layout: comparison.error for comparison in report.comparisons}
    assert errors["2 ranks = shard 2"] == "RuntimeError: no kernel for this"
    assert errors["2 ranks = replicate 2"] == errors["2 ranks = tensor 2"] == ""
