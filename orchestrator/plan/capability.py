"""From which NVIDIA GPUs on does hardware multiply in fewer bits, or fewer weights? No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Needed(NamedTuple):
    """A CUDA compute capability, what begins with it, and the first GPUs that have it."""

    capability: tuple[int, int]
    what: str
    first: str


NEEDED: Mapping[str, Needed] = {
    "float8": Needed((8, 9), "products in float8", "Ada, Hopper"),
    "2:4": Needed((8, 0), "products that skip two of every four weights", "Ampere"),
}


def too_old(name: str, capability: tuple[int, int]) -> str:
    """Say why a GPU of this compute capability will not do; empty when it will."""
    needed = NEEDED[name]
    if capability >= needed.capability:
        return ""
    have, need = (".".join(map(str, each)) for each in (capability, needed.capability))
    return f"this GPU has compute capability {have}; {needed.what} begin at {need} ({needed.first})"
