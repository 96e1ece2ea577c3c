"""Is a sweep's budget of trials, time, worker time or money spent? Asked by the loop before each new point, and all the
while a supernet trains.
"""

from __future__ import annotations

import time

from orchestrator.spec.sweep import SweepSection
from orchestrator.sweep.ledger import Ledger


def budget_spent(sweep: SweepSection, ledger: Ledger, elapsed_s: float, supernet_s: float = 0.0) -> str:
    """Return which budget is spent, in words; "" when there is more. `supernet_s`: what no trial used."""
    trials = ledger.trials.values()
    if sweep.trials is not None and sum(trial.state != "infeasible" for trial in trials) >= sweep.trials:
        return f"all {sweep.trials} trials"
    return seconds_spent(sweep, ledger, elapsed_s, supernet_s)


def seconds_spent(sweep: SweepSection, ledger: Ledger, elapsed_s: float, supernet_s: float = 0.0) -> str:
    """Return which budget of time, worker time or money is spent, in words; "" when there is more of all.

    Trials under way count for what they have used by now.
    """
    if sweep.time_s is not None and elapsed_s >= sweep.time_s:
        return f"the time is up ({sweep.time_s:g} s)"
    now_s = time.monotonic()
    worker_s = supernet_s + sum(trial.worker_s_by(now_s) for trial in ledger.trials.values())
    if sweep.worker_s is not None and worker_s >= sweep.worker_s:
        return f"the budget of {sweep.worker_s:g} worker seconds is spent"
    if sweep.cost is not None and sweep.cost.limit is not None and sweep.cost.of(worker_s) >= sweep.cost.limit:
        return f"the budget of {sweep.cost.limit:g} (at {sweep.cost.worker_hour:g} a worker hour) is spent"
    return ""
