"""What is free on every node of a cluster, down to shares of a GPU, and which node each rank of a gang sits on. Pure.

A sum over the cluster says too much: two nodes with three CPUs each have no room for three workers of two, and three
GPUs none for four workers of three quarters, since a worker's share is of one GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor

from orchestrator.plan.layout import Layout
from orchestrator.plan.plan import Resources
from orchestrator.plan.seating import Room, crossing_axes, keeps_tensor_whole, seat_ranks

_EPS = 1e-6
_MANY = 1 << 20


@dataclass(frozen=True)
class Seat:
    """What one rank takes: CPUs of a node, and of which of its GPUs what share."""

    node: str
    cpus: float
    gpus: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Node:
    """A node's CPUs, and of each of its GPUs the share, that nobody holds."""

    name: str
    cpus: float
    gpus: tuple[float, ...] = ()

    def holds(self, need: Resources) -> int:
        """Return how many workers find room here."""
        found = _MANY
        if need.cpus_per_worker > 0:
            found = floor((self.cpus + _EPS) / need.cpus_per_worker)
        share = need.gpus_per_worker
        if 0 < share < 1:
            found = min(found, sum(floor((free + _EPS) / share) for free in self.gpus))
        elif share >= 1:
            found = min(found, floor(sum(free > 1 - _EPS for free in self.gpus) / share))
        return max(0, found)

    def seat(self, need: Resources) -> Seat:
        """Return what a worker would take: a share of the fullest GPU that has it (as Ray does), or whole GPUs.

        Raises ValueError when there is no room.
        """
        if self.holds(need) < 1:
            raise ValueError(f"node {self.name} has no room")
        share = need.gpus_per_worker
        if 0 < share < 1:
            _, at = min((free, at) for at, free in enumerate(self.gpus) if free + _EPS >= share)
            return Seat(self.name, need.cpus_per_worker, ((at, share),))
        whole = [at for at, free in enumerate(self.gpus) if free > 1 - _EPS][: round(share)]
        return Seat(self.name, need.cpus_per_worker, tuple((at, 1.0) for at in whole))

    def without(self, seat: Seat) -> Node:
        """Return the node with a seat taken."""
        taken = dict(seat.gpus)
        gpus = tuple(free - taken.get(at, 0.0) for at, free in enumerate(self.gpus))
        return replace(self, cpus=self.cpus - seat.cpus, gpus=gpus)


def as_node(name: str, resources: Mapping[str, float]) -> Node:
    """Return an empty node from what Ray says of it."""
    gpus = float(resources.get("GPU", 0.0))
    whole = int(gpus)
    return Node(name, float(resources.get("CPU", 0.0)), (1.0,) * whole + ((gpus - whole,) if gpus > whole else ()))


def less(nodes: Sequence[Node], seats: Sequence[Seat]) -> list[Node]:
    """Return the nodes with seats taken; seats of nodes that are gone count for nothing."""
    found = {node.name: node for node in nodes}
    for seat in seats:
        if seat.node in found:
            found[seat.node] = found[seat.node].without(seat)
    return list(found.values())


def find_seats(
    empty: Sequence[Node], free: Sequence[Node], need: Resources, layout: Layout | None = None
) -> tuple[Seat, ...] | None:
    """Return a seat for every rank of a gang on what is `free`; None when there is no room now.

    On one node if one has room for all: the fullest such, so that large gaps stay. Else as `seat_ranks` places a job.
    """
    layout = layout or Layout(replicate=need.num_workers)
    rooms = [Room(node.name, node.holds(need), _of(empty, node.name).holds(need)) for node in free]
    whole = [room for room in rooms if room.free >= need.num_workers]
    if whole:
        names: tuple[str, ...] | None = (min(whole, key=lambda room: (room.free, room.node)).node,) * need.num_workers
    else:
        names = seat_ranks(layout, rooms)
    if names is None:
        return None
    found, left = list[Seat](), {node.name: node for node in free}
    for name in names:
        found.append(left[name].seat(need))
        left[name] = left[name].without(found[-1])
    return tuple(found)


def suits(empty: Sequence[Node], seats: Sequence[Seat], need: Resources, layout: Layout | None) -> bool:
    """Say whether a gang that sits there may train in this layout: no tensor group is cut that need not be."""
    if layout is None or layout.tensor == 1:
        return True
    rooms = [Room(node.name, node.holds(need), node.holds(need)) for node in empty]
    cut = "tensor" in crossing_axes(layout, [seat.node for seat in seats])
    return not cut or not keeps_tensor_whole(layout, rooms)


def gangs_that_fit(empty: Sequence[Node], need: Resources, layout: Layout | None = None, most: int = _MANY) -> int:
    """Return how many gangs of one size the nodes have room for at a time."""
    free, count = list(empty), 0
    while count < most:
        seats = find_seats(empty, free, need, layout)
        if seats is None:
            break
        free, count = less(free, seats), count + 1
    return count


def _of(nodes: Sequence[Node], name: str) -> Node:
    return next(node for node in nodes if node.name == name)
