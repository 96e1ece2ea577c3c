"""What a step sends, counted by torch's profiler: no more than the axis needs, and accumulation adds no sum."""

from __future__ import annotations

from typing import Any

import pytest
from torch.profiler import ProfilerActivity, profile

from orchestrator.parallel.process import Rank
from orchestrator.spec.job import JobSpec
from orchestrator.testing.ranks import run_ranks
from orchestrator.train.engine import build_engine
from orchestrator.train.step import Stepper

LAYERS = 2
MODEL = {"use": "transformer", "seq_len": 8, "dim": 16, "layers": LAYERS, "heads": 4, "kv_heads": 2, "vocab": 256}
SUM, GATHER, SCATTER, SEND = "allreduce_", "_allgather_base_", "_reduce_scatter_base_", "send"
OWN_GATHER = "allgather_"  # gloo's, which takes longer than messages from rank to rank


def count(rank: int, world_size: int, job: dict[str, Any]) -> dict[str, int]:
    """Return how often a step after the first two calls each collective."""
    stepper = Stepper(build_engine(JobSpec.model_validate(job), Rank(rank, world_size, rank)))
    for step in range(2):
        stepper.step(step)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        stepper.step(2)
    calls = {event.key: event.count for event in seen.key_averages() if event.key.startswith("c10d::")}
    return {name.removeprefix("c10d::"): number for name, number in calls.items()}


def traffic(accumulate: int = 1, **parallel: Any) -> dict[str, int]:
    job = {
        "model": MODEL,
        "data": {"use": "text", "corpus": "python", "seq_len": 8, "max_bytes": 50_000},
        "optim": {"use": "adamw", "lr": 0.003, "clip_norm": 1.0},
        "train": {"steps": 10, "batch_size": 16, "accumulate": accumulate},
        "parallel": {"replicate": 1, **parallel},
        "cluster": {"gpus_per_worker": 0},
    }
    found: dict[str, int] = run_ranks(count, 2, job)[0]
    return found


def test_replicas_sum_their_gradients_once_a_step_however_many_batches_are_accumulated() -> None:
    once = traffic(replicate=2)
    assert set(once) == {SUM}
    assert traffic(replicate=2, accumulate=4) == once


def test_shards_gather_for_each_batch_and_scatter_their_gradients_once() -> None:
    units = LAYERS + 3  # blocks, embedding, norm and head
    once, four = traffic(shard=2), traffic(shard=2, accumulate=4)
    assert once[SCATTER] == four[SCATTER] == units
    assert once[SUM] == four[SUM]
    assert once[GATHER] == 2 * units, "forward and backward"
    assert four[GATHER] == 4 * once[GATHER]


@pytest.mark.parametrize("sequence", [True, False])
def test_a_tensor_block_exchanges_four_times_a_pass_or_sums_twice(sequence: bool) -> None:
    found = traffic(tensor=2, sequence=sequence)
    if sequence:  # attention and feed-forward: gather and scatter, forward and back; so do embedding and head, once
        assert found[SEND] == 8 * LAYERS + 4
        assert not {GATHER, OWN_GATHER, SCATTER} & set(found)
    else:  # query, key and value share one sum of their input's gradient, gate and up another
        assert found[SUM] == 4 * LAYERS + 2 + 4, "the head's loss takes three sums, the gradients' norm one"
        assert SEND not in found
