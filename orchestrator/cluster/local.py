"""An attempt of one process without Ray: a child that dies with the driver and whose end is told like any rank's."""

from __future__ import annotations

import signal
import subprocess
import sys

from orchestrator.cluster.attempt import Ended, Order
from orchestrator.cluster.failure import OOM_ADVICE, Failure, kernel_oom_kills
from orchestrator.environment import child_environment


class LocalAttempt:
    """One supervised child process, in a session of its own so that Ctrl-C in the terminal does not reach it."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._process: subprocess.Popen[bytes] | None = None
        self._oom_kills = 0

    def start(self) -> None:
        """Start the child. Called on the main thread: the kernel ties the child's life to the thread that made it."""
        order = self._order
        self._oom_kills = kernel_oom_kills()
        order.run.logs.mkdir(parents=True, exist_ok=True)
        words = [str(order.run.path), str(order.attempt), str(order.token), str(int(order.resume))]
        with open(order.run.logs / "rank-0.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.cluster.child", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=child_environment(),
            )

    def poll(self) -> Ended | None:
        """Return how the child ended, None while it runs."""
        if self._process is None:
            return None
        code = self._process.poll()
        if code is None:
            return None
        if code == 0:
            return Ended()
        return Ended(_how_it_died(code, kernel_oom_kills() > self._oom_kills))

    def kill(self) -> None:
        """End the child now."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _how_it_died(code: int, out_of_memory: bool) -> Failure:
    if code >= 0:
        return Failure("infra", "Exit", f"the process ended with code {code}", rank=0)
    name = signal.Signals(-code).name
    if code == -signal.SIGKILL and out_of_memory:
        message = "the process was killed by the kernel because memory ran out"
        return Failure("oom", "Killed", message, hint=OOM_ADVICE, rank=0)
    return Failure("infra", "Killed", f"the process was killed by {name}", rank=0)
