"""What is tried again, when, and when it is given up: decisions over what has failed, without a process."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from shutil import rmtree

import pytest

from orchestrator.checkpoint.disk import MANIFEST
from orchestrator.checkpoint.manifest import folder_name
from orchestrator.cluster.attempts import Commits
from orchestrator.cluster.failure import Failure
from orchestrator.cluster.recovery import Failed, GiveUp, Retry, backoff_s, decide
from orchestrator.runs.paths import RunDir


def failed(kind: str, *, type: str = "Some", step: int = 5, commits: int = 0) -> Failed:
    return Failed(Failure(kind, type, "message", step=step), commits)


RETRIED = [
    ("a lost worker", [failed("infra")]),
    ("a hang", [failed("hang")]),
    ("a full disk", [failed("storage")]),
    ("a user's error that came once", [failed("user", type="OSError")]),
    ("another error at the same step", [failed("user", type="OSError"), failed("user", type="RuntimeError")]),
    ("the same error at another step", [failed("user", step=5), failed("user", step=9)]),
    ("lost workers again and again at the same step", [failed("infra")] * 3),
    ("a worker killed for memory once", [failed("oom", type="Killed")]),
    ("many faults with progress between", [failed("infra", commits=count) for count in range(10)]),
    ("preemptions without end", [failed("preemption")] * 20),
]

GIVEN_UP = [
    ("a job that does not fit", [failed("job")], "changed"),
    ("a loss that is not finite", [failed("train")], "same way"),
    ("too little memory for the tensors", [failed("oom", type="OutOfMemoryError")], "memory"),
    ("a mistake before the first step", [failed("user", type="TypeError", step=0)], "mistake"),
    ("the same error at the same step", [failed("user"), failed("user")], "twice"),
    ("killed for memory twice at one step", [failed("oom", type="Killed")] * 2, "twice"),
    ("no progress", [failed("infra")] * 4, "4 failures without a new checkpoint"),
    ("progress long ago", [failed("infra", commits=0), *[failed("infra", commits=1)] * 4], "4 failures"),
]


@pytest.mark.parametrize(("history"), [history for _, history in RETRIED], ids=[name for name, _ in RETRIED])
def test_is_tried_again(history: list[Failed]) -> None:
    assert isinstance(decide(history, max_failures=3), Retry)


@pytest.mark.parametrize(
    ("history", "reason"), [(history, reason) for _, history, reason in GIVEN_UP], ids=[name for name, *_ in GIVEN_UP]
)
def test_is_given_up(history: list[Failed], reason: str) -> None:
    decision = decide(history, max_failures=3)
    assert isinstance(decision, GiveUp)
    assert reason in decision.reason


def test_no_failures_allowed_means_none() -> None:
    assert isinstance(decide([failed("infra")], max_failures=0), GiveUp)


def test_waits_double_from_one_second_to_a_minute_and_repeat_with_the_seed() -> None:
    waits = [backoff_s(tries, seed=7) for tries in range(1, 9)]
    assert waits == [backoff_s(tries, seed=7) for tries in range(1, 9)]
    assert 1.0 <= waits[0] <= 1.25
    assert all(late >= early for early, late in pairwise(waits))
    assert waits[-1] == 60.0
    assert backoff_s(1, seed=1) != backoff_s(1, seed=2)


def test_a_checkpoint_at_a_lower_step_than_a_damaged_one_is_progress(tmp_path: Path) -> None:
    run = RunDir(tmp_path)

    def commit(step: int, attempt: int) -> Path:
        folder = run.checkpoints / folder_name(step, attempt, "00" * 3)
        folder.mkdir(parents=True)
        (folder / MANIFEST).touch()
        return folder

    old = commit(30, 1)
    commits = Commits(run)
    assert commits.count() == 0
    new = commit(20, 2)
    assert commits.count() == 1
    rmtree(old)
    rmtree(new)
    (run.checkpoints / folder_name(25, 2, "00" * 3)).mkdir()
    assert commits.count() == 1
