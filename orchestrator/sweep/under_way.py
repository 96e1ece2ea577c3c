"""`UnderWay`: the trials of one start that are neither asked for nor over, by where they wait. Used by the loop."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from orchestrator.sweep.after import After
from orchestrator.sweep.shared import Shared
from orchestrator.sweep.trial_run import TrialRun


@dataclass
class UnderWay:
    """`queue` waits for room, `working` is with the pool by slot, `after` and `shared` hold what waits for others."""

    shared: Shared
    queue: deque[TrialRun] = field(default_factory=deque)
    after: After = field(default_factory=After)
    working: dict[int, TrialRun] = field(default_factory=dict)
    slot: int = 0

    def take_slot(self) -> int:
        """Return the number of the next piece of work that the pool is given."""
        self.slot += 1
        return self.slot

    def release(self, work: TrialRun) -> None:
        """Let those go on that waited for this one's training."""
        self.queue.extendleft(reversed(self.shared.release(work)))

    def drain(self) -> list[TrialRun]:
        """Take out and return everything; nothing is under way after that."""
        found = [*self.working.values(), *self.after.drain(), *self.queue, *self.shared.held]
        self.working.clear()
        self.queue.clear()
        self.shared.held = []
        return found
