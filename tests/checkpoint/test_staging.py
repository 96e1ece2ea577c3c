"""Snapshots and the check that nothing non-finite is saved."""

from __future__ import annotations

import pytest
import torch

from orchestrator.checkpoint.staging import Stage, find_non_finite, iterate_leaves
from tests.checkpoint.states import make_state


def test_buffers_are_filled_again_not_made_again() -> None:
    stage = Stage()
    first = stage.take(make_state(1), copy=True).tensors
    pointers = {path: tensor.data_ptr() for path, tensor in first.items()}
    second = stage.take(make_state(2), copy=True).tensors
    assert {path: tensor.data_ptr() for path, tensor in second.items()} == pointers


def test_a_tensor_that_changed_its_shape_gets_a_new_buffer() -> None:
    stage = Stage()
    stage.take({"model": {"w": torch.ones(2)}}, copy=True)
    assert torch.equal(stage.take({"model": {"w": torch.ones(3)}}, copy=True).tensors["model/w"], torch.ones(3))


def test_without_a_copy_the_live_tensors_are_written() -> None:
    tensor = torch.ones(2)
    assert Stage().take({"model": {"w": tensor}}, copy=False).tensors["model/w"].data_ptr() == tensor.data_ptr()


def test_leaves_have_paths_and_lists_of_plain_values_are_leaves() -> None:
    state = {"a": {"b": 1}, "c": [{"d": (1, 2)}, {"d": [3]}], "e": []}
    assert {leaf.path: leaf.value for leaf in iterate_leaves(state)} == {
        "a/b": 1,
        "c/0/d": (1, 2),
        "c/1/d": [3],
        "e": [],
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_number_among_many_is_found_by_name(dtype: torch.dtype, bad: float) -> None:
    tensors = {"good": torch.ones(100, dtype=torch.float64), "bad": torch.ones(1000, dtype=dtype)}
    assert find_non_finite(tensors) is None
    tensors["bad"][617] = bad
    assert find_non_finite(tensors) == "bad"


def test_infinities_that_cancel_are_found() -> None:
    assert find_non_finite({"w": torch.tensor([float("inf"), -float("inf")])}) == "w"


def test_a_sum_that_overflows_is_no_alarm_and_other_types_are_left_alone() -> None:
    huge = torch.full((10,), torch.finfo(torch.float32).max)
    assert not huge.sum().isfinite()
    assert find_non_finite({"huge": huge, "count": torch.ones(3, dtype=torch.int64), "none": torch.zeros(0)}) is None
    assert find_non_finite({}) is None
