"""Callback plug-ins that break a run on purpose, named in the jobs of these tests."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from orchestrator.train.callbacks import Callback, Moment


class Fault(Callback):
    """Does `what` after `step` on `rank` (-1: all ranks); with `marker`, only the first time."""

    def __init__(self, what: str, step: int, rank: int = 0, marker: str = "") -> None:
        self._what = what
        self._step = step
        self._rank = rank
        self._marker = Path(f"{marker}-{os.environ.get('RANK', '0')}") if marker else None

    def on_step_end(self, moment: Moment, step: int) -> None:
        """Break."""
        if step != self._step or self._rank not in (-1, moment.rank):
            return
        if self._marker is not None:
            if self._marker.exists():
                return
            self._marker.touch()
        match self._what:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "freeze":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "sleep":
                time.sleep(600)
            case "raise":
                raise RuntimeError("broken on purpose")
            case "memory":
                raise MemoryError("cannot allocate")


class Slow(Callback):
    """Makes every step take at least `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def on_step_end(self, moment: Moment, step: int) -> None:
        """Wait."""
        time.sleep(self._seconds)
