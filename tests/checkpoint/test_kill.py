"""SIGKILL at any moment of a save: what is found afterwards verifies, is what was saved, and loses nothing committed.

Two kinds from one seeded table: at the n-th touch of the disk (every phase is met), and after a random time with both
ranks of a sharded state writing in the background. Six by default, all thirty under the `soak` marker.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from orchestrator.checkpoint.load import load_into
from orchestrator.checkpoint.manifest import CheckpointMeta, CheckpointRef
from orchestrator.checkpoint.verify import find_newest
from orchestrator.errors import CheckpointError
from tests.checkpoint.states import RecordingDisk, assert_same, make_state, make_store, names_in, save_steps

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["torch", "torch.distributed.checkpoint", "torch.distributed.tensor"])
OPERATIONS_PER_SAVE = 12
STEPS = 200


@dataclass(frozen=True)
class Kill:
    """One row of the table: who dies and when."""

    world_size: int
    victim: int
    operation: int
    """Die right before this touch of the disk, counted from the first; 0: see `delay_s`."""
    delay_s: float

    def __str__(self) -> str:
        when = f"operation {self.operation}" if self.operation else f"{self.delay_s:.3f} s"
        return f"rank {self.victim} of {self.world_size} at {when}"


def _table() -> list[Kill]:
    draw = random.Random(20260725)
    rows = []
    for number in range(30):
        world_size = 1 if number % 2 == 0 else 2
        operation = draw.randint(1, 4 * OPERATIONS_PER_SAVE) if world_size == 1 else 0
        rows.append(Kill(world_size, draw.randrange(world_size), operation, draw.uniform(0.0, 0.6)))
    return rows


class DeadlyDisk(RecordingDisk):
    """Kills its process right before the n-th operation; half of the writes before it may have reached the disk."""

    def __init__(self, operation: int) -> None:
        super().__init__()
        self.operation = operation

    def on_operation(self, what: str, path: Path) -> None:
        super().on_operation(what, path)
        if len(self.operations) == self.operation:
            os.kill(os.getpid(), signal.SIGKILL)


def _save_until_killed(rank: int, kill: Kill, folder: str, meeting: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    if kill.world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=kill.world_size)
    disk = DeadlyDisk(kill.operation)
    store = make_store(Path(folder), rank, kill.world_size, background=True, disk=disk)
    layout = "alone" if kill.world_size == 1 else "shard"
    for step in range(1, STEPS):
        try:
            state = make_state(step, layout, kill.world_size)
        except RuntimeError:
            break  # training's own collective has met the lost rank first
        try:
            store.save(state, CheckpointMeta(step=step))
            if step % 3 == 0:
                store.wait()
        except CheckpointError as error:
            os._exit(0 if "a rank was lost while" in error.message else 3)
        last = store.last_committed
        pipe.send(last.step if last is not None else 0)
    store.close()


def _run_and_kill(kill: Kill, tmp_path: Path) -> int:
    """Run the ranks, kill the victim as the row says, then the others; return the last step said to be committed."""
    ours, theirs = context.Pipe(duplex=False)
    ranks: list[BaseProcess] = []
    for rank in range(kill.world_size):
        arguments = (rank, kill, str(tmp_path / "c"), str(tmp_path / "meeting"), theirs)
        ranks.append(context.Process(target=_save_until_killed, args=arguments, daemon=True))
        ranks[-1].start()
    theirs.close()
    told = 0
    try:
        if not kill.operation:
            assert ours.poll(60)
            time.sleep(kill.delay_s)
            ranks[kill.victim].kill()
        ranks[kill.victim].join(60)
        assert ranks[kill.victim].exitcode == -signal.SIGKILL
        survivors = [process for rank, process in enumerate(ranks) if rank != kill.victim]
        for process in survivors:
            process.join(30)
        assert [process.exitcode for process in survivors] == [0] * len(survivors), "who survives hears of it and ends"
    finally:
        for process in ranks:
            process.kill()
            process.join(30)
    while ours.poll():
        try:
            told = max(told, ours.recv())
        except EOFError:
            break
    ours.close()
    return told


def _check(kill: Kill, tmp_path: Path) -> CheckpointRef | None:
    told = _run_and_kill(kill, tmp_path)
    found = find_newest(tmp_path / "c")
    if found is None:
        assert told == 0
        assert not list((tmp_path / "c").glob("*/manifest.json"))
        return None
    assert found.skipped == (), "nothing that looks committed is damaged"
    assert found.step >= told
    state = make_state(STEPS)
    load_into(found, state)
    assert_same(state, found.step)
    return found


def _goes_on(found: CheckpointRef | None, folder: Path) -> None:
    """The next attempt saves, and clears away what the dead one left unfinished."""
    step = found.step + 1 if found is not None else 1
    (ref,) = save_steps(folder, step, attempt=2, keep=2)
    kept = names_in(folder)
    assert ref.name in kept
    assert all((folder / name / "manifest.json").exists() for name in kept)
    assert len(kept) <= 2


@pytest.mark.parametrize("kill", _table()[:6], ids=str)
def test_a_kill_in_the_middle_of_a_save_loses_nothing_that_was_committed(kill: Kill, tmp_path: Path) -> None:
    _goes_on(_check(kill, tmp_path), tmp_path / "c")


@pytest.mark.soak
@pytest.mark.parametrize("kill", _table()[6:], ids=str)
def test_a_kill_in_the_middle_of_a_save_loses_nothing_that_was_committed_all(kill: Kill, tmp_path: Path) -> None:
    _goes_on(_check(kill, tmp_path), tmp_path / "c")


@pytest.mark.soak
def test_a_kill_before_every_single_touch_of_the_disk(tmp_path: Path) -> None:
    for operation in range(1, 3 * OPERATIONS_PER_SAVE):
        folder = tmp_path / str(operation)
        folder.mkdir()
        _check(Kill(1, 0, operation, 0.0), folder)
