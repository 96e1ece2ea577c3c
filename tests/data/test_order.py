"""The sample order: one permutation per epoch, end to end, whatever the layout."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.order import SampleOrder, eval_slices, permutation, random_words, slice_for
from orchestrator.errors import PlanError

sizes = st.integers(1, 60)
PINNED_EPOCH = [1, 0, 5, 3, 6, 2, 4, 7]
PINNED_WORDS = [12475781772967150755, 13403603084696991220]
PINNED_PERMUTATION = [4, 1, 3, 2, 0]


@given(num_samples=sizes, batch_size=st.integers(1, 150), seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_every_epoch_uses_every_sample_once(num_samples: int, batch_size: int, seed: int) -> None:
    order = SampleOrder(num_samples, batch_size, seed)
    num_steps = -(-3 * num_samples // batch_size)
    batches = [order.indices(step) for step in range(num_steps)]
    assert all(len(batch) == batch_size for batch in batches)
    stream = np.concatenate(batches)
    for epoch in range(3):
        used = stream[epoch * num_samples : (epoch + 1) * num_samples]
        assert sorted(used.tolist()) == list(range(num_samples))
        assert used.tolist() == order.epoch(epoch).tolist()


def test_a_step_can_be_asked_in_any_order_and_again() -> None:
    forward = [SampleOrder(100, 32, 5).indices(step).tolist() for step in range(12)]
    order = SampleOrder(100, 32, 5)
    for step in (11, 0, 7, 7, 3, 11):
        assert order.indices(step).tolist() == forward[step]


def test_seed_and_epoch_change_the_order() -> None:
    orders = [SampleOrder(50, 10, seed).epoch(epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_the_order_is_pinned_for_all_versions_and_machines() -> None:
    assert SampleOrder(8, 4, 0).epoch(0).tolist() == PINNED_EPOCH
    assert random_words(2, "pin").tolist() == PINNED_WORDS
    assert permutation(5, "order", 1, 2).tolist() == PINNED_PERMUTATION


@given(ranks=st.integers(1, 6), accumulate=st.integers(1, 4), micro=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_ranks_share_a_batch_and_its_runs_do_not_depend_on_their_number(
    ranks: int, accumulate: int, micro: int
) -> None:
    batch = np.arange(1000, 1000 + ranks * accumulate * micro, dtype=np.int64)
    alone = slice_for(batch, 0, 1, accumulate)
    parts = [slice_for(batch, rank, ranks, accumulate) for rank in range(ranks)]
    for run in range(accumulate):
        assert np.concatenate([part[run] for part in parts]).tolist() == alone[run].tolist()
    assert np.concatenate(alone).tolist() == batch.tolist()


def test_a_batch_that_does_not_divide_is_refused_with_the_number_to_use() -> None:
    with pytest.raises(PlanError, match="batch of 30 does not divide over 4 data ranks x 2") as caught:
        slice_for(np.arange(30), 0, 4, 2)
    assert "multiple of 8" in caught.value.hint
    with pytest.raises(PlanError, match="evaluation batch of 5"):
        eval_slices(10, 5, 0, 2)
    with pytest.raises(PlanError, match="0 samples"):
        SampleOrder(0, 1, 0)


@given(num_samples=st.integers(0, 80), ranks=st.integers(1, 5), part=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_evaluation_counts_every_sample_once_in_equal_batches(num_samples: int, ranks: int, part: int) -> None:
    slices = [eval_slices(num_samples, ranks * part, rank, ranks) for rank in range(ranks)]
    assert len({len(found) for found in slices}) == 1
    assert all(len(item.indices) == part for found in slices for item in found)
    assert all((item.indices >= 0).all() and (item.indices < num_samples).all() for found in slices for item in found)
    valid = [index for found in slices for item in found for index in item.indices[: item.num_valid].tolist()]
    assert sorted(valid) == list(range(num_samples))
