"""Sharded weights: kept or put away between the passes, gathered whole or in bf16; and what is refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from orchestrator.errors import PlanError
from orchestrator.parallel.process import Rank
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.spec.job import JobSpec
from orchestrator.testing.ranks import run_ranks
from orchestrator.train.engine import build_engine
from orchestrator.train.evaluate import evaluate
from orchestrator.train.step import Stepper
from orchestrator.verify.run import verify_job
from tests.train.parity import difference, trace

TEXT = {"use": "text", "corpus": "python", "seq_len": 8, "max_bytes": 50_000}
MODELS: dict[str, dict[str, Any]] = {
    "transformer": {
        "model": {"use": "transformer", "seq_len": 8, "dim": 16, "layers": 2, "heads": 4, "kv_heads": 2},
        "data": TEXT,
    },
    "resnet": {"model": {"use": "resnet", "channels": [8, 8]}, "data": {"use": "digits"}},
    "moe": {"model": {"use": "moe", "seq_len": 8, "dim": 16, "layers": 2, "heads": 4, "experts": 4}, "data": TEXT},
}


def job(model: str = "transformer", precision: str = "fp64", accumulate: int = 1, **parallel: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            **MODELS[model],
            "optim": {"use": "sgd", "lr": 0.1, "clip_norm": 0.5},
            "train": {"steps": 10, "batch_size": 16, "precision": precision, "accumulate": accumulate},
            "parallel": {"replicate": 1, **parallel},
            "cluster": {"gpus_per_worker": 0},
        }
    )


def traced(spec: JobSpec, ranks: int, steps: int = 2) -> dict[str, Any]:
    found: dict[str, Any] = run_ranks(trace, ranks, spec.model_dump(mode="json"), steps)[0]
    return found


@cache
def reference() -> dict[str, Any]:
    return traced(job(), 1)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("reshard", [True, False])
def test_keeping_weights_or_putting_them_away_changes_nothing(reshard: bool, accumulate: int) -> None:
    got, want = traced(job(shard=2, reshard_after_forward=reshard, accumulate=accumulate), 2), reference()
    assert got["loss"] == pytest.approx(want["loss"], rel=1e-9)
    for group in ("gradients", "weights"):
        for name, tensor in want[group].items():
            assert difference(got[group][name], tensor) <= 1e-9, f"{group} of {name}"


def whole_after_forward(rank: int, world_size: int, data: dict[str, Any]) -> list[int]:
    """Return how many parameters are whole after a forward pass of training, and how many after an evaluation."""
    engine = build_engine(JobSpec.model_validate(data), Rank(rank, world_size, rank))
    stepper = Stepper(engine)

    def num_whole() -> int:
        return sum(not isinstance(parameter, DTensor) for parameter in engine.model.module.parameters())

    inputs, targets = stepper.microbatches(0)[0]
    total = engine.loss.sum(engine.model(inputs), targets)
    between = num_whole()
    total.backward()  # type: ignore[no-untyped-call]
    evaluate(engine, "val")
    return [between, num_whole()]


def test_what_is_kept_between_the_passes_is_what_was_asked_for() -> None:
    kept = {
        reshard: run_ranks(whole_after_forward, 2, job(shard=2, reshard_after_forward=reshard).model_dump(mode="json"))
        for reshard in (True, False)
    }
    total = len(reference()["weights"])
    assert kept == {True: [[0, 0]] * 2, False: [[total, 0]] * 2}


def test_a_pipeline_that_should_put_weights_away_is_refused_with_the_reason() -> None:
    (problem,) = problems(job(shard=2, pipeline=2, reshard_after_forward=True))
    assert problem.path == "parallel.reshard_after_forward"
    assert "until their last backward pass" in problem.message
    assert build_plan(job(shard=2, pipeline=2, reshard_after_forward=False), Available.unknown()).stages


def test_without_shards_putting_away_is_said_to_do_nothing() -> None:
    notes = build_plan(job(reshard_after_forward=True), Available.unknown()).notes
    assert notes == ("parallel.reshard_after_forward has no effect: parallel.shard is 1",)


def seen_dtypes(rank: int, world_size: int, data: dict[str, Any]) -> dict[str, list[str]]:
    """Return the dtypes of weights inside forward passes, of kept weights, of gradients and of the output."""
    engine = build_engine(JobSpec.model_validate(data), Rank(rank, world_size, rank))
    inside: set[str] = set()

    def look(module: nn.Module, given: Any) -> None:
        inside.update(str(parameter.dtype) for parameter in module.parameters(recurse=False))

    for child in engine.model.module.modules():
        child.register_forward_pre_hook(look)
    inputs, targets = Stepper(engine).microbatches(0)[0]
    output = engine.model(inputs)
    engine.loss.sum(output, targets).backward()  # type: ignore[no-untyped-call]
    kept = list(engine.model.module.parameters())
    return {
        "inside": sorted(inside),
        "kept": sorted({str(parameter.dtype) for parameter in kept}),
        "gradients": sorted({str(parameter.grad.dtype) for parameter in kept if parameter.grad is not None}),
        "output": [str(output.dtype)],
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_are_gathered_in_bf16_and_kept_in_fp32(precision: str) -> None:
    spec = job(precision=precision, shard=2, shard_precision="bf16")
    (found, _) = run_ranks(seen_dtypes, 2, spec.model_dump(mode="json"))
    whole = [str(torch.float32)]
    assert found == {"inside": [str(torch.bfloat16)], "kept": whole, "gradients": whole, "output": whole}


def test_batch_norm_keeps_its_precision() -> None:
    spec = job("resnet", "fp32", shard=2, shard_precision="bf16")
    (found, _) = run_ranks(seen_dtypes, 2, spec.model_dump(mode="json"))
    assert found["inside"] == [str(torch.bfloat16), str(torch.float32)]


@pytest.mark.parametrize("layout", [{"shard": 4}, {"shard": 2, "replicate": 2}, {"shard": 2, "tensor": 2}])
def test_layouts_that_gather_in_bf16_agree_with_one_another(layout: dict[str, int]) -> None:
    want = traced(job(precision="fp32", shard=2, shard_precision="bf16"), 2)
    got = traced(job(precision="fp32", shard_precision="bf16", **layout), 4)
    assert got["loss"] == pytest.approx(want["loss"], rel=1e-3)
    assert got["norm"] == pytest.approx(want["norm"], rel=2e-2)
    for name, tensor in want["weights"].items():
        assert difference(got["weights"][name], tensor) <= 2e-2, name


def test_verify_knows_how_far_bf16_gathering_may_go_and_says_so() -> None:
    report = verify_job(job(precision="fp32", shard=2, shard_precision="bf16"), num_steps=2)
    assert report.agrees, [comparison.first for comparison in report.comparisons]
    allowed = {c.precision: {worst.group: worst.tolerance for worst in c.groups} for c in report.comparisons}
    assert set(allowed["fp64"].values()) == {1e-9}
    assert allowed["fp32"]["loss"] == 2e-2
    assert any("shard_precision=bf16 rounds gathered weights" in note for note in report.notes)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (job(precision="fp32", shard_precision="bf16"), "parallel.shard is 1"),
        (job(precision="fp64", shard=2, shard_precision="bf16"), "train.precision=fp64"),
        (job("moe", "fp32", shard=2, expert=2, shard_precision="bf16"), "experts that are spread"),
    ],
)
def test_what_makes_no_sense_in_bf16_is_refused(spec: JobSpec, words: str) -> None:
    (problem,) = problems(spec)
    assert problem.path == "parallel.shard_precision"
    assert words in problem.message
    assert problem.hint


def test_all_of_it_is_refused_at_once() -> None:
    spec = job(precision="fp64", pipeline=2, shard_precision="bf16", reshard_after_forward=True)
    found = [problem.path for problem in problems(spec)]
    assert found == ["parallel.reshard_after_forward", "parallel.shard_precision", "parallel.shard_precision"]


def problems(spec: JobSpec) -> tuple[Any, ...]:
    with pytest.raises(PlanError) as caught:
        build_plan(spec, Available.unknown())
    return caught.value.problems
