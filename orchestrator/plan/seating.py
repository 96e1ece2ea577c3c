"""Which node does each rank run on? Decided from the layout and from how many ranks every node has room for. Pure.

Ranks that differ in the innermost axes exchange the most, so they stay inside a node: tensor first, then context, then
the data axes; the pipeline, whose neighbours exchange least, is the first to cross nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from orchestrator.plan.layout import AXES, Layout


@dataclass(frozen=True)
class Room:
    """How many ranks of a job a node could take now (`free`) and with nothing else running on it (`total`)."""

    node: str
    free: int
    total: int


def seat_ranks(layout: Layout, rooms: Sequence[Room]) -> tuple[str, ...] | None:
    """Return the node of every rank, ranks sorted by node; None when there is no room for that now.

    The largest inner group of the layout that fits is kept whole on a node. A tensor group is never cut as long as the
    cluster's nodes are large enough for it when they are empty: then it is waited for, and None is returned.
    """
    world = layout.world_size
    for unit in _inner_groups(layout):
        groups = [(room, room.free // unit) for room in rooms]
        if sum(count for _, count in groups) >= world // unit:
            return _fill(groups, unit, world)
        if unit == layout.tensor and keeps_tensor_whole(layout, rooms):
            return None
    return None


def keeps_tensor_whole(layout: Layout, rooms: Sequence[Room]) -> bool:
    """Say whether the nodes, empty, are large enough that no tensor group has to cross them."""
    return sum(room.total // layout.tensor for room in rooms) >= layout.world_size // layout.tensor


def crossing_axes(layout: Layout, nodes: Sequence[str]) -> tuple[str, ...]:
    """Return the axes along which neighbours lie on different nodes; `nodes` names the node of every rank."""
    found = set()
    for rank, node in enumerate(nodes):
        at = layout.coordinates(rank)
        for axis in AXES:
            first = rank - at[axis] * _stride(layout, axis)
            if nodes[first] != node:
                found.add(axis)
    return tuple(axis for axis in AXES if axis in found)


def _inner_groups(layout: Layout) -> list[int]:
    """Return the sizes of the groups of the innermost axes, largest (all ranks) first, down to 1."""
    degrees = layout.degrees
    return sorted({prod(degrees[first:]) for first in range(len(degrees) + 1)}, reverse=True)


def _fill(groups: Sequence[tuple[Room, int]], unit: int, world: int) -> tuple[str, ...]:
    seats: list[str] = []
    for room, count in sorted(groups, key=lambda each: (-each[1], each[0].node)):
        seats += [room.node] * min(count * unit, world - len(seats))
    return tuple(seats)


def _stride(layout: Layout, axis: str) -> int:
    return prod(layout.degrees[AXES.index(axis) + 1 :])
