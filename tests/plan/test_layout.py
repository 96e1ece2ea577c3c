"""A layout maps ranks to coordinates and back to the slice of the batch."""

from __future__ import annotations

from math import prod

from orchestrator.plan.layout import AXES, Layout

WHOLE = Layout(pipeline=2, replicate=2, shard=3, tensor=2)


def test_the_axes_run_from_across_the_nodes_to_inside_one() -> None:
    assert AXES == ("pipeline", "replicate", "shard", "context", "tensor")
    assert WHOLE.degrees == (2, 2, 3, 1, 2)
    assert WHOLE.world_size == prod(WHOLE.degrees) == 24


def test_tensor_ranks_are_neighbours_and_pipeline_stages_are_farthest_apart() -> None:
    first, second = WHOLE.coordinates(0), WHOLE.coordinates(1)
    assert {axis for axis in AXES if first[axis] != second[axis]} == {"tensor"}
    assert tuple(WHOLE.coordinates(2).values()) == (0, 0, 1, 0, 0)
    assert tuple(WHOLE.coordinates(6).values()) == (0, 1, 0, 0, 0)
    assert tuple(WHOLE.coordinates(12).values()) == (1, 0, 0, 0, 0)
    assert [rank for rank in range(24) if WHOLE.coordinates(rank)["pipeline"] == 1] == list(range(12, 24))


def test_every_rank_has_coordinates_of_its_own() -> None:
    places = {tuple(WHOLE.coordinates(rank).values()) for rank in range(WHOLE.world_size)}
    assert len(places) == WHOLE.world_size


def test_ranks_that_differ_in_tensor_or_pipeline_only_take_the_same_slice_of_the_batch() -> None:
    assert WHOLE.num_data_ranks == 6
    holders: dict[int, list[int]] = {}
    for rank in range(WHOLE.world_size):
        holders.setdefault(WHOLE.data_rank(rank), []).append(rank)
    assert sorted(holders) == list(range(6))
    assert holders[0] == [0, 1, 12, 13]
    assert all(len(ranks) == WHOLE.pipeline * WHOLE.tensor for ranks in holders.values())


def test_context_ranks_share_samples_and_lie_between_shard_and_tensor() -> None:
    layout = Layout(shard=2, context=2, tensor=2)
    assert [layout.data_rank(rank) for rank in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [layout.coordinates(rank)["context"] for rank in range(8)] == [0, 0, 1, 1, 0, 0, 1, 1]


def test_experts_borrow_data_ranks_and_are_no_factor_of_the_world() -> None:
    layout = Layout(replicate=2, shard=2, expert=4)
    assert layout.world_size == 4
    assert "expert" not in layout.coordinates(3)
    assert sorted(layout.data_rank(rank) for rank in range(4)) == [0, 1, 2, 3]


def test_it_says_itself_in_words() -> None:
    assert Layout().describe() == "1 rank"
    assert Layout(replicate=2, shard=2).describe() == "4 ranks = replicate 2 x shard 2"
    assert Layout(replicate=2, expert=2, tensor=2).describe() == "4 ranks = replicate 2 x tensor 2, experts over 2"
