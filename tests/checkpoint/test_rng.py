"""Random-number states go on exactly at equal size, and are derived from (seed, step, rank) otherwise."""

from __future__ import annotations

import random
from pathlib import Path

import numpy
import pytest
import torch

from orchestrator.checkpoint import rng
from orchestrator.errors import CheckpointError
from tests.checkpoint.states import save_steps

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def _draw() -> list[float]:
    """Numbers from every generator, Gaussian ones first: Python and NumPy keep half a pair back."""
    drawn = [random.gauss(0, 1), float(numpy.random.normal()), float(torch.randn(()))]
    return [*drawn, random.random(), float(numpy.random.random()), float(torch.rand(()))]


def test_every_generator_goes_on_where_it_was_even_in_the_middle_of_a_gaussian_pair() -> None:
    _draw()
    states = rng.capture()
    expected = [_draw() for _ in range(3)]
    rng.reseed(1, 2, 3)
    rng.restore(states)
    assert [_draw() for _ in range(3)] == expected


def test_a_checkpoint_restores_them_at_equal_size(tmp_path: Path) -> None:
    (ref,) = save_steps(tmp_path / "c", 1)
    expected = None
    for _ in range(2):
        assert rng.restore_from(ref, rank=0, world_size=1, seed=0)
        drawn = _draw()
        assert expected is None or drawn == expected
        expected = drawn


def test_at_another_size_each_rank_and_step_has_its_own_stream(tmp_path: Path) -> None:
    first, second = save_steps(tmp_path / "c", 1, 2)
    seen = []
    for ref in (first, second):
        for rank in range(3):
            for seed in (0, 1):
                assert not rng.restore_from(ref, rank=rank, world_size=3, seed=seed)
                seen.append(tuple(_draw()))
    assert len(set(seen)) == 12
    rng.restore_from(first, rank=0, world_size=3, seed=0)
    assert tuple(_draw()) == seen[0]


@pytest.mark.parametrize("key", ["torch", "python", "python_gauss", "numpy"])
def test_impossible_states_are_an_error(key: str) -> None:
    before = rng.capture()
    with pytest.raises(CheckpointError, match="cannot be restored"):
        rng.restore(before | {key: torch.zeros(3, 3)})
    rng.restore(before)
