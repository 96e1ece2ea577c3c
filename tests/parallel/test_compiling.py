"""`train.compile` goes block by block: it changes nothing but rounding, and its cost does not follow the depth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from orchestrator.errors import PlanError
from orchestrator.parallel.compiling import apply_compile
from orchestrator.parallel.process import Rank
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.spec.job import JobSpec
from orchestrator.testing.ranks import run_ranks
from orchestrator.train.engine import build_engine
from orchestrator.train.step import Stepper
from tests.tiers import sample_of

MODELS: dict[str, dict[str, Any]] = {
    "resnet": {
        "model": {"use": "resnet", "channels": [8], "depths": [2], "norm": "sync_batch"},
        "data": {"use": "digits"},
    },
    "transformer": {
        "model": {"use": "transformer", "seq_len": 8, "dim": 16, "layers": 3, "heads": 4, "kv_heads": 2},
        "data": {"use": "text", "corpus": "python", "seq_len": 8, "max_bytes": 50_000},
    },
}


def job(model: str = "transformer", parallel: dict[str, int] | None = None, depth: int = 0, **train: Any) -> JobSpec:
    parts = MODELS[model]
    deeper = {"layers": depth} if depth else {}
    return JobSpec.model_validate(
        {
            "model": {**parts["model"], **deeper},
            "data": parts["data"],
            "optim": {"use": "adamw", "lr": 0.01, "clip_norm": 0.5},
            "train": {"steps": 9, "batch_size": 8, "precision": "fp64", "compile": True, **train},
            "parallel": {"replicate": 1, **(parallel or {})},
            "cluster": {"gpus_per_worker": 0},
        }
    )


def trained(rank: int, world_size: int, spec: dict[str, Any]) -> dict[str, Any]:
    """Train two steps; return weights and buffers, and how many graphs were compiled."""
    from torch._dynamo.utils import counters

    engine = build_engine(JobSpec.model_validate(spec), Rank(rank, world_size, rank))
    stepper = Stepper(engine)
    for step in range(2):
        stepper.step(step)
    state = engine.model.module.state_dict().items()
    whole = {name: (value.full_tensor() if isinstance(value, DTensor) else value).clone() for name, value in state}
    return {"state": whole, "graphs": counters["stats"]["unique_graphs"]}


def after_training(spec: JobSpec) -> dict[str, Any]:
    world_size = build_plan(spec, Available.unknown()).layout.world_size
    found: dict[str, Any] = run_ranks(trained, world_size, spec.model_dump(mode="json"), timeout_s=280.0)[0]
    return found


CASES = [
    ("resnet", {"replicate": 2}, "none"),
    ("resnet", {"shard": 2}, "full"),
    ("transformer", {"replicate": 2}, "full"),
    ("transformer", {"shard": 2}, "none"),
    ("transformer", {"tensor": 2}, "every_n"),
    ("transformer", {"pipeline": 2}, "none"),
]


@pytest.mark.parametrize(("model", "parallel", "mode"), sample_of(CASES, 2, seed=1))
def test_compiled_blocks_compute_the_same(model: str, parallel: dict[str, int], mode: str) -> None:
    want = after_training(job(model, parallel, compile=False))
    got = after_training(job(model, parallel, activation_checkpoint=mode))
    assert want["graphs"] == 0
    assert got["graphs"] > 0
    for name, value in want["state"].items():
        difference = float((got["state"][name] - value).double().norm())
        assert difference <= 1e-9 * max(float(value.double().norm()), 1e-3), name


@pytest.mark.slow
def test_a_deeper_model_compiles_no_more() -> None:
    shallow, deep = (after_training(job(depth=depth))["graphs"] for depth in (2, 10))
    assert shallow == deep


def test_blocks_of_one_kind_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []

    def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        compiled.append(len(inputs))
        return graph.forward

    torch._dynamo.reset()
    right = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward: right(forward, backend=counting))
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(12)))
    x = torch.randn(2, 4, requires_grad=True)  # as what comes out of a block before it
    want = model(x)
    assert apply_compile(model, [*map(str, range(12)), "elsewhere"]) == [*map(str, range(12))]
    torch.testing.assert_close(model(x), want)
    assert len(compiled) == 1


def test_a_model_without_blocks_is_compiled_whole() -> None:
    model = nn.Linear(2, 2)
    assert apply_compile(model, []) == []
    assert model._compiled_call_impl is not None


def test_what_would_not_do_what_it_says_is_refused() -> None:
    with pytest.raises(PlanError) as caught:
        build_plan(job(activation_checkpoint="selective"), Available.unknown())
    (problem,) = caught.value.problems
    assert problem.path == "train.activation_checkpoint"
    assert "fuses" in problem.message
