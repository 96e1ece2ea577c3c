"""The rank map of an attempt: every rank says where it runs, the driver draws the map, tells it and keeps it.

Workers write a seat each before they join; `SeatPlan` on the driver reads them, and the first step waits for it.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.cluster.events import Event
from orchestrator.errors import ClusterError
from orchestrator.plan.plan import Plan
from orchestrator.plan.seating import crossing_axes
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import write_json


@dataclass(frozen=True)
class Seat:
    """Where a rank runs. `node` is the id that tells nodes apart, `address` what people call it."""

    rank: int
    local_rank: int
    node: str
    address: str
    host: str


def own_seat(rank: int, local_rank: int, *, node: str = "", address: str = "") -> Seat:
    """Return the seat of this process; without Ray the machine is the node."""
    host = socket.gethostname()
    return Seat(rank, local_rank, node or host, address or host, host)


def require_node(seat: Seat, wanted: str) -> None:
    """Raise ClusterError when the rank was meant for another node; "" means any."""
    if wanted and seat.node != wanted:
        raise ClusterError(
            f"rank {seat.rank} was placed on node {seat.node} ({seat.address}), it belongs on node {wanted}",
            hint="a tensor group would cross nodes; the next attempt places all ranks anew",
        )


def seat_path(run: RunDir, attempt: int, rank: int) -> Path:
    """Return where a rank says where it runs."""
    return run.seats / f"a{attempt}-rank{rank}.json"


def write_seat(run: RunDir, attempt: int, seat: Seat) -> None:
    """Leave the seat for the driver."""
    run.seats.mkdir(parents=True, exist_ok=True)
    write_json(seat_path(run, attempt, seat.rank), asdict(seat))


def read_seats(run: RunDir, attempt: int, world_size: int) -> list[Seat] | None:
    """Return the seats of all ranks in order; None as long as one is missing."""
    found: list[Seat] = []
    for rank in range(world_size):
        try:
            found.append(Seat(**json.loads(seat_path(run, attempt, rank).read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            return None
    return found


class SeatPlan:
    """Tells the rank map of each attempt once, as soon as all ranks have said where they are."""

    def __init__(
        self, run: RunDir, plan: Plan, on_event: Callable[[Event], None], keep: Callable[[Path], None]
    ) -> None:
        """`keep` is given the folder that holds the map, whenever it was written anew."""
        self._run, self._plan, self._on_event, self._keep = run, plan, on_event, keep
        self._attempt = 0
        self.told = False

    def begin(self, attempt: int) -> None:
        """A new attempt begins: its ranks may sit elsewhere."""
        self._attempt, self.told = attempt, False

    def poll(self) -> None:
        """Look whether all seats are taken; then write and tell the map, once an attempt."""
        if self.told or not self._attempt:
            return
        seats = read_seats(self._run, self._attempt, self._plan.layout.world_size)
        if seats is None:
            return
        self.told = True
        folder = self._run.artifacts / "layout"
        folder.mkdir(parents=True, exist_ok=True)
        rows = map_rows(self._plan, seats)
        write_json(folder / "rank_map.json", {"layout": self._plan.layout.describe(), "ranks": rows})
        (folder / "rank_map.txt").write_text("\n".join(map_lines(rows)) + "\n", encoding="utf-8")
        self._keep(folder)
        self._on_event(Event("ranks", summary(self._plan, seats), {"ranks": rows, "lines": map_lines(rows)}))
        warning = warn_of_crossing(self._plan, seats)
        if warning:
            self._on_event(Event("note", warning))


def map_rows(plan: Plan, seats: Sequence[Seat]) -> list[dict[str, Any]]:
    """Return a row per rank: node, address, device, and its coordinates on every axis."""
    return [
        {
            "rank": seat.rank,
            "node": seat.node,
            "address": seat.address,
            "host": seat.host,
            "device": f"cuda:{seat.local_rank}" if plan.resources.device == "cuda" else "cpu",
            "coordinates": plan.layout.coordinates(seat.rank),
        }
        for seat in seats
    ]


def map_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line per rank for people; axes of degree 1 are left out."""
    used = {axis for row in rows for axis, index in row["coordinates"].items() if index}
    lines = []
    for row in rows:
        at = ", ".join(f"{axis} {index}" for axis, index in row["coordinates"].items() if axis in used)
        node = row["node"][:8] if row["node"] != row["address"] else ""
        lines.append(f"rank {row['rank']}  {' '.join(filter(None, [row['address'], node]))}  {row['device']}  {at}")
    return [line.rstrip() for line in lines]


def summary(plan: Plan, seats: Sequence[Seat]) -> str:
    """Return the map in one line: the ranks of each node, and which axes cross nodes."""
    nodes: dict[str, list[Seat]] = {}
    for seat in seats:
        nodes.setdefault(seat.node, []).append(seat)
    names = {node: _name(mine[0], nodes.values()) for node, mine in nodes.items()}
    parts = [f"{names[node]}: {_span([seat.rank for seat in mine])}" for node, mine in nodes.items()]
    crossing = crossing_axes(plan.layout, [seat.node for seat in seats])
    words = f"; across nodes: {', '.join(crossing)}" if crossing else ""
    shown = parts if len(parts) <= 4 else [*parts[:3], f"... {len(parts) - 3} more nodes"]
    return f"{'; '.join(shown)}{words}"


def warn_of_crossing(plan: Plan, seats: Sequence[Seat]) -> str:
    """Return what to say when a tensor group had to be laid across nodes; "" when none was."""
    if "tensor" not in crossing_axes(plan.layout, [seat.node for seat in seats]):
        return ""
    return (
        f"no {plan.layout.tensor} ranks of a tensor group fit on one node: every layer's exchange goes over the "
        "network. Lower parallel.tensor to what a node holds, or use larger nodes"
    )


def _name(seat: Seat, groups: Any) -> str:
    """Return the address, with the node's id where several nodes share one (a test cluster on one machine)."""
    shared = sum(mine[0].address == seat.address for mine in groups) > 1
    return f"{seat.address} {seat.node[:8]}" if shared else seat.address


def _span(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    whole = list(ranks) == list(range(ranks[0], ranks[-1] + 1))
    return f"ranks {ranks[0]}-{ranks[-1]}" if whole else f"ranks {', '.join(map(str, ranks))}"
