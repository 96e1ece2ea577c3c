"""`CheckpointStore`: saves the state of a run, in the background if asked, and finds and loads what was committed.

One per rank process, made by the engine. The training thread takes a snapshot; `checkpoint.commit` does the rest, in a
thread of its own when in the background.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from orchestrator.checkpoint import rng
from orchestrator.checkpoint.commit import Committer, Holder, Save
from orchestrator.checkpoint.disk import Disk
from orchestrator.checkpoint.group import Group
from orchestrator.checkpoint.load import load_into
from orchestrator.checkpoint.manifest import CheckpointMeta, CheckpointRef
from orchestrator.checkpoint.staging import Stage
from orchestrator.checkpoint.verify import find_newest
from orchestrator.errors import CheckpointError
from orchestrator.log import get_logger

_log = get_logger("checkpoint")


class CheckpointStore:
    """Saves, finds and loads the checkpoints in one folder. Calls said to be collective are made by every rank."""

    def __init__(
        self,
        folder: Path,
        *,
        rank: int,
        world_size: int,
        attempt: int,
        token: int,
        check_token: Callable[[], bool],
        keep: int,
        background: bool,
        disk: Disk | None = None,
    ) -> None:
        """Collective: makes a gloo group of its own where a process group exists.

        `check_token` says, on rank 0 and from the writer thread, whether `token` still holds the run. At least `keep`
        newest checkpoints stay. `background`: write in a thread; training waits only for the copy into CPU buffers.
        """
        self._folder = folder
        self._group = Group.create()
        if (self._group.rank, self._group.world_size) != (rank, world_size):
            raise CheckpointError(
                f"rank {rank} of {world_size} was announced, torch.distributed says {self._group.rank} of "
                f"{self._group.world_size}",
                hint="Make the process group before the checkpoint store.",
            )
        holder = Holder(attempt, token, check_token)
        self._committer = Committer(folder, self._group, holder, keep=keep, disk=disk or Disk())
        self._stage = Stage()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if background else None
        self._pending: Future[None] | None = None
        self._last: CheckpointRef | None = None
        self._last_write_s = 0.0

    @property
    def last_committed(self) -> CheckpointRef | None:
        """The newest checkpoint that this store has committed."""
        return self._last

    @property
    def last_write_s(self) -> float:
        """Seconds that the last finished save took from the first byte to the commit (a watchdog's yardstick)."""
        return self._last_write_s

    def save(self, state: dict[str, Any], meta: CheckpointMeta, *, best: bool = False) -> float:
        """Save `state`; return the seconds that the caller was blocked. Collective.

        At most one save is in flight: a second one waits for the first. Raises CheckpointError, on every rank, for
        this save when not in the background, and for an earlier one that failed in the background.
        """
        begun = time.perf_counter()
        self.wait()
        snapshot = self._stage.take(state, copy=self._thread is not None)
        work = Save(dataclasses.replace(snapshot, rng=rng.capture()), meta, best)
        if self._thread is None:
            self._write(work)
        else:
            self._pending = self._thread.submit(self._write, work)
        return time.perf_counter() - begun

    def wait(self) -> None:
        """Return once every save is durable and committed. Collective. Raises CheckpointError when one was not."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for the save in flight and free thread and group. Never raises: call `wait` first to hear of errors."""
        try:
            self.wait()
        except CheckpointError as error:
            _log.error("the last save failed: %s", error.message)
        if self._thread is not None:
            self._thread.shutdown()
        self._group.close()

    def find_newest(self) -> CheckpointRef | None:
        """Return the newest checkpoint that verifies, as rank 0 sees it, the same on every rank. Collective.

        None only when none was ever committed. Raises CheckpointError when there are some but none verifies.
        """
        self.wait()
        rank = self._group.rank
        found = self._group.agree("looking for a checkpoint", lambda: find_newest(self._folder) if rank == 0 else None)
        return found[0]

    def load_into(self, ref: CheckpointRef, state: dict[str, Any], *, partial: bool = False) -> CheckpointMeta:
        """Load a checkpoint into `state` in place (see `checkpoint.load.load_into`). Collective."""
        self.wait()
        return load_into(ref, state, group=self._group, partial=partial)

    def restore_rng(self, ref: CheckpointRef, *, seed: int) -> bool:
        """Set this rank's random generators from a checkpoint; return whether they go on exactly. Collective.

        At another world size they are seeded by (seed, step, rank) instead.
        """
        rank, world_size = self._group.rank, self._group.world_size
        done = self._group.agree(
            "restoring random-number states",
            lambda: rng.restore_from(ref, rank=rank, world_size=world_size, seed=seed),
        )
        return done[rank]

    def _write(self, work: Save) -> None:
        begun = time.perf_counter()
        self._last = self._committer.commit(work)
        self._last_write_s = time.perf_counter() - begun
