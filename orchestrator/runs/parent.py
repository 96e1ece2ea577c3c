"""Ties a process to the one that started it, so that a rank is never left behind. Called first thing in ranks."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys

from orchestrator.environment import take_parent

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel (Linux) to kill this process when its parent dies, so that no rank is left behind.

    A parent that died before that is not seen by the kernel, so whoever started this process says who it is
    (`environment.child_environment`; `multiprocessing` knows by itself), and it is looked whether that one is there.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if _is_orphan():
            os.kill(os.getpid(), signal.SIGKILL)


def _is_orphan() -> bool:
    expected, spawner = take_parent(), multiprocessing.parent_process()
    if spawner is not None and not spawner.is_alive():
        return True
    return expected is not None and os.getppid() != expected
