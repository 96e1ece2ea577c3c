"""`build_plan` says what will run, or every reason why it cannot, each with what would fit."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import PlanError
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan, resolved_job
from orchestrator.plan.plan import Plan
from orchestrator.spec.job import JobSpec

LAPTOP = Available(num_cpus=2, num_gpus=0, memory_bytes=8 << 30)
GPU_BOX = Available(num_cpus=32, num_gpus=4, memory_bytes=256 << 30)


def job(**sections: Any) -> JobSpec:
    base: dict[str, Any] = {
        "model": {"use": "cnn", "channels": [8, 16]},
        "data": {"use": "digits"},
        "train": {"epochs": 2, "batch_size": 64},
    }
    return JobSpec.model_validate({**base, **sections})


def plan(available: Available = LAPTOP, **sections: Any) -> Plan:
    return build_plan(job(**sections), available)


def refused(available: Available = LAPTOP, **sections: Any) -> dict[str, str]:
    with pytest.raises(PlanError) as caught:
        plan(available, **sections)
    return {problem.path: f"{problem.message} | {problem.hint}" for problem in caught.value.problems}


def test_one_process_needs_no_ray() -> None:
    found = plan()
    assert not found.uses_ray
    assert found.layout.world_size == 1
    assert found.resources.device == "cpu"
    assert found.resources.backend == "gloo"


def test_two_workers_share_the_batch_and_use_ray() -> None:
    found = plan(parallel={"replicate": 2})
    assert found.uses_ray
    assert (found.batch.num_data_ranks, found.batch.microbatch) == (2, 32)


def test_an_address_means_ray_even_for_one_process() -> None:
    assert plan(cluster={"address": "auto"}).uses_ray


def test_all_local_gpus_are_used_by_default() -> None:
    found = plan(GPU_BOX)
    assert found.layout.replicate == 4
    assert found.resources.gpus_per_worker == 1.0
    assert found.resources.backend == "nccl"
    assert plan(GPU_BOX, parallel={"shard": 2}).layout.replicate == 2


def test_gpus_are_left_alone_when_asked() -> None:
    found = plan(GPU_BOX, cluster={"gpus_per_worker": 0})
    assert found.layout.world_size == 1
    assert found.resources.device == "cpu"


def test_epochs_become_steps_over_the_training_split() -> None:
    found = plan()
    samples = found.data.num_samples["train"]
    assert found.batch.total_steps == -(-2 * samples // 64)
    assert found.batch.epoch_after(found.batch.total_steps) >= 2


def test_every_epoch_ends_in_exactly_one_step() -> None:
    batch = plan(train={"epochs": 5, "batch_size": 64}).batch
    ends = [step for step in range(1, batch.total_steps + 1) if batch.ends_epoch(step)]
    assert len(ends) == 5


def test_memory_is_predicted_per_rank_and_shrinks_with_sharding() -> None:
    whole, half = plan().memory, plan(parallel={"shard": 2}).memory
    assert whole is not None
    assert half is not None
    assert whole.weights_bytes == 4 * (plan().num_params or 0)
    assert whole.optimizer_bytes == 2 * whole.weights_bytes
    assert half.total_bytes * 2 == pytest.approx(whole.total_bytes, abs=8)


def test_too_many_workers_are_refused_with_what_fits() -> None:
    problems = refused(parallel={"replicate": 8})
    assert "8 CPUs, this machine has 2" in problems["parallel"]
    assert "fits: 2 ranks" in problems["parallel"]
    assert "cluster.cpus_per_worker=0.25" in problems["parallel"]


def test_a_batch_that_does_not_divide_is_refused_with_its_neighbours() -> None:
    problems = refused(train={"epochs": 1, "batch_size": 30, "accumulate": 4})
    assert "set train.batch_size=28 or 32" in problems["train.batch_size"]


def test_gpus_that_are_not_there_are_refused() -> None:
    assert "has 0" in refused(cluster={"gpus_per_worker": 1})["cluster.gpus_per_worker"]


def test_a_batch_larger_than_the_data_is_refused() -> None:
    assert "samples of the training split" in refused(train={"epochs": 1, "batch_size": 4096})["train.batch_size"]


def test_mismatches_of_model_and_data_are_all_reported_at_once() -> None:
    problems = refused(
        model={"use": "mlp", "inputs": 32, "hidden": [8], "outputs": 3},
        train={"epochs": 1, "batch_size": 63, "monitor": {"metric": "val/f1"}},
        parallel={"replicate": 2},
    )
    assert set(problems) == {"train.batch_size", "model", "train.monitor.metric"}


def test_a_loss_that_does_not_fit_the_targets_is_refused() -> None:
    problems = refused(train={"epochs": 1, "loss": {"use": "mse"}})
    assert "set train.loss={use: cross_entropy}" in problems["train.loss"]


def test_stopping_early_without_a_validation_split_is_refused() -> None:
    train = {"epochs": 1, "batch_size": 64, "monitor": {"patience": 3}}
    problems = refused(data={"use": "digits", "val_fraction": 0.0}, train=train)
    assert "data.val_fraction" in problems["train.monitor.patience"]
    assert plan(train=train).batch.total_steps > 0


@pytest.mark.parametrize(
    ("parallel", "unused"),
    [
        ({"schedule": "gpipe", "microbatches": 4, "cuts": ["head"]}, ["schedule", "microbatches", "cuts"]),
        ({"schedule": "1f1b", "stages_per_rank": 2}, ["schedule", "stages_per_rank"]),
        ({"sequence": True}, ["sequence"]),
        ({"pipeline": 2, "schedule": "gpipe", "microbatches": 4}, []),
        ({"tensor": 2, "sequence": False}, []),
        ({}, []),
    ],
)
def test_a_key_that_does_nothing_in_this_layout_is_said_so(parallel: dict[str, Any], unused: list[str]) -> None:
    found = [note.split()[0] for note in plan(parallel=parallel).notes if "has no effect" in note]
    assert found == [f"parallel.{key}" for key in unused]


def test_a_job_read_back_whole_is_not_full_of_such_notes() -> None:
    spec = JobSpec.model_validate(job(parallel={"schedule": "gpipe"}).model_dump(mode="json"))
    assert build_plan(spec, LAPTOP).notes == ("parallel.schedule has no effect: parallel.pipeline is 1",)


def test_adafactor_is_refused_for_sharded_weights() -> None:
    assert "parallel.shard=1" in refused(parallel={"shard": 2}, optim={"use": "adafactor"})["optim.use"]


def test_compiling_stages_needs_declared_blocks() -> None:
    model = {"use": "tests.plan.undeclared"}
    found = refused(
        GPU_BOX, model=model, train={"steps": 1, "batch_size": 64, "compile": True}, parallel={"pipeline": 2}
    )
    assert "shard_units" in found["train.compile"]


def test_workers_read_a_job_without_auto() -> None:
    spec = job()
    resolved = resolved_job(spec, build_plan(spec, GPU_BOX))
    assert resolved.parallel.replicate == 4
    assert resolved.cluster.gpus_per_worker == 1.0
    assert resolved.cluster.backend == "nccl"


def test_a_users_class_is_left_to_the_worker_and_the_plan_says_so() -> None:
    spec = job(
        model={"use": "tests.export.nets:Plain"}, data={"use": "my_data:Load"}, train={"steps": 5, "batch_size": 8}
    )
    notes = build_plan(spec, LAPTOP).notes
    assert any("checked in the worker" in note for note in notes)
    assert any("counted in the worker" in note for note in notes)
