"""A sign of life while the sender works on one long record, so that whoever waits for it does not give up too early."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.runs.paths import RunDir

LONGEST_S = 180.0


def busy_path(run: RunDir) -> Path:
    """Return the file whose modification time is the sign of life."""
    return run.spool / "sender.busy"


@contextmanager
def busy(run: RunDir, every_s: float = 1.0, *, counts: bool = True) -> Iterator[None]:
    """Touch the file every second inside the block, for three minutes at most (a hung call is no progress).

    Not `counts`: an attempt after one that failed. Trying in vain is no sign of life, so the file is left alone.
    """
    if not counts:
        yield
        return
    done = threading.Event()

    def beat() -> None:
        end = time.monotonic() + LONGEST_S
        while not done.wait(every_s) and time.monotonic() < end:
            busy_path(run).touch()

    thread = threading.Thread(target=beat, name="busy", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def progress_mark(run: RunDir) -> tuple[int, ...]:
    """Return a value that changes whenever the sender gets on; what it announces may be that it does not."""
    paths = (busy_path(run), run.spool / "cursor.json")
    return tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in paths)
