"""Splits: each sample in one of them, every class divided by itself, the same everywhere; and the digest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.split import digest, require_fractions, split_counts, split_indices


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    val=st.floats(0, 0.45),
    test=st.floats(0, 0.45),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_every_sample_is_in_one_split_and_the_counts_were_foretold(
    labels: list[int], val: float, test: float, seed: int
) -> None:
    groups = np.array(labels, dtype=np.int64)
    rows = split_indices(groups, val, test, seed)
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(len(labels)))
    counts = [count for count in np.bincount(groups).tolist() if count]
    assert {name: len(part) for name, part in rows.items()} == split_counts(counts, val, test)


def test_every_class_has_its_share_in_every_split() -> None:
    groups = np.repeat(np.arange(3), [100, 50, 10])
    rows = split_indices(groups, 0.1, 0.2, 0)
    assert np.bincount(groups[rows["train"]]).tolist() == [70, 35, 7]
    assert np.bincount(groups[rows["val"]]).tolist() == [10, 5, 1]
    assert np.bincount(groups[rows["test"]]).tolist() == [20, 10, 2]


def test_the_split_seed_changes_who_is_where_not_how_many() -> None:
    groups = np.zeros(40, np.int64)
    once, other = split_indices(groups, 0.1, 0.2, 0), split_indices(groups, 0.1, 0.2, 1)
    assert once["test"].tolist() != other["test"].tolist()
    assert len(once["test"]) == len(other["test"]) == 8


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.2), (0.1, 1.0), (0.6, 0.4)])
def test_fractions_must_leave_something_to_train_on(val: float, test: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        require_fractions(val, test)


def test_the_digest_sees_values_types_and_shapes() -> None:
    base = np.arange(6, dtype=np.float32)
    others = [base.reshape(2, 3), base.astype(np.float64), base[::-1], base + 1]
    assert len({digest([array]) for array in (base, *others)}) == 5
    assert digest([base]) == digest([base.astype(">f4").astype("<f4")]) != digest([base, base])
    assert len(digest([base])) == 16
