"""Two ranks beside one process: what a pipeline, data ranks and tensor ranks cost over the time they should take.

Every contender is a group of real gloo processes of one thread each, with the same model, data and global batch. They
stay alive and take turns, one step a turn, so nothing else of the benchmark runs meanwhile. A figure is the median over
rounds of (seconds of the layout / what they should be, by the one process's seconds in the same round). Two processes
that train half a batch each and exchange nothing say what the machine itself loses when both cores compute.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from orchestrator.parallel.process import Rank, sum_over_ranks
from orchestrator.plan.stages import ideal_bubble
from orchestrator.spec.job import JobSpec
from orchestrator.testing.ranks import run_ranks
from orchestrator.train.engine import build_engine
from orchestrator.train.step import Stepper

ROUNDS, WARM_STEPS, MICROBATCHES = 5, 2, 8
_POLL_S = 0.005
_TIMEOUT_S = 3600.0
# The wider a model, the more it computes per byte between tensor ranks; the larger a batch, the more per byte between
# data ranks and per sum of a microbatch's gradients. A step takes some 8 seconds on a core.
MODEL = {"use": "transformer", "vocab": 256, "seq_len": 128, "dim": 768, "layers": 4, "heads": 12, "kv_heads": 12}
BATCH = 32


@dataclass(frozen=True)
class Contender:
    """A layout, what its step should take as a share of the one process's, and how far above that it may be."""

    what: str
    axes: Mapping[str, int]
    share: float
    bar: float
    num_ranks: int = 2
    batch: int = BATCH


CONTENDERS = {
    "single": Contender("one process, one thread", {}, 1.0, 1.0, num_ranks=1),
    "apart": Contender(
        "the machine: 2 processes, half a batch each, nothing exchanged, over half", {}, 0.5, 0.0, 2, BATCH // 2
    ),
    "pipeline": Contender(
        f"2 pipeline stages, {MICROBATCHES} microbatches, over (half / (1 - bubble))",
        {"pipeline": 2, "microbatches": MICROBATCHES},
        0.5 / (1 - ideal_bubble("1f1b", 2, MICROBATCHES, 1)),
        1.10,
    ),
    "data": Contender("2 data ranks, over half", {"replicate": 2}, 0.5, 1.05),
    "tensor": Contender("2 tensor ranks, over half", {"tensor": 2}, 0.5, 1.15),
}


@dataclass(frozen=True)
class Turn:
    """One step: its seconds, and the CPU seconds of all ranks, which waiting and other programs leave alone."""

    wall_s: float
    work_s: float


def job(axes: Mapping[str, int], batch: int) -> dict[str, Any]:
    """Return the job under a layout, as plain values."""
    spec = JobSpec.model_validate(
        {
            "model": MODEL,
            "data": {"use": "text", "corpus": "python", "seq_len": MODEL["seq_len"], "max_bytes": 500_000},
            "optim": {"use": "adamw", "lr": 1e-4, "clip_norm": 1.0},
            "train": {"steps": 1000, "batch_size": batch},
            "parallel": {"replicate": 1, **axes},
            "cluster": {"gpus_per_worker": 0, "backend": "gloo"},
        }
    )
    found: dict[str, Any] = spec.model_dump(mode="json")
    return found


def run() -> list[tuple[str, str]]:
    """Return (what, figure) rows."""
    before = os.getloadavg()[0]
    turns = measure(ROUNDS)
    alone, apart = turns.pop("single"), turns["apart"]
    rows = [
        ("load average before and after", f"{before:.1f}, {os.getloadavg()[0]:.1f}"),
        (CONTENDERS["single"].what, f"median step of {ROUNDS}: {median(turn.wall_s for turn in alone):.2f} s"),
    ]
    for name, mine in turns.items():
        contender = CONTENDERS[name]
        ratios = [a.wall_s / (b.wall_s * contender.share) for a, b in zip(mine, alone, strict=True)]
        work = median(a.work_s / b.work_s for a, b in zip(mine, alone, strict=True))
        held = "held" if median(ratios) <= contender.bar else "not reached"
        bar = f"bar {contender.bar:.2f} {held}, " if contender.bar else ""
        more = [f"rounds {min(ratios):.3f} to {max(ratios):.3f}", f"CPU seconds of both {work:.3f}"]
        if mine is not apart:
            own = [a / (b.wall_s / (0.5 * c.wall_s)) for a, b, c in zip(ratios, apart, alone, strict=True)]
            more.append(f"over the machine's own loss {median(own):.3f}")
        rows.append((contender.what, f"{median(ratios):.3f}  {bar}{', '.join(more)}"))
    return rows


def measure(rounds: int) -> dict[str, list[Turn]]:
    """Return what every round's step took, by contender."""
    found: dict[str, list[Turn]] = {name: [] for name in CONTENDERS}
    with TemporaryDirectory(prefix="layouts-") as folder, ThreadPoolExecutor(len(CONTENDERS)) as threads:
        groups = {
            name: threads.submit(
                run_ranks,
                take_turns,
                each.num_ranks,
                job(each.axes, each.batch),
                folder,
                name,
                rounds,
                timeout_s=_TIMEOUT_S,
            )
            for name, each in CONTENDERS.items()
        }
        for name, group in groups.items():
            _wait_for(Path(folder) / f"{name}-ready", group)
        names = list(CONTENDERS)
        for number in range(rounds):
            at = number % len(names)
            for name in names[at:] + names[:at]:
                (Path(folder) / f"{name}-go-{number}").touch()
                wall, work = _wait_for(Path(folder) / f"{name}-done-{number}", groups[name]).split()
                found[name].append(Turn(float(wall), float(work)))
        for group in groups.values():
            group.result()
    return found


def take_turns(rank: int, world_size: int, spec: dict[str, Any], folder: str, name: str, rounds: int) -> bool:
    """Take one step whenever it is this group's turn; rank 0 says how long it took."""
    torch.set_num_threads(1)
    # Processes apart are engines of one rank each; what they sum over all ranks (a count) they sum alike.
    me = Rank(rank, world_size, rank) if world_size > 1 and name != "apart" else Rank()
    stepper = Stepper(build_engine(JobSpec.model_validate(spec), me))
    for step in range(WARM_STEPS):
        stepper.step(step)
    _say(Path(folder) / f"{name}-ready", "", rank)
    for number in range(rounds):
        _wait_for(Path(folder) / f"{name}-go-{number}")
        _meet(world_size)
        begun, worked = time.perf_counter(), time.process_time()
        stepper.step(WARM_STEPS + number)
        worked = time.process_time() - worked
        _meet(world_size)
        seconds = time.perf_counter() - begun
        work = sum_over_ranks(torch.tensor(worked, dtype=torch.float64))
        _say(Path(folder) / f"{name}-done-{number}", f"{seconds!r} {float(work)!r}", rank)
    return True


def _meet(world_size: int) -> None:
    if world_size > 1:
        dist.barrier()


def _say(path: Path, text: str, rank: int) -> None:
    if rank == 0:
        draft = path.with_suffix(".draft")
        draft.write_text(text, encoding="ascii")
        draft.rename(path)


def _wait_for(path: Path, group: Future[Any] | None = None) -> str:
    """Wait until the file is there and return its text. Raises what the group's ranks raised instead of writing it."""
    while not path.exists():
        if group is not None and group.done():
            group.result()
        time.sleep(_POLL_S)
    return path.read_text(encoding="ascii")
