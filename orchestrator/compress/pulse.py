"""Signs of life of the ranks that train a compressed model, and who has given none for too long. Called by `ranks`.

One rank that is frozen holds up all others, which wait for it in a collective operation without an end.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SILENT = "no sign of"
_WRITE_S = 0.5
_USUAL = 10.0  # as for runs: ten times what was seen to be usual is too long


class Pulse:
    """A rank's: a file whose age says when it was last heard of, and whose text how long a step took at most.

    The text is empty before the first step and after the last: what is done there is no step's length.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._longest_s = 0.0
        self._last: float | None = None
        self._written = float("-inf")

    def beat(self, in_steps: bool) -> None:
        """Say that the rank has come further; a few microseconds, and twice a second a small file."""
        now = time.monotonic()
        changed = in_steps != (self._last is not None)
        if self._last is not None:
            self._longest_s = max(self._longest_s, now - self._last)
        self._last = now if in_steps else None
        if changed or now - self._written >= _WRITE_S:
            self._written = now
            self._path.write_text(f"{self._longest_s:.3f}\n" if in_steps else "", encoding="ascii")


@dataclass(frozen=True)
class Watch:
    """The other side: asked every second. `start_s`: how long a rank may give no sign before its first step and
    after its last, `step_s` between steps (or ten times as long as one ever took).
    """

    paths: Sequence[Path]
    began_s: float
    start_s: float
    step_s: float

    def __call__(self) -> str:
        """Return who has been silent for too long, in words; "" when nobody has."""
        now = time.time()
        silent = {rank: self._silent_s(path, now) for rank, path in enumerate(self.paths)}
        late = [rank for rank, (silent_s, most_s) in silent.items() if silent_s > most_s]
        if not late:
            return ""
        silent_s, most_s = silent[late[0]]
        who = f"rank{'s' if len(late) > 1 else ''} {', '.join(map(str, late))} of {len(self.paths)}"
        return (
            f"{SILENT} {who} for {silent_s:.0f} s, longer than the {most_s:.0f} s it may be: frozen, or held up by one"
        )

    def _silent_s(self, path: Path, now: float) -> tuple[float, float]:
        """Return how long a rank has been silent, and how long it may be."""
        try:
            at, said = path.stat().st_mtime, path.read_text(encoding="ascii")
        except FileNotFoundError:
            return now - self.began_s, self.start_s
        if not said:  # also where it is being written just now
            return now - at, self.start_s
        return now - at, max(self.step_s, _USUAL * float(said))
