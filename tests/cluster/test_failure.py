"""The root cause is found among what the ranks and the launcher say, and says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cluster.failure import Failure, classify, failure_of, read_failures, root_cause, write_failure
from orchestrator.errors import CheckpointError, PlanError, TrainError
from orchestrator.runs.catalog import create_run


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PlanError("does not fit"), "job"),
        (TrainError("loss is nan"), "train"),
        (caused(TrainError("callback"), KeyError("x")), "user"),
        (MemoryError(), "oom"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate"), "oom"),
        (CheckpointError("none that verifies"), "storage"),
        (OSError(28, "No space left on device"), "storage"),
        (RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1"), "infra"),
        (RuntimeError("Timed out waiting 1800000ms for recv operation"), "infra"),
        (ConnectionResetError("gone"), "infra"),
        (ValueError("shape"), "user"),
    ],
)
def test_an_exception_has_a_kind(error: Exception, kind: str) -> None:
    assert classify(error) == kind


def test_out_of_memory_names_the_keys_to_change() -> None:
    hint = failure_of(MemoryError("no"), rank=1, step=3).hint
    for key in ("train.batch_size", "train.accumulate", "parallel.shard", "train.precision"):
        assert key in hint


def test_what_a_peer_raised_in_consequence_is_not_the_cause(tmp_path: Path) -> None:
    run = create_run(tmp_path, "tiny")
    write_failure(run, 1, Failure("infra", "RuntimeError", "connection closed by peer", rank=0, step=7, at_s=1.0))
    write_failure(run, 1, Failure("user", "ValueError", "bad pixel", rank=1, step=7, at_s=2.0))
    write_failure(run, 2, Failure("user", "KeyError", "of another attempt", rank=0, at_s=0.0))
    found = root_cause(read_failures(run, 1), Failure("infra", "WorkerDied", "a worker died"))
    assert (found.rank, found.message) == (1, "bad pixel")
    assert found.describe() == "rank 1, step 7: ValueError: bad pixel"


def test_a_rank_that_died_silently_is_named_by_its_launcher() -> None:
    peer = Failure("infra", "RuntimeError", "connection closed by peer", rank=0, step=7, at_s=1.0)
    found = root_cause([peer], Failure("infra", "WorkerDied", "a worker died", rank=1))
    assert (found.rank, found.type, found.step) == (1, "WorkerDied", 7)
    assert root_cause([peer], None) == peer
    assert root_cause([], None).type == "WorkerLost"
