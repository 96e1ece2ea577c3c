"""Every axis, alone and with others, computes what one process computes: the gate is float64 to 1e-9 per tensor."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.plan.stages import SCHEDULES
from orchestrator.spec.job import JobSpec
from orchestrator.verify.run import verify_job
from tests.tiers import sample_of

TRANSFORMER = {
    "model": {"use": "transformer", "seq_len": 8, "dim": 16, "layers": 2, "heads": 4, "kv_heads": 2, "vocab": 256},
    "data": {"use": "text", "corpus": "python", "seq_len": 8, "max_bytes": 50_000},
}
TIED = {**TRANSFORMER, "model": {**TRANSFORMER["model"], "tied_embeddings": True}}


def job(parts: dict[str, Any], **parallel: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            **parts,
            "optim": {"use": "adamw", "lr": 0.003, "clip_norm": 0.5},
            "train": {"steps": 10, "batch_size": 8, "precision": "fp64"},
            "parallel": {"replicate": 1, **parallel},
        }
    )


def assert_agrees(spec: JobSpec) -> None:
    report = verify_job(spec, num_steps=2)
    assert report.agrees, [comparison.first for comparison in report.comparisons]


@pytest.mark.parametrize("sequence", [True, False])
def test_a_transformer_split_over_two_ranks(sequence: bool) -> None:
    assert_agrees(job(TRANSFORMER, tensor=2, sequence=sequence))


def test_a_bf16_job_is_near_and_its_gate_is_float64() -> None:
    spec = job(TRANSFORMER, tensor=2)
    spec = spec.model_copy(update={"train": spec.train.model_copy(update={"precision": "bf16"})})
    report = verify_job(spec, num_steps=3)
    assert report.agrees, [comparison.first for comparison in report.comparisons]
    assert [comparison.precision for comparison in report.comparisons] == ["fp64", "bf16"]
    assert any("gradients to 0.5" in note for note in report.notes)


def test_tied_embeddings_stay_one_parameter_when_split() -> None:
    assert_agrees(job(TIED, tensor=2))


def test_tied_embeddings_stay_one_parameter_when_sharded() -> None:
    assert_agrees(job(TIED, shard=2))


MOE = {
    "model": {**TRANSFORMER["model"], "use": "moe", "experts": 4, "top_k": 2, "shared_experts": 1, "z_loss": 0.001},
    "data": TRANSFORMER["data"],
}


def test_experts_spread_over_two_ranks() -> None:
    assert_agrees(job(MOE, replicate=2, expert=2))


BESIDE = [{"shard": 2}, {"replicate": 2, "shard": 2}, {"replicate": 2, "tensor": 2}, {"replicate": 2, "pipeline": 2}]


@pytest.mark.parametrize("axes", sample_of(BESIDE, 2, seed=1), ids=lambda axes: "-".join(axes))
def test_experts_beside_every_other_axis(axes: dict[str, int]) -> None:
    assert_agrees(job(MOE, **axes, expert=2))


def test_sequences_split_over_two_ranks() -> None:
    assert_agrees(job(TIED, context=2))


@pytest.mark.parametrize(
    "axes", sample_of([{"tensor": 2}, {"shard": 2}, {"pipeline": 2}], 1, seed=1), ids=lambda axes: "-".join(axes)
)
def test_context_beside_another_axis(axes: dict[str, int]) -> None:
    parts = {**TIED, "model": {**TIED["model"], "kv_heads": 4}}
    assert_agrees(job(parts, **axes, context=2))


LONGER = {**TIED, "model": {**TIED["model"], "seq_len": 12}, "data": {**TIED["data"], "seq_len": 12}}
BIDIRECTIONAL = {**LONGER, "model": {**LONGER["model"], "use": "tests.verify.bidirectional"}}


def ring(parts: dict[str, Any], **parallel: Any) -> JobSpec:
    return job(parts, **parallel, context_attention="ring")


def test_sequences_split_over_three_ranks_with_attention_in_a_ring() -> None:
    assert_agrees(ring(LONGER, context=3))


def test_a_ring_of_attention_that_is_not_causal() -> None:
    assert_agrees(ring(BIDIRECTIONAL, context=3))


def test_a_ring_whose_blocks_are_computed_again_beside_accumulation() -> None:
    spec = ring(TIED, context=2)
    train = spec.train.model_copy(update={"accumulate": 2, "activation_checkpoint": "full"})
    assert_agrees(spec.model_copy(update={"train": train}))


IN_A_RING = [{"tensor": 2}, {"tensor": 2, "sequence": False}, {"shard": 2}, {"pipeline": 2}, {"replicate": 2}]


@pytest.mark.parametrize("parts", [TIED, BIDIRECTIONAL], ids=["causal", "not causal"])
@pytest.mark.parametrize("axes", sample_of(IN_A_RING, 2, seed=1), ids=lambda axes: "-".join(axes))
def test_a_ring_beside_another_axis(axes: dict[str, int], parts: dict[str, Any]) -> None:
    assert_agrees(ring(parts, **axes, context=2))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("others", sample_of([{"tensor": 2}, {"shard": 2}], 1, seed=1), ids=lambda axes: "-".join(axes))
def test_a_ring_in_a_pipeline_beside_a_third_axis_on_eight_ranks(others: dict[str, int]) -> None:
    assert_agrees(ring(TIED, pipeline=2, context=2, **others))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_ring_in_a_pipeline_that_takes_weight_gradients_apart() -> None:
    parts = {**TIED, "model": {**TIED["model"], "layers": 6}}
    assert_agrees(ring(parts, pipeline=2, context=2, schedule="zbv_zero_bubble"))


@pytest.mark.slow
def test_experts_beside_split_sequences() -> None:
    assert_agrees(job(MOE, replicate=2, expert=2, context=2))
    assert_agrees(ring(MOE, replicate=2, expert=2, context=2))


def test_a_pipeline_whose_ends_share_their_weights() -> None:
    assert_agrees(job(TIED, pipeline=2))


MORE_LAYERS = {**TIED, "model": {**TIED["model"], "layers": 6}}


@pytest.mark.parametrize("schedule", sample_of([name for name in SCHEDULES if name != "1f1b"], 3, seed=1))
def test_every_schedule(schedule: str) -> None:
    assert_agrees(job(MORE_LAYERS, pipeline=2, schedule=schedule))


def test_a_pipeline_of_given_cuts_beside_sharded_data() -> None:
    assert_agrees(job(TRANSFORMER, pipeline=2, shard=2, microbatches=2, cuts=["block2"]))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pipeline_shard_and_tensor_together_on_eight_ranks() -> None:
    assert_agrees(job(TIED, pipeline=2, shard=2, tensor=2))


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_pipeline_replicate_and_tensor_together_on_eight_ranks() -> None:
    assert_agrees(job(TRANSFORMER, pipeline=2, replicate=2, tensor=2, sequence=False))


@pytest.mark.parametrize("axis", sample_of(["replicate", "shard"], 1, seed=1))
def test_tensor_beside_a_data_axis(axis: str) -> None:
    assert_agrees(job(TIED, tensor=2, **{axis: 2}))
