"""Initial weights depend on (seed, parameter name) and on nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.errors import PlanError
from orchestrator.parallel.initialise import build_module, fill, seed_of
from orchestrator.parallel.process import Rank
from orchestrator.spec.job import JobSpec
from orchestrator.testing.ranks import run_ranks
from orchestrator.train.engine import build_engine


def weights(rank: int, world_size: int, job: dict[str, Any]) -> dict[str, torch.Tensor]:
    engine = build_engine(JobSpec.model_validate(job), Rank(rank, world_size, rank))
    state = engine.model.module.state_dict()
    return {name: (t.full_tensor() if hasattr(t, "full_tensor") else t).clone() for name, t in state.items()}


def job(seed: int = 0, shard: int = 1, hidden: tuple[int, ...] = (8,)) -> dict[str, Any]:
    return {
        "model": {"use": "mlp", "inputs": 64, "hidden": list(hidden), "outputs": 10},
        "data": {"use": "digits", "flat": True},
        "train": {"steps": 1, "seed": seed, "batch_size": 8},
        "parallel": {"replicate": 1, "shard": shard},
    }


def test_shards_hold_the_weights_that_one_process_has() -> None:
    one, two = run_ranks(weights, 1, job())[0], run_ranks(weights, 2, job(shard=2))[1]
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


def test_another_seed_gives_other_weights() -> None:
    one, two = weights(0, 1, job(seed=0)), weights(0, 1, job(seed=1))
    name = next(name for name in one if name.endswith("weight"))
    assert not torch.equal(one[name], two[name])


def test_a_layer_keeps_its_weights_when_layers_come_behind_it() -> None:
    short, long = weights(0, 1, job(hidden=(8,))), weights(0, 1, job(hidden=(8, 8)))
    shared = [n for n in short if n in long and short[n].shape == long[n].shape and n.endswith("weight")]
    assert shared
    assert all(torch.equal(short[name], long[name]) for name in shared)


def test_a_seed_differs_in_every_part() -> None:
    assert len({seed_of(0, "a"), seed_of(1, "a"), seed_of(0, "b"), seed_of(0, "a", 0)}) == 4
    assert 0 <= seed_of("x") < 2**63


def test_a_plain_module_is_built_the_same_everywhere_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_module(lambda: nn.Linear(3, 3), 7, on_meta=False)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    second = build_module(lambda: nn.Linear(3, 3), 7, on_meta=False)
    assert torch.equal(first.weight, second.weight)


def test_a_layer_whose_buffers_nobody_fills_is_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(3))

    module = build_module(lambda: nn.Sequential(Odd()), 0, on_meta=True)
    with pytest.raises(PlanError, match=r"layer '0' \(Odd\) has buffers"):
        fill(module, lambda name, tensor, generator: None, 0, torch.device("cpu"))


def test_running_statistics_are_reset() -> None:
    module = build_module(lambda: nn.Sequential(nn.BatchNorm1d(3)), 0, on_meta=True)
    fill(module, lambda name, tensor, generator: None, 0, torch.device("cpu"))
    assert torch.equal(module[0].running_mean, torch.zeros(3))
    assert torch.equal(module[0].running_var, torch.ones(3))
