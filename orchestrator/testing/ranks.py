"""`run_ranks`: run a function on N real gloo processes on this machine, from a fork server with torch preloaded.

Lent to plug-in authors and used by the parity tests. No port is opened: ranks meet through a file.
"""

from __future__ import annotations

import io
import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_PRELOAD = ["torch", "torch.distributed", "torch.distributed.fsdp", "torch.distributed.checkpoint", "numpy"]

_WATCH_S = 1.0


class RankError(Exception):
    """A rank raised, died or ran out of time; the message carries every rank's traceback."""


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    return context


def _rank_main(
    rank: int, world_size: int, store: str, fn: Callable[..., Any], args: tuple[Any, ...], pipe: Connection
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        if world_size > 1:
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
        result = io.BytesIO()
        torch.save(fn(rank, world_size, *args), result)
        pipe.send((True, result.getvalue()))
    except BaseException:
        # The parent reports it: a rank that dies silently would leave the others waiting for nothing.
        pipe.send((False, traceback.format_exc()))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _unwatched() -> str:
    return ""


def run_ranks(
    fn: Callable[..., Any],
    world_size: int,
    *args: Any,
    timeout_s: float = 120.0,
    watch: Callable[[], str] = _unwatched,
) -> list[Any]:
    """Return `[fn(rank, world_size, *args) for each rank]`, each call in a process of its own.

    `fn` is a module-level function; its result is made of tensors and plain values (numbers, text, lists, dicts). With
    world_size 1 no process group is made. `watch` is asked every second what is wrong, "" when nothing is. Raises
    RankError when any rank fails, something is wrong or the time is up; no process outlives the call.
    """
    context = _context()
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        pipes: list[Connection] = []
        processes: list[BaseProcess] = []
        for rank in range(world_size):
            ours, theirs = context.Pipe(duplex=False)
            process: BaseProcess = context.Process(
                target=_rank_main, args=(rank, world_size, str(Path(folder) / "store"), fn, args, theirs), daemon=True
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        try:
            return _collect(pipes, time.monotonic() + timeout_s, watch)
        finally:
            for process in processes:
                process.join(timeout=2)
                if process.is_alive():
                    process.kill()
                    process.join()


def _collect(pipes: list[Connection], deadline: float, watch: Callable[[], str]) -> list[Any]:
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    waiting = dict(enumerate(pipes))
    while waiting and not failures:
        left = deadline - time.monotonic()
        ready = wait(list(waiting.values()), timeout=max(0.0, min(left, _WATCH_S)))
        if wrong := watch():
            raise RankError(wrong)
        if not ready and left <= _WATCH_S:
            raise RankError(f"ranks {sorted(waiting)} did not finish in time")
        for rank, pipe in list(waiting.items()):
            if pipe in ready:
                _receive(rank, pipe, results, failures)
                del waiting[rank]
    if failures:
        raise RankError("\n".join(f"rank {rank}:\n{text}" for rank, text in sorted(failures.items())))
    return [results[rank] for rank in range(len(pipes))]


def _receive(rank: int, pipe: Connection, results: dict[int, Any], failures: dict[int, str]) -> None:
    try:
        good, value = pipe.recv()
    except EOFError:
        failures[rank] = "the process died without a word (killed?)"
        return
    if good:
        import torch

        results[rank] = torch.load(io.BytesIO(value), weights_only=True)
    else:
        failures[rank] = value
