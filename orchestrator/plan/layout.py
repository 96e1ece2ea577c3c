"""`Layout`: degrees of the parallel axes and the map between a rank and its coordinates.

world = pipeline x replicate x shard x context x tensor. Ranks are numbered row by row, the last axis fastest, so
neighbours share the innermost axis and, since workers are sorted by node, stay inside a node.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

AXES = ("pipeline", "replicate", "shard", "context", "tensor")  # outermost first


@dataclass(frozen=True)
class Layout:
    """Degrees of the axes; every degree is at least 1."""

    pipeline: int = 1
    replicate: int = 1
    shard: int = 1
    context: int = 1
    tensor: int = 1
    expert: int = 1
    """Data ranks over which a layer's experts are spread: borrowed from the data axes, no factor of the world."""

    @property
    def degrees(self) -> tuple[int, ...]:
        """Degrees in the order of `AXES`."""
        return tuple(getattr(self, axis) for axis in AXES)

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return prod(self.degrees)

    @property
    def num_data_ranks(self) -> int:
        """Ranks that each take their own slice of the batch."""
        return self.replicate * self.shard

    def coordinates(self, rank: int) -> dict[str, int]:
        """Return the position of `rank` on every axis."""
        found: dict[str, int] = {}
        for axis, degree in zip(reversed(AXES), reversed(self.degrees), strict=True):
            rank, found[axis] = divmod(rank, degree)
        return {axis: found[axis] for axis in AXES}

    def data_rank(self, rank: int) -> int:
        """Return which slice of the batch `rank` takes."""
        at = self.coordinates(rank)
        return at["replicate"] * self.shard + at["shard"]

    def describe(self) -> str:
        """Return the layout in words: `2 ranks = replicate 2`."""
        parts = [f"{axis} {degree}" for axis, degree in zip(AXES, self.degrees, strict=True) if degree > 1]
        borrowed = f", experts over {self.expert}" if self.expert > 1 else ""
        words = f"{self.world_size} rank{'s' if self.world_size > 1 else ''}"
        return words + (f" = {' x '.join(parts)}{borrowed}" if parts else "")
