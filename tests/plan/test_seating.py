"""Ranks are sorted by node, tensor groups stay inside one as long as any node is large enough, the pipeline crosses."""

from __future__ import annotations

from itertools import groupby

import pytest

from orchestrator.plan.layout import Layout
from orchestrator.plan.seating import Room, crossing_axes, keeps_tensor_whole, seat_ranks


def rooms(*free: int, total: int | None = None) -> list[Room]:
    return [Room(f"n{number}", count, total or count) for number, count in enumerate(free)]


@pytest.mark.parametrize(
    ("layout", "free", "seats", "crossing"),
    [
        (Layout(pipeline=2, tensor=2), (2, 2), "n0 n0 n1 n1", ("pipeline",)),
        (Layout(pipeline=2, tensor=2), (3, 3), "n0 n0 n1 n1", ("pipeline",)),  # packed 3 + 1, a pair would be cut
        (Layout(pipeline=2, tensor=2), (1, 2, 3), "n1 n1 n2 n2", ("pipeline",)),
        (Layout(pipeline=2, tensor=2), (2, 4), "n1 n1 n1 n1", ()),  # all of it fits on one node
        (Layout(pipeline=2, shard=2, tensor=2), (6, 4), "n0 n0 n0 n0 n1 n1 n1 n1", ("pipeline",)),
        (Layout(pipeline=2, shard=2, tensor=2), (6, 2), "n0 n0 n0 n0 n0 n0 n1 n1", ("pipeline", "shard")),
        (Layout(replicate=2, context=2, tensor=2), (4, 2, 4), "n0 n0 n0 n0 n2 n2 n2 n2", ("replicate",)),
        (Layout(replicate=5), (2, 2, 2), "n0 n0 n1 n1 n2", ("replicate",)),
        (Layout(tensor=4), (2, 2), "n0 n0 n1 n1", ("tensor",)),  # no node will ever hold it
    ],
)
def test_the_largest_inner_group_that_fits_is_kept_on_a_node(
    layout: Layout, free: tuple[int, ...], seats: str, crossing: tuple[str, ...]
) -> None:
    found = seat_ranks(layout, rooms(*free))
    assert found is not None
    assert " ".join(found) == seats
    assert crossing_axes(layout, found) == crossing


@pytest.mark.parametrize(
    ("layout", "free", "total"),
    [
        (Layout(pipeline=2, tensor=2), (3, 1), 4),  # four are free, but a pair would be cut: wait for the other node
        (Layout(tensor=4), (3, 3), 4),
        (Layout(replicate=4), (2, 1), 2),
        (Layout(replicate=2), (), None),
    ],
)
def test_what_does_not_fit_now_but_will_is_waited_for(layout: Layout, free: tuple[int, ...], total: int | None) -> None:
    assert seat_ranks(layout, rooms(*free, total=total)) is None


def test_every_node_holds_one_run_of_ranks_whatever_the_layout_and_the_rooms() -> None:
    for layout in (Layout(pipeline=2, replicate=3, tensor=2), Layout(shard=4, context=3), Layout(replicate=12)):
        for free in ((12,), (5, 9, 4), (3, 3, 3, 3, 3), (2,) * 6, (1,) * 12, (4, 8)):
            found = seat_ranks(layout, rooms(*free))
            if found is None:
                continue
            runs = [node for node, _ in groupby(found)]
            assert len(runs) == len(set(runs))
            assert all(found.count(node) <= free[int(node[1:])] for node in runs)
            if keeps_tensor_whole(layout, rooms(*free)):
                assert "tensor" not in crossing_axes(layout, found)


def test_nothing_crosses_on_one_node() -> None:
    assert crossing_axes(Layout(pipeline=2, tensor=2), ["a"] * 4) == ()
