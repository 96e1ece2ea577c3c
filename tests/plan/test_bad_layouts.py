"""Every layout that cannot be: one PlanError before any worker starts, with all that is wrong and what would fit."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import PlanError
from orchestrator.parallel.process import Rank
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.spec.job import JobSpec
from orchestrator.train.engine import build_engine

ROOMY = Available(num_cpus=64, num_gpus=0, memory_bytes=256 << 30)
TEXT = {"use": "text", "corpus": "python", "seq_len": 12, "max_bytes": 50_000}
TRANSFORMER = {"use": "transformer", "seq_len": 12, "dim": 24, "layers": 2, "heads": 6, "kv_heads": 3, "hidden": 36}
MOE = {**TRANSFORMER, "use": "moe", "experts": 6}
CNN = {"use": "cnn", "channels": [12, 20], "norm": "group"}
NEURON = {"use": "neuron", "inputs": 6}
MLP = {"use": "mlp", "inputs": 64, "hidden": [16], "outputs": 10}
_DATA: dict[str, dict[str, Any]] = {
    "cnn": {"use": "digits"},
    "mlp": {"use": "digits", "flat": True},
    "neuron": {"use": "synthetic", "kind": "regression", "features": 6},
}


def refusals(
    model: dict[str, Any], parallel: dict[str, Any], batch_size: int = 48, **train: Any
) -> set[tuple[str, str]]:
    """Return (path, 'message | hint') of every problem."""
    data = _DATA.get(model["use"], TEXT)
    job = JobSpec.model_validate(
        {
            "model": model,
            "data": data,
            "train": {"steps": 4, "batch_size": batch_size, **train},
            "parallel": {"replicate": 1, **parallel},
            "cluster": {"gpus_per_worker": 0},
        }
    )
    with pytest.raises(PlanError) as caught:
        build_plan(job, ROOMY)
    assert "nothing was started" in caught.value.message
    return {(problem.path, f"{problem.message} | {problem.hint}") for problem in caught.value.problems}


# name: model, layout, what else the job says, {path: what the message and its advice hold}
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, str]]] = {
    "heads over tensor": (TRANSFORMER, {"tensor": 4}, {}, {"parallel.tensor": "heads = 6 | fits: 1, 2, 3, 6"}),
    "channels over tensor": (CNN, {"tensor": 8}, {}, {"parallel.tensor": "fits: 1, 2, 4"}),
    "a model without a tensor plan": (
        NEURON,
        {"tensor": 2},
        {},
        {"parallel.tensor": "set parallel.tensor=1"},
    ),
    "experts over expert ranks": (
        MOE,
        {"replicate": 4, "expert": 4},
        {},
        {"parallel.expert": "4 does not divide the 6 experts | fits: 1, 2, 3, 6"},
    ),
    "expert ranks over data ranks": (
        MOE,
        {"replicate": 4, "expert": 3},
        {},
        {"parallel.expert": "3 does not divide the 4 data ranks | fits: 1, 2, 4"},
    ),
    "experts where there are none": (TRANSFORMER, {"expert": 2, "replicate": 2}, {}, {"parallel.expert": "declare"}),
    "stages over layers": (
        TRANSFORMER,
        {"pipeline": 8, "microbatches": 8},
        {},
        {"parallel.pipeline": "8 stages, the model has 5 layers | fits: up to 5"},
    ),
    "two stages on a rank over layers": (
        TRANSFORMER,
        {"pipeline": 4, "schedule": "zbv_zero_bubble"},
        {},
        {"parallel.pipeline": "4 ranks x 2 stages = 8 stages, the model has 5 layers | fits: up to 2"},
    ),
    "a schedule of two stages with one": (
        TRANSFORMER,
        {"pipeline": 2, "schedule": "dualpipe_v", "stages_per_rank": 1},
        {},
        {"parallel.stages_per_rank": "gives every rank 2 stages | leave it out"},
    ),
    "a schedule of one stage with two": (
        TRANSFORMER,
        {"pipeline": 2, "schedule": "1f1b", "stages_per_rank": 2},
        {},
        {"parallel.stages_per_rank": "gives every rank 1 stage | leave it out, or choose interleaved_1f1b"},
    ),
    "microbatches that do not divide": (
        TRANSFORMER,
        {"pipeline": 2, "microbatches": 5},
        {},
        {"parallel.microbatches": "5 microbatches do not divide the 48 samples of a data rank | fits: 1, 2, 3, 4"},
    ),
    "microbatches that are no multiple of the stages": (
        TRANSFORMER,
        {"pipeline": 2, "schedule": "interleaved_1f1b", "microbatches": 3},
        {},
        {"parallel.microbatches": "set it to a multiple of 2"},
    ),
    "too few microbatches for two directions": (
        TRANSFORMER,
        {"pipeline": 2, "schedule": "dualpipe_v", "microbatches": 2},
        {},
        {"parallel.microbatches": "at least 4 microbatches, not 2 | set it to 4 or more"},
    ),
    "a cut that names no layer": (
        TRANSFORMER,
        {"pipeline": 2, "cuts": ["block9"]},
        {},
        {"parallel.cuts": "block9"},
    ),
    "as many cuts as stages": (
        TRANSFORMER,
        {"pipeline": 2, "cuts": ["block1", "block2"]},
        {},
        {"parallel.cuts": "makes 3 stages, 2 are needed | give 1 layers"},
    ),
    "accumulation beside microbatches": (
        TRANSFORMER,
        {"pipeline": 2},
        {"accumulate": 2},
        {"train.accumulate": "set train.accumulate=1 and raise parallel.microbatches"},
    ),
    "a sequence over context": (
        TRANSFORMER,
        {"context": 5, "context_attention": "ring"},
        {},
        {"parallel.context": "5 does not divide the model's sequence length = 12 | fits: 1, 2, 3, 4, 6, 12"},
    ),
    "a batch over data ranks": (
        MLP,
        {"replicate": 5},
        {},
        {"train.batch_size": "5"},
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_layout_that_cannot_be_is_refused_with_what_fits(name: str) -> None:
    model, parallel, train, expected = ROWS[name]
    found = refusals(model, parallel, **train)
    for path, says in expected.items():
        assert any(where == path and says in text for where, text in found), found
    assert {path for path, _ in found} == set(expected)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    wrong = {"tensor": 5, "expert": 4, "pipeline": 7, "microbatches": 5, "context": 7, "schedule": "dualpipe_v"}
    found = refusals(MOE, {**wrong, "stages_per_rank": 1}, batch_size=11, accumulate=3)
    assert {path for path, _ in found} == {
        "parallel",  # 245 ranks are more than the machine has
        "parallel.tensor",
        "parallel.expert",
        "parallel.pipeline",
        "parallel.context",
        "parallel.microbatches",
        "parallel.stages_per_rank",
        "train.accumulate",
        "train.batch_size",
    }
    named = " ".join(text for path, text in found if path == "parallel.tensor")
    assert all(what in named for what in ("heads = 6", "kv_heads = 3", "vocab = 256"))


def test_a_number_of_gpus_that_the_axes_do_not_divide_leaves_some_idle_and_says_so() -> None:
    job = JobSpec.model_validate(
        {"model": TRANSFORMER, "data": TEXT, "parallel": {"shard": 3}, "train": {"steps": 1, "batch_size": 48}}
    )
    plan = build_plan(job, Available(num_cpus=64, num_gpus=8, memory_bytes=256 << 30))
    assert plan.layout.replicate == 2
    assert plan.notes == ("2 of 8 GPUs stay idle: the axes take 3 at a time",)


@pytest.mark.parametrize(
    ("processes", "advice"),
    [(8, "start 2 processes, or set parallel.replicate=4"), (3, "start 2 processes, or a multiple of 2")],
)
def test_another_number_of_processes_than_the_layout_has_ranks(processes: int, advice: str) -> None:
    job = JobSpec.model_validate(
        {
            "model": TRANSFORMER,
            "data": TEXT,
            "parallel": {"replicate": 1, "shard": 2},
            "train": {"steps": 1, "batch_size": 48},
            "cluster": {"gpus_per_worker": 0},
        }
    )
    with pytest.raises(PlanError, match=f"but {processes} processes were started") as caught:
        build_engine(job, Rank(0, processes, 0))
    assert advice in caught.value.hint
