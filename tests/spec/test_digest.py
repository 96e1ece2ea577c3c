"""Two jobs decide the same result when model, data, optimiser and training agree, wherever they run."""

from __future__ import annotations

from typing import Any

from orchestrator.spec.digest import differing_keys, job_digest
from orchestrator.spec.job import JobSpec


def job(**sections: Any) -> JobSpec:
    base: dict[str, Any] = {"model": {"use": "mlp", "inputs": 4, "outputs": 2}, "data": {"use": "digits"}}
    return JobSpec.model_validate({**base, **sections})


def test_where_and_how_it_runs_is_left_out() -> None:
    elsewhere = job(parallel={"shard": 2}, cluster={"storage": "/elsewhere"}, track={"experiment": "x"}, name="other")
    assert job_digest(job()) == job_digest(elsewhere)
    assert differing_keys(job(), elsewhere) == []


def test_memory_savers_do_not_change_the_result() -> None:
    assert job_digest(job(train={"epochs": 1})) == job_digest(job(train={"epochs": 1, "activation_checkpoint": "full"}))


def test_what_decides_is_named_with_both_values() -> None:
    one, other = job(), job(train={"epochs": 3, "seed": 7}, optim={"use": "sgd", "lr": 0.5})
    assert job_digest(one) != job_digest(other)
    found = {key: (was, now) for key, was, now in differing_keys(one, other)}
    assert found["train.epochs"] == (1.0, 3.0)
    assert found["train.seed"] == (0, 7)
    assert found["optim.use"] == ("adamw", "sgd")
    assert found["optim.lr"] == (None, 0.5)
