"""`train.float8`: which layers are replaced, and what is refused and why. With torchao there, it trains (emulated)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.errors import PlanError, Problem
from orchestrator.parallel.float8 import apply_float8, float8_layers
from orchestrator.parallel.process import Rank
from orchestrator.plan import float8
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.spec.job import JobSpec
from orchestrator.train.build import build_plain_model
from orchestrator.train.engine import build_engine
from orchestrator.train.step import Stepper
from orchestrator.verify.run import verify_job

CPU = Available(8, 0, 1 << 33)
HOPPER = Available(8, 2, 1 << 33, capability=(9, 0))
AMPERE = Available(8, 2, 1 << 33, capability=(8, 0))
with_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is optional and not installed")


def job(how: str, model: str = "transformer", precision: str = "bf16", gpus: float = 0, **parallel: int) -> JobSpec:
    sizes = {"seq_len": 8, "dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 40}
    return JobSpec.model_validate(
        {
            "model": {"use": model, **sizes},
            "data": {"use": "text", "corpus": "python", "seq_len": 8, "max_bytes": 50_000},
            "train": {"steps": 5, "batch_size": 8, "precision": precision, "float8": how},
            "parallel": {"replicate": 1, **parallel},
            "cluster": {"gpus_per_worker": gpus},
        }
    )


def problems(spec: JobSpec, available: Available) -> list[Problem]:
    try:
        build_plan(spec, available)
    except PlanError as error:
        return list(error.problems)
    return []


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float8, "find_spec", lambda name: object())


def test_linear_layers_inside_blocks_whose_sizes_divide_by_16_are_chosen() -> None:
    model = build_plain_model(job("none"), on_meta=True)
    blocks = ["layers.embedding", "layers.block1", "layers.block2", "layers.norm", "layers.head"]
    chosen = float8_layers(model, blocks, ["layers.head"])
    # The feed-forward's 40 does not divide; the head and the embedding are no insides of blocks.
    parts = ("query", "key", "value", "out")
    attention = {name for name, child in model.named_modules() if "attention." in name and type(child) is nn.Linear}
    assert set(chosen) == attention
    assert len(chosen) == 2 * len(parts)
    assert float8_layers(model, blocks, ["layers.block1"]) == [name for name in chosen if "block2" in name]
    assert float8_layers(model, ["layers.block"], []) == []  # a name, not the beginning of one


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("spec", "available", "path", "words"),
    [
        (job("native"), CPU, "train.float8", "CPUs"),
        (job("native", gpus=1), AMPERE, "train.float8", "compute capability 8.0"),
        (job("emulated", precision="fp32"), CPU, "train.precision", "bf16"),
        (job("emulated", tensor=2), CPU, "train.float8", "tensor ranks"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(
    spec: JobSpec, available: Available, path: str, words: str
) -> None:
    (problem,) = problems(spec, available)
    assert problem.path == path
    assert words in problem.message
    assert problem.hint


@pytest.mark.usefixtures("installed")
def test_what_can_work_is_planned() -> None:
    assert problems(job("native", gpus=1), HOPPER) == []
    assert problems(job("emulated"), CPU) == []


def test_without_torchao_the_plan_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float8, "find_spec", lambda name: None)
    (problem,) = problems(job("emulated"), CPU)
    assert problem.hint == "pip install 'orchestrator[float8]'"


def test_a_worker_without_the_hardware_refuses_too() -> None:
    with pytest.raises(PlanError, match="native on cpu"):
        apply_float8(nn.Linear(16, 16), [""], [], torch.device("cpu"), emulated=False)


def test_a_model_without_such_layers_is_refused() -> None:
    model = nn.ModuleDict({"block": nn.Sequential(nn.Linear(10, 10))})
    with pytest.raises(PlanError, match="no linear layer"):
        apply_float8(model, ["block"], [], torch.device("cpu"), emulated=True)


@with_torchao
def test_emulated_products_train_and_keep_the_names_of_weights() -> None:
    losses: dict[str, Any] = {}
    for how in ("none", "emulated"):
        engine = build_engine(job(how), Rank())
        losses[how] = [Stepper(engine).step(step).loss_share for step in range(3)]
        names = [name for name, _ in engine.model.module.named_parameters()]
        assert names == [name for name, _ in build_plain_model(job("none"), on_meta=True).named_parameters()]
    assert losses["emulated"] != losses["none"]
    assert losses["emulated"] == pytest.approx(losses["none"], rel=0.02)


@with_torchao
def test_verify_emulates_states_its_tolerance_and_proves_the_rest_in_float64() -> None:
    report = verify_job(job("native", shard=2), num_steps=1)
    assert report.agrees
    allowed = {found.precision: {w.group: w.tolerance for w in found.groups} for found in report.comparisons}
    assert set(allowed["fp64"].values()) == {1e-9}
    assert allowed["bf16"]["gradients"] == 1.0
    assert any("not shown on hardware" in note for note in report.notes)
