"""How much room has every node of a joined cluster, and which node is each rank pinned to? Runs on Ray's thread."""

from __future__ import annotations

import time
from typing import Any

from orchestrator.cluster.nodes import as_node
from orchestrator.errors import NotAbleError
from orchestrator.log import get_logger
from orchestrator.plan.layout import Layout
from orchestrator.plan.plan import Resources
from orchestrator.plan.seating import Room, seat_ranks

NODE_LABEL = "ray.io/node-id"
_log = get_logger("cluster")


def wait_for_seats(layout: Layout, need: Resources, wait_s: float) -> tuple[str, ...]:
    """Return the node of every rank as soon as there is room that keeps tensor groups whole; () leaves it to Ray.

    One node alone, or a cluster reached through Ray's client, which does not say what is free where, is left to Ray.
    Raises NotAbleError at the deadline, with what every node has room for.
    """
    deadline = time.monotonic() + wait_s
    while True:
        rooms = read_rooms(need)
        if len(rooms) < 2:
            return ()
        seats = seat_ranks(layout, rooms)
        if seats is not None:
            return seats
        if time.monotonic() > deadline:
            raise no_room(layout, rooms, wait_s)
        time.sleep(min(0.5, wait_s))


def read_rooms(need: Resources) -> list[Room]:
    """Return the room of every live node that could take a rank; [] when the cluster does not say."""
    import ray
    from ray._private import state

    try:
        free: dict[str, dict[str, float]] = state.available_resources_per_node()
    except Exception as error:  # an inner part of Ray, which its client does not have: then Ray places alone
        _log.info("the cluster does not say what is free on which node: %s", error)
        return []
    rooms = [
        Room(node["NodeID"], num_ranks(free.get(node["NodeID"], {}), need), num_ranks(node["Resources"], need))
        for node in ray.nodes()
        if node["Alive"]
    ]
    return [room for room in rooms if room.total > 0]


def num_ranks(resources: dict[str, float], need: Resources) -> int:
    """Return how many ranks fit into these resources; a rank's share of a GPU is of one GPU."""
    return as_node("", resources).holds(need)


def selectors(nodes: tuple[str, ...]) -> list[dict[str, str]] | None:
    """Return Ray's label selector of every worker; None when nothing is pinned."""
    return [{NODE_LABEL: node} for node in nodes] or None


def no_room(layout: Layout, rooms: list[Room], wait_s: float) -> NotAbleError:
    """Return the error that says what was asked and what there is."""
    whole = f" in whole tensor groups of {layout.tensor}" if layout.tensor > 1 else ""
    there = ", ".join(f"{room.node[:8]} {room.free} of {room.total}" for room in rooms)
    return NotAbleError(
        f"the cluster's nodes had no room for {layout.world_size} ranks{whole} within {wait_s:g} s; "
        f"ranks that fit: {there}",
        hint="wait for other jobs, lower parallel.tensor, or add nodes",
    )


def as_scaling(need: Resources, nodes: tuple[str, ...]) -> dict[str, Any]:
    """Return the arguments of Ray's ScalingConfig."""
    each = {"CPU": need.cpus_per_worker} | ({"GPU": need.gpus_per_worker} if need.gpus_per_worker else {})
    return {
        "num_workers": need.num_workers,
        "use_gpu": need.gpus_per_worker > 0,
        "resources_per_worker": each,
        "label_selector": selectors(nodes),
    }
