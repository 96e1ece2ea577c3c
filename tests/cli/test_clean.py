"""`clean`: deletes what it was told to, says what that frees, and never touches a live run."""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli.app import app
from orchestrator.runs.catalog import create_run
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import process_started, update_record


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """Four finished runs, each a day younger than the one before, and a live one."""
    now = datetime.now(UTC)
    for days in (3, 2, 1, 0):
        at = (now - timedelta(days=days, minutes=5)).isoformat()
        update_record(create_run(tmp_path, "tiny"), state="finished", created=at, ended=at)
    me = {"pid": os.getpid(), "pid_started": process_started(os.getpid()), "host": socket.gethostname()}
    update_record(create_run(tmp_path, "live"), state="running", **me)
    return tmp_path


def clean(*words: str, storage: Path, said: str = "") -> Result:
    return CliRunner().invoke(app, ["clean", *words, "--storage", str(storage)], input=said)


def left(storage: Path) -> list[str]:
    return sorted(path.name for path in storage.iterdir() if path.is_dir())


ALL = ["live-1", "tiny-1", "tiny-2", "tiny-3", "tiny-4"]


@pytest.mark.parametrize(
    ("words", "gone"),
    [
        (("--keep", "2"), ["tiny-1", "tiny-2"]),
        (("--keep", "9"), []),
        (("--keep", "0"), ["tiny-1", "tiny-2", "tiny-3", "tiny-4"]),
        (("--older", "1.5"), ["tiny-1", "tiny-2"]),
        (("--keep", "3", "--older", "0.5"), ["tiny-1"]),
        (("tiny-2", "tiny-4"), ["tiny-2", "tiny-4"]),
    ],
)
def test_exactly_what_was_asked_for_is_deleted(words: tuple[str, ...], gone: list[str], storage: Path) -> None:
    rehearsed = clean(*words, "--dry-run", "--json", storage=storage)
    assert left(storage) == ALL
    assert (json.loads(rehearsed.stdout)["runs"], json.loads(rehearsed.stdout)["deleted"]) == (gone, False)
    done = clean(*words, "--yes", "--json", storage=storage)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["runs"] == gone
    assert left(storage) == [name for name in ALL if name not in gone]


def test_a_live_run_is_refused_by_name_and_nothing_is_deleted_with_it(storage: Path) -> None:
    done = clean("tiny-1", "live-1", "--yes", storage=storage)
    assert done.exit_code == 4
    assert "orchestrator stop live-1" in done.output
    assert left(storage) == ALL


def test_a_run_named_twice_is_deleted_once(storage: Path) -> None:
    assert clean("tiny-1", "tiny-1", "--yes", storage=storage).exit_code == 0
    assert left(storage) == ALL[:1] + ALL[2:]


def test_it_asks_first_and_no_means_no(storage: Path) -> None:
    done = clean("tiny-1", storage=storage, said="n\n")
    assert done.exit_code == 130
    assert "Delete 1 run " in done.output
    assert left(storage) == ALL
    assert clean("tiny-1", storage=storage, said="y\n").exit_code == 0
    assert "tiny-1" not in left(storage)


def test_without_saying_which_nothing_happens(storage: Path) -> None:
    assert clean(storage=storage).exit_code == 2
    assert left(storage) == ALL


def test_what_is_freed_is_what_the_folder_took(storage: Path) -> None:
    (RunDir(storage / "tiny-1").logs / "rank-0.log").write_bytes(b"x" * 100_000)
    found = json.loads(clean("tiny-1", "--yes", "--json", storage=storage).stdout)
    assert 100_000 <= found["bytes"] < 110_000
