"""Synchronised batch norm: every layout computes what one process computes that accumulates over the microbatches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator.models.norms import SyncBatchNorm2d
from orchestrator.parallel.process import Rank
from orchestrator.spec.job import JobSpec
from orchestrator.testing.ranks import run_ranks
from orchestrator.train.engine import build_engine
from orchestrator.train.step import Stepper
from orchestrator.verify.compare import Comparison
from orchestrator.verify.layouts import Candidate, candidate_of, on_cpus
from orchestrator.verify.run import verify_candidates, verify_job

from . import unsynchronised

LAYOUTS: list[dict[str, Any]] = [
    {"replicate": 2},
    {"shard": 2},
    {"replicate": 2, "tensor": 2},
    {"replicate": 2, "pipeline": 2, "microbatches": 2},
    {"shard": 2, "pipeline": 2, "microbatches": 4, "schedule": "zbv_zero_bubble"},
]


def job(parallel: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **train: Any) -> JobSpec:
    spec = {
        "model": model or {"use": "resnet", "channels": [8, 16], "depths": [1, 1], "norm": "sync_batch"},
        "data": {"use": "digits"},
        "optim": {"use": "sgd", "lr": 0.1, "momentum": 0.9, "clip_norm": 0.5},
        "train": {"steps": 10, "batch_size": 16, "precision": "fp64", "loss": {"use": "cross_entropy"}, **train},
        "parallel": {"replicate": 1, **(parallel or {})},
    }
    return on_cpus(JobSpec.model_validate(spec))


def test_any_layout_is_one_process() -> None:
    candidates = [candidate_of(job(layout)) for layout in LAYOUTS]
    report = verify_candidates(job(), candidates, ["fp64"], num_steps=2)
    assert [(found.layout, found.first, found.error) for found in report.comparisons if not found.agrees] == []
    # The running figures as well: every rank knows those of the whole batch.
    assert {worst.tolerance for found in report.comparisons for worst in found.groups} == {1e-9}


def test_accumulation_pools_run_by_run() -> None:
    report = verify_job(job({"replicate": 2}, accumulate=2), num_steps=2)
    assert report.agrees


@pytest.mark.parametrize(
    ("write", "layout", "group"),
    [
        (unsynchronised.apart, {"replicate": 2}, "loss"),
        (unsynchronised.one_way, {"replicate": 2}, "gradients"),
        (unsynchronised.other_samples, {"replicate": 2, "pipeline": 2, "microbatches": 2}, "loss"),
    ],
)
def test_a_planted_fault_is_found(write: Any, layout: dict[str, Any], group: str) -> None:
    (found,) = verify_job(job(layout), num_steps=1, write=write).comparisons
    assert isinstance(found, Comparison)
    assert found.error == ""
    assert found.first is not None
    assert (found.first.step, found.first.group) == (1, group)


def state_after_two_steps(rank: int, world_size: int, spec: dict[str, Any]) -> dict[str, Tensor]:
    engine = build_engine(JobSpec.model_validate(spec), Rank(rank, world_size, rank))
    stepper = Stepper(engine)
    for step in range(2):
        stepper.step(step)
    return {name: value.clone() for name, value in engine.model.module.state_dict().items()}


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_recomputing_a_block_does_not_count_its_samples_twice(mode: str) -> None:
    def states(activation_checkpoint: str) -> list[dict[str, Tensor]]:
        spec = job({"replicate": 2}, activation_checkpoint=activation_checkpoint)
        return run_ranks(state_after_two_steps, 2, spec.model_dump(mode="json"))

    (want, _), (got, other) = states("none"), states(mode)
    assert int(got["layers.block1.norm1.num_batches_tracked"]) == 2
    for name, value in want.items():
        assert torch.equal(got[name], value), name
        assert torch.equal(other[name], value), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_gathered_in_bf16_and_figures_in_float32_go_together(precision: str) -> None:
    spec = job({"shard": 2, "shard_precision": "bf16"}, precision=precision)
    states = run_ranks(state_after_two_steps, 2, spec.model_dump(mode="json"))
    assert states[0]["layers.stem.norm.running_mean"].dtype == torch.float32
    assert torch.equal(*(state["layers.stem.norm.running_mean"] for state in states))


def over_parts(norm: SyncBatchNorm2d, x: Tensor, num_ranks: int) -> list[Tensor]:
    """Return what each of `num_ranks` ranks computes of its part; the rows of the others are worked out beforehand."""
    rows: list[Tensor] = []
    for part in x.chunk(num_ranks):
        var, mean = torch.var_mean(part.float() if part.dtype == torch.bfloat16 else part, (0, 2, 3), correction=0)
        rows.append(torch.cat([mean, var]))
    norm.gather_over_ranks = lambda mine: torch.stack(rows)
    return [norm(part) for part in x.chunk(num_ranks)]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_pooled_figures_are_those_of_the_whole_batch(momentum: float | None) -> None:
    x = torch.randn(12, 3, 4, 4, dtype=torch.float64) * 3 + 100
    plain = nn.BatchNorm2d(3, momentum=momentum).double()
    norm = SyncBatchNorm2d(3, momentum=momentum).double()
    want = plain(x)
    got = over_parts(norm, x, 1)[0]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.state_dict(), plain.state_dict(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat(over_parts(norm, x, 4)), want, rtol=1e-12, atol=1e-12)


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    x = torch.randn(8, 2, 4, 4, dtype=torch.float64) + 1e4
    want = nn.BatchNorm2d(2).double()(x)
    got = torch.cat(over_parts(SyncBatchNorm2d(2), x.float(), 4))
    # 1e4 in float32 is known to 5e-4 (half a unit in the last place); sums of squares would know nothing.
    assert float((got - want).detach().abs().max()) < 2e-3


def test_what_comes_in_bf16_leaves_in_bf16() -> None:
    norm = SyncBatchNorm2d(2)
    (got,) = over_parts(norm, torch.randn(4, 2, 2, 2).bfloat16(), 1)
    assert got.dtype == torch.bfloat16
    assert norm.running_mean is not None
    assert norm.running_mean.dtype == torch.float32


def test_alone_and_in_evaluation_it_is_plain_batch_norm() -> None:
    x, plain, norm = torch.randn(4, 2, 3, 3), nn.BatchNorm2d(2), SyncBatchNorm2d(2)
    assert torch.equal(norm(x), plain(x))
    norm.gather_over_ranks = lambda mine: pytest.fail("a collective in evaluation")
    assert torch.equal(norm.eval()(x), plain.eval()(x))


def test_a_model_of_both_kinds_of_norm_is_said_to_have_no_one_process() -> None:
    spec = job({"replicate": 2}, {"use": "tests.train.unsynchronised:Mixed"}, batch_size=8)
    report = verify_job(spec, num_steps=1)
    assert any("no one process does both: under data ranks everything is held to 1" in note for note in report.notes)
    assert {worst.tolerance for found in report.comparisons for worst in found.groups} <= {1.0, 2.0}


def test_rounding_is_allowed_for_in_the_jobs_own_precision_and_never_in_the_gate() -> None:
    report = verify_job(job({"replicate": 2}, precision="bf16"), num_steps=1)
    assert report.agrees
    allowed = {found.precision: {w.group: w.tolerance for w in found.groups} for found in report.comparisons}
    assert set(allowed["fp64"].values()) == {1e-9}
    assert (allowed["bf16"]["loss"], allowed["bf16"]["gradients"]) == (2e-2, 0.5)
    assert any("norms over the batch make much of rounding" in note for note in report.notes)


def test_the_one_process_takes_as_many_passes_as_a_data_rank() -> None:
    each: Candidate = candidate_of(job({"replicate": 2, "pipeline": 2, "microbatches": 4}))
    assert (each.pieces, each.passes) == (8, 4)
