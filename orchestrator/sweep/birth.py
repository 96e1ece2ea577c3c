"""`Birth`: which member of which generation of a population a trial is, and from whose checkpoint it began."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Birth:
    """Generations and members are counted from 0. `parent` is the number of a trial; None in the first generation.

    The trial is trained from step `begins`, its parent's last, to step `until`.
    """

    generation: int
    member: int
    begins: int
    until: int
    parent: int | None = None
