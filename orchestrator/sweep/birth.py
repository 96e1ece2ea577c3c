"""`Birth`: which member of which generation of a population a trial is, and from whose checkpoint it began."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Birth:
    """Generations and members are counted from 0. `parent` is the number of a trial; None in the first generation.

    The trial is trained from step `begins`, its parent's last, to step `until` (both 0: it was never to be trained,
    since its values are infeasible).
    """

    generation: int
    member: int
    begins: int = 0
    until: int = 0
    parent: int | None = None
