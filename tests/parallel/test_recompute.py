"""Activation checkpointing saves memory and changes no bit, dropout and a router's counts included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.errors import PlanError
from orchestrator.parallel.apply import under_all_names
from orchestrator.parallel.process import Rank
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.spec.job import JobSpec
from orchestrator.train.engine import build_engine
from orchestrator.train.step import Stepper

MODELS: dict[str, dict[str, Any]] = {
    "transformer": {"use": "transformer", "dropout": 0.2},
    "moe": {"use": "moe", "experts": 4, "top_k": 1, "z_loss": 0.01},
}


def job(model: str, mode: str, **more: Any) -> JobSpec:
    sizes = {"seq_len": 8, "dim": 16, "layers": 3, "heads": 4, "kv_heads": 2}
    return JobSpec.model_validate(
        {
            "model": {**sizes, **MODELS[model]},
            "data": {"use": "text", "corpus": "python", "seq_len": 8, "max_bytes": 50_000},
            "train": {"steps": 9, "batch_size": 8, "activation_checkpoint": mode, **more},
        }
    )


def after_three_steps(spec: JobSpec) -> dict[str, torch.Tensor]:
    engine = build_engine(spec, Rank())
    stepper = Stepper(engine)
    for step in range(3):
        stepper.step(step)
    return {name: value.clone() for name, value in engine.model.module.state_dict().items()}


@pytest.mark.parametrize("mode", ["full", "every_n", "selective"])
@pytest.mark.parametrize("model", list(MODELS))
def test_no_bit_changes(model: str, mode: str) -> None:
    want, got = after_three_steps(job(model, "none")), after_three_steps(job(model, mode))
    assert want.keys() == got.keys()
    for name, value in want.items():
        assert torch.equal(got[name], value), name


def test_fewer_activations_are_kept() -> None:
    def kept_bytes(mode: str) -> int:
        engine = build_engine(job("transformer", mode), Rank())
        seen: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        inputs, targets = Stepper(engine).microbatches(0)[0]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            engine.loss.sum(engine.model(inputs), targets)
        return sum(seen.values())

    none, full = kept_bytes("none"), kept_bytes("full")
    assert full < 0.6 * none


def test_a_model_without_blocks_is_refused() -> None:
    spec = JobSpec.model_validate(
        {
            "model": {"use": "neuron"},
            "data": {"use": "synthetic", "kind": "regression", "features": 6},
            "train": {"steps": 3, "batch_size": 8, "activation_checkpoint": "full"},
        }
    )
    with pytest.raises(PlanError) as caught:
        build_plan(spec, Available(2, 0, 1 << 30))
    assert [problem.path for problem in caught.value.problems] == ["train.activation_checkpoint"]


def test_the_plan_accepts_a_model_with_blocks(tmp_path: Path) -> None:
    assert build_plan(job("transformer", "full"), Available(2, 0, 1 << 30)).num_params


def test_a_repeated_block_is_found_under_the_name_that_its_stage_knows() -> None:
    spec = JobSpec.model_validate(
        {
            **job("transformer", "full").model_dump(exclude_unset=True),
            "model": {
                "use": "transformer",
                "seq_len": 8,
                "dim": 16,
                "layers": 2,
                "heads": 4,
                "kv_heads": 2,
                "repeat": 2,
            },
        }
    )
    module = build_engine(spec, Rank()).model.module
    wanted = ["layers.block1", "layers.block3", "layers.norm"]
    assert under_all_names(module, ["layers.block1", "layers.norm"]) == wanted
