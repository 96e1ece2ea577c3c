"""A training step of the engine beside loops that people write by hand, on the digits CNN.

Blocks of steps of every contender take turns inside one run, on the same ranks; a ratio is the median over rounds of
(engine's seconds / contender's seconds in the same round), so the machine's drift cancels.
`pip install accelerate lightning` adds their loops to the table.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from orchestrator.parallel.apply import _NO_BUFFER_SYNC
from orchestrator.parallel.process import Rank
from orchestrator.runs.heartbeat import HeartbeatWriter
from orchestrator.runs.paths import RunDir
from orchestrator.runs.spool import SpoolWriter
from orchestrator.spec.job import JobSpec
from orchestrator.spec.load import load_job
from orchestrator.testing.ranks import run_ranks
from orchestrator.train.build import build_plain_model
from orchestrator.train.engine import Engine, build_engine
from orchestrator.train.loop import NullSaver, Trainer
from orchestrator.train.ports import NullRecorder, Ports

ROUNDS, STEPS = 15, 20
_JOB = Path(__file__).parents[2] / "jobs" / "digits_cnn.yaml"
_ENDLESS = ["train.steps=1000000", "train.eval_every_steps=1000000", "checkpoint.every_steps=1000000"]

Steps = Callable[[], float]
"""Runs `STEPS` training steps and returns the seconds they took."""


def run() -> list[tuple[str, str]]:
    """Return (what, figure) rows for one process and for two data-parallel ranks."""
    rows = []
    for ranks in (1, 2):
        size = f"train.batch_size={32 * ranks}"
        with TemporaryDirectory() as folder:
            job = load_job(_JOB, [*_ENDLESS, f"parallel.replicate={ranks}", size]).spec.model_dump(mode="json")
            found = run_ranks(_rank, ranks, job, folder, timeout_s=900)[0]
        where = f"{ranks} rank{'s' if ranks > 1 else ''}"
        rows.append((f"{where}: engine step, tracking and progress on", f"{found.pop('engine_ms'):.2f} ms"))
        rows += [(f"{where}: engine / {name}", f"{ratio:.3f}") for name, ratio in found.items()]
    return rows


def _rank(rank: int, world_size: int, job: dict[str, Any], folder: str) -> dict[str, float]:
    engine = build_engine(JobSpec.model_validate(job), Rank(rank, world_size, rank))
    contenders: dict[str, Steps] = {
        "engine": _engine_steps(engine, RunDir(Path(folder))),
        "hand-tuned bare loop, same levers (bar 1.02)": _bare_steps(engine),
        "customary loop (bar 0.80)": _customary_steps(engine),
        **_wrapped_loops(engine),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for steps in contenders.values():
        steps()
    for round_number in range(ROUNDS):
        order = list(contenders.items())
        for name, steps in order[round_number % len(order) :] + order[: round_number % len(order)]:
            if world_size > 1:
                dist.barrier()
            seconds[name].append(steps())
    ours = seconds.pop("engine")
    found = {name: median(a / b for a, b in zip(ours, theirs, strict=True)) for name, theirs in seconds.items()}
    return {**found, "engine_ms": 1000 * median(ours) / STEPS}


def _timed(step: Callable[[], None]) -> Steps:
    def steps() -> float:
        begun = time.perf_counter()
        for _ in range(STEPS):
            step()
        return time.perf_counter() - begun

    return steps


def _engine_steps(engine: Engine, run: RunDir) -> Steps:
    heartbeat = HeartbeatWriter(run, engine.rank.rank, attempt=1)
    recorder = SpoolWriter(run.spool / "rank0-a1.jsonl") if engine.rank.is_main else NullRecorder()
    trainer = Trainer(engine, Ports(recorder=recorder, beat=heartbeat.beat), NullSaver())
    return _timed(lambda: trainer.advance() and None)


def _data(engine: Engine) -> tuple[torch.Tensor, torch.Tensor]:
    split = engine.data.splits["train"]
    return split.batch(torch.arange(len(split)))


def _bare_steps(engine: Engine) -> Steps:
    """The fastest loop we can write by hand with the same levers: batched indexing, fused AdamW, channels-last."""
    model: nn.Module = build_plain_model(engine.job).to(memory_format=torch.channels_last)
    if engine.rank.world_size > 1:
        model = DistributedDataParallel(model, gradient_as_bucket_view=True, **_NO_BUFFER_SYNC)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005, weight_decay=0.2, fused=True)
    inputs, targets = _data(engine)
    size = engine.job.train.batch_size // engine.rank.world_size
    loss_fn = nn.CrossEntropyLoss()
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(engine.rank.rank)
    model.train()

    def step() -> None:
        chosen = torch.randint(len(inputs), (size,), generator=generator)
        x = inputs[chosen].contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad(set_to_none=True)
        loss_fn(model(x), targets[chosen]).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return _timed(step)


def _customary_steps(engine: Engine) -> Steps:
    """What most people write: DataLoader over a TensorDataset, AdamW as it comes, the default memory format."""
    model: nn.Module = build_plain_model(engine.job)
    if engine.rank.world_size > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005, weight_decay=0.2)
    loss_fn = nn.CrossEntropyLoss()
    batches = _endless(_loader(engine))
    model.train()

    def step() -> None:
        x, y = next(batches)
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return _timed(step)


def _loader(engine: Engine) -> DataLoader[Any]:
    dataset = TensorDataset(*_data(engine))
    size = engine.job.train.batch_size // engine.rank.world_size
    if engine.rank.world_size == 1:
        return DataLoader(dataset, batch_size=size, shuffle=True, drop_last=True)
    return DataLoader(dataset, batch_size=size, sampler=DistributedSampler(dataset), drop_last=True)


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _wrapped_loops(engine: Engine) -> dict[str, Steps]:
    """The customary loop inside other trainers, where installed. They own their processes, so on one rank only."""
    found: dict[str, Steps] = {}
    if engine.rank.world_size > 1:
        return found
    try:
        from accelerate import Accelerator
    except ImportError:
        pass
    else:
        found["Accelerate"] = _accelerate_steps(engine, Accelerator(cpu=True))
    try:
        import lightning  # noqa: F401
    except ImportError:
        pass
    else:
        found["Lightning"] = _lightning_steps(engine)
    return found


def _accelerate_steps(engine: Engine, accelerator: Any) -> Steps:
    model = build_plain_model(engine.job)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005, weight_decay=0.2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, _loader(engine))
    loss_fn = nn.CrossEntropyLoss()
    batches = _endless(loader)
    model.train()

    def step() -> None:
        x, y = next(batches)
        optimizer.zero_grad()
        accelerator.backward(loss_fn(model(x), y))
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return _timed(step)


def _lightning_steps(engine: Engine) -> Steps:
    """A fit of Lightning's Trainer without logger and checkpoints; its first steps are not timed."""
    import logging
    import warnings

    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warm_up = 3

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = build_plain_model(engine.job)
            self.begun = self.seconds = 0.0

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            x, y = batch
            return nn.functional.cross_entropy(self.model(x), y)

        def on_train_batch_end(self, *_: Any) -> None:
            if self.global_step == warm_up:
                self.begun = time.perf_counter()
            self.seconds = time.perf_counter() - self.begun

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.005, weight_decay=0.2)

    module, loader = Module(), _loader(engine)

    def steps() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = lightning.Trainer(
                accelerator="cpu",
                max_steps=STEPS + warm_up,
                gradient_clip_val=1.0,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(module, loader)
        return module.seconds

    return steps
