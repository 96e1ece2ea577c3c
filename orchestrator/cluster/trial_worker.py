"""`TrialWorker`: a warm process that trains one trial's share after another; the Ray actor behind `cluster.pool`.

Torch is imported and data sets are loaded once. The training runs on a thread of its own: it hands over each evaluation
and waits for the answer, so that whoever compares trials decides at exactly that step.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.checkpoint.fork import Fork
from orchestrator.cluster.failure import failure_of
from orchestrator.cluster.rank import redirect_output
from orchestrator.runs.heartbeat import read_heartbeats
from orchestrator.runs.parent import die_with_parent
from orchestrator.runs.paths import RunDir

if TYPE_CHECKING:
    from orchestrator.data.dataset import Dataset
    from orchestrator.spec.job import JobSpec

MAX_DATASETS = 4


@dataclass(frozen=True)
class Share:
    """What one worker is asked to do: its rank's share of the trial in `folder`. `master` is where rank 0 listens.

    `until` is the step at which the training ends, None for the plan's last; `fork` the checkpoint it may begin from.
    `supernet`: the folder is that of the wide net whose parts a search ranks (`orchestrator.supernet.stage`).
    """

    folder: str
    supernet: bool = False
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    attempt: int = 1
    token: int = 1
    resume: bool = False
    until: int | None = None
    fork: Fork | None = None
    master: tuple[str, int] = ("127.0.0.1", 0)


class TrialWorker:
    """One process of the pool. `start` begins a share, `next` answers and waits for what comes then."""

    def __init__(self) -> None:
        die_with_parent()
        self._said: queue.Queue[dict[str, Any]] = queue.Queue()
        self._answers: queue.Queue[bool] = queue.Queue()
        self._data: dict[str, Dataset] = {}
        self._home = os.getcwd()
        self._is_settled = False

    def ready(self) -> dict[str, Any]:
        """Import what training needs; return this host's address, and a port that is free on it now."""
        import socket

        import ray.util

        import orchestrator.train.entry  # noqa: F401

        with socket.socket() as probe:
            probe.bind(("", 0))
            port = int(probe.getsockname()[1])
        return {"kind": "ready", "address": ray.util.get_node_ip_address(), "port": port}

    def start(self, share: Share) -> dict[str, Any]:
        """Begin to train; return the first thing it has to say (see `next`)."""
        threading.Thread(target=self._train, args=(share,), name="trial", daemon=True).start()
        return self._said.get()

    def next(self, stop: bool) -> dict[str, Any]:
        """Answer an evaluation and wait for the next thing: `evaluated` (step, metrics), `ended` or `failed`."""
        self._answers.put(stop)
        return self._said.get()

    def measure(self, folder: str, tasks: Sequence[str]) -> dict[str, Any]:
        """Compress or time the trial's model (see `trial_stage`): `measured` (values), or `failed`."""
        from orchestrator.spec.job import JobSpec

        try:
            from orchestrator.cluster.trial_stage import do_tasks

            run = RunDir(Path(folder))
            job = JobSpec.model_validate_json(run.job.read_bytes())
            return {"kind": "measured", "values": do_tasks(run, job, self._load(job), tasks)}
        except Exception as error:  # of a user's model anything may come; the trial fails, not the process
            return {"kind": "failed", "failure": asdict(failure_of(error, rank=0, step=-1))}

    def _train(self, share: Share) -> None:
        run = RunDir(Path(share.folder))
        try:
            self._prepare(share, run)
            result = self._run(share, run)
            said = {"kind": "ended", "result": result}
        except BaseException as error:  # whatever ends a trial is told: this process lives on
            step = next((beat.step for beat in read_heartbeats(run) if beat.rank == share.rank), -1)
            said = {"kind": "failed", "failure": asdict(failure_of(error, rank=share.rank, step=step))}
        with suppress(Exception):  # tidying must not cost the result
            self._tidy(share)
        self._said.put(said)

    def _prepare(self, share: Share, run: RunDir) -> None:
        import torch

        redirect_output(run.logs / f"rank-{share.rank}.log")
        torch.use_deterministic_algorithms(False)  # an earlier trial may have asked for it
        if share.world_size > 1:
            os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = share.master[0], str(share.master[1])

    def _run(self, share: Share, run: RunDir) -> dict[str, Any]:
        from orchestrator.train.entry import USUAL, run_rank

        recipe = USUAL
        if share.supernet:
            from orchestrator.supernet.stage import recipe_of

            recipe = recipe_of(run)
        result = run_rank(
            run,
            rank=share.rank,
            world_size=share.world_size,
            local_rank=share.local_rank,
            attempt=share.attempt,
            token=share.token,
            resume=share.resume,
            until=share.until,
            fork=share.fork,
            judge=self._judge,
            load=self._load,
            recipe=recipe,
        )
        return asdict(result)

    def _judge(self, step: int, metrics: Mapping[str, float]) -> bool:
        self._said.put({"kind": "evaluated", "step": step, "metrics": dict(metrics)})
        return self._answers.get()

    def _load(self, job: JobSpec) -> Dataset:
        from orchestrator.train.engine import load_dataset

        key = job.data.model_dump_json()
        if key not in self._data:
            while len(self._data) >= MAX_DATASETS:
                self._data.pop(next(iter(self._data)))
            self._data[key] = load_dataset(job)
        return self._data[key]

    def _tidy(self, share: Share) -> None:
        """Leave nothing of the trial behind: process group, log file, cached memory."""
        import gc

        import torch
        import torch.distributed as dist

        if "torch._dynamo" in sys.modules:  # variants of its compiled blocks would count against the next one's limit
            torch._dynamo.reset()
        if dist.is_initialized():
            dist.destroy_process_group()
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                handler.close()
        logging.getLogger().handlers[:] = []
        gc.collect()
        if not self._is_settled:  # what was imported stays for good: looking through it again costs 0.15 s a trial
            gc.freeze()
            self._is_settled = True
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
