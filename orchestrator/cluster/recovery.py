"""Whether to try again after a failed attempt, as a pure decision over what has failed so far.

The budget counts failures since the last new committed checkpoint, so a long run with rare faults never runs out. What
would fail the same way again is not tried again. `attempts` carries the decision out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.cluster.failure import Failure

_FINAL = {
    "job": "the job has to be changed",
    "train": "the same job fails the same way again",
    "oom": "the same job needs the same memory again",
}
_MISTAKES = {"TypeError", "AttributeError", "NameError", "ImportError", "ModuleNotFoundError", "SyntaxError"}
MAX_WAIT_S = 60.0


@dataclass(frozen=True)
class Retry:
    """Start another attempt after so many seconds."""

    after_s: float


@dataclass(frozen=True)
class GiveUp:
    """End the run; `reason` is shown after the failure."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """A failed attempt: why, and how many checkpoints this driver had seen committed by then."""

    failure: Failure
    num_commits: int


def decide(history: Sequence[Failed], *, max_failures: int, seed: int = 0) -> Retry | GiveUp:
    """Return what to do after the last attempt in `history` (oldest first, at least one)."""
    last = history[-1].failure
    if last.kind in _FINAL and last.type != "Killed":
        return GiveUp(_FINAL[last.kind])
    if last.kind == "user" and last.step <= 0 and last.type in _MISTAKES:
        return GiveUp("a mistake in the code does not go away by trying again")
    if _is_repeated(history):
        return GiveUp("the same error came at the same step twice")
    spent = _failures_without_progress(history)
    if spent > max_failures:
        return GiveUp(f"{spent} failures without a new checkpoint (cluster.max_failures is {max_failures})")
    return Retry(backoff_s(spent, seed=seed + len(history)))


def backoff_s(tries: int, *, seed: int) -> float:
    """Return seconds to wait before try number `tries` (from 1): doubling from 1 to 60, up to a quarter longer."""
    return min(MAX_WAIT_S, 2.0 ** max(0, tries - 1) * (1 + 0.25 * random.Random(seed).random()))


def _is_repeated(history: Sequence[Failed]) -> bool:
    if len(history) < 2 or history[-1].failure.kind not in ("user", "oom"):
        return False
    return history[-1].failure.signature == history[-2].failure.signature


def _failures_without_progress(history: Sequence[Failed]) -> int:
    commits, spent = history[-1].num_commits, 0
    for failed in reversed(history):
        if failed.num_commits < commits:
            # This failure came before the newest checkpoint: progress since then has refilled the budget.
            break
        spent += failed.failure.kind != "preemption"
    return spent
