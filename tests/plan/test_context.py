"""The plan says how attention brings pieces of sequences together, or what would fit."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import PlanError
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan, resolved_job
from orchestrator.plan.describe import describe
from orchestrator.plan.plan import Plan
from orchestrator.spec.job import JobSpec


def job(model: dict[str, Any] | None = None, **parallel: Any) -> JobSpec:
    sizes = {"use": "transformer", "seq_len": 24, "dim": 16, "layers": 2, "heads": 4, "kv_heads": 2, "vocab": 256}
    return JobSpec.model_validate(
        {
            "model": model or sizes,
            "data": {"use": "text", "corpus": "python", "seq_len": 24, "max_bytes": 50_000},
            "train": {"steps": 1, "batch_size": 8},
            "parallel": {"replicate": 1, **parallel},
        }
    )


def plan(**parallel: Any) -> Plan:
    return build_plan(job(**parallel), Available.unknown())


def refused(**parallel: Any) -> list[tuple[str, str, str]]:
    with pytest.raises(PlanError) as caught:
        plan(**parallel)
    return [(problem.path, problem.message, problem.hint) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("parallel", "way"),
    [
        ({}, None),
        ({"context": 2}, "heads"),
        ({"context": 2, "context_attention": "ring"}, "ring"),
        ({"context": 3}, "ring"),
        ({"context": 4}, "ring"),  # divides the heads, not the kv heads
        ({"context": 2, "tensor": 2}, "ring"),  # one kv head is left for two ranks
        ({"context_attention": "ring"}, None),
    ],
    ids=str,
)
def test_auto_takes_heads_where_they_divide_and_the_ring_elsewhere(parallel: dict[str, Any], way: str | None) -> None:
    assert plan(**parallel).context_attention == way


def test_the_plan_says_which_one_in_words_and_workers_read_it() -> None:
    spec = job(context=3)
    found = build_plan(spec, Available.unknown())
    assert dict(describe(spec, found))["attention"].startswith("ring: keys and values go round 3 ranks")
    assert resolved_job(spec, found).parallel.context_attention == "ring"
    assert "attention" not in dict(describe(job(), plan()))
    assert resolved_job(job(), plan()).parallel.context_attention == "auto"


def test_heads_that_do_not_divide_are_refused_with_what_fits() -> None:
    assert refused(context=4, context_attention="heads") == [
        (
            "parallel.context",
            "4 does not divide the model's kv_heads = 2, which context_attention heads needs",
            "set parallel.context_attention=ring; or fits: 1, 2",
        )
    ]


def test_heads_beside_tensor_say_what_is_left() -> None:
    ((path, message, hint),) = refused(context=2, tensor=2, context_attention="heads")
    assert path == "parallel.context"
    assert message.startswith("2 x tensor 2 = 4 does not divide the model's kv_heads = 2")
    assert hint == "set parallel.context_attention=ring; or fits: 1"


def test_the_sequence_must_divide_either_way() -> None:
    ((path, message, hint),) = refused(context=5)
    assert (path, message) == ("parallel.context", "5 does not divide the model's sequence length = 24")
    assert hint == "fits: 1, 2, 3, 4, 6, 8, 12, 24; or change the model"


def test_the_ring_asks_no_more_of_tensor_than_tensor_does() -> None:
    assert plan(context=12, tensor=2).context_attention == "ring"
    ((_, message, _),) = refused(context=24, tensor=2)  # each piece is cut once more, for sequence parallelism
    assert message == "48 does not divide the model's sequence length = 24"
    assert plan(context=24, tensor=2, sequence=False).context_attention == "ring"


def test_a_model_without_attention_over_sequences_is_refused() -> None:
    spec = job({"use": "rnn", "seq_len": 24, "dim": 16, "hidden": 16}, context=2, context_attention="ring")
    with pytest.raises(PlanError) as caught:
        build_plan(spec, Available.unknown())
    assert [problem.path for problem in caught.value.problems] == ["parallel.context"]


def test_the_key_without_the_axis_is_said_to_do_nothing() -> None:
    assert plan(context_attention="ring").notes == ("parallel.context_attention has no effect: parallel.context is 1",)
