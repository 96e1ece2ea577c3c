"""Cleans up after a driver that was killed: kills what is left of its Ray cluster and removes its folder.

A process of its own, standard library only, started by `session` with a pipe. Lines `pid start-ticks` name processes;
`done` says that the driver has cleaned up itself. When the pipe closes without it, the driver is gone.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from contextlib import suppress

_GRACE_S = 1.0


def start_ticks(pid: int) -> str:
    """Return when a process began, in the kernel's ticks since boot; "" when there is none (or no /proc)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def main(folder: str) -> None:
    """Read names until the pipe closes, then clean up unless that was done."""
    with suppress(ValueError):  # not on the main thread: only in tests
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    doomed: dict[int, str] = {}
    for line in sys.stdin:
        words = line.split()
        if words == ["done"]:
            return
        if len(words) == 2:
            doomed[int(words[0])] = words[1]
    time.sleep(_GRACE_S)  # most of Ray goes by itself
    for pid, began in doomed.items():
        if began and start_ticks(pid) == began:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
