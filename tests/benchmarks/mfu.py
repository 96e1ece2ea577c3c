"""Model FLOPs utilisation of a Llama-like model of about 1B parameters on one GPU, bf16, compiled.

Beside it the same model in a bare PyTorch loop and, where installed (pip install lightning transformers accelerate), in
Lightning's and in transformers' Trainer. The engine is paired with one of them at a time, blocks of steps in turn, so
two models lie in the GPU's memory, not four. Utilisation counts three forward passes' operations a step (Chowdhery et
al. 2022, appendix B), attention whole as if it were not causal, recomputation not at all.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from orchestrator.parallel.process import Rank
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.spec.job import JobSpec
from orchestrator.train.build import build_plain_model
from orchestrator.train.engine import Engine, build_engine
from orchestrator.train.loop import NullSaver, Trainer
from orchestrator.train.ports import NullRecorder, Ports

# Dense bf16 tensor-core TFLOP/s from the makers' data sheets, by a word of the device's name; longest word first.
PEAK_TFLOPS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H200": 989.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
}
MODEL = {
    "use": "transformer",
    "vocab": 256,
    "seq_len": 2048,
    "dim": 2048,
    "layers": 24,
    "heads": 32,
    "kv_heads": 8,
    "hidden": 5632,
}
BATCH, STEPS, WARM_STEPS, ROUNDS = 8, 5, 5, 5
_LR = 3e-4

Steps = Callable[[], float]
"""Runs some training steps and returns the seconds they took."""


def run() -> list[tuple[str, str]]:
    """Return (what, figure) rows; without a CUDA GPU one row that says so."""
    if not torch.cuda.is_available():
        return [("model FLOPs utilisation", "not measured: this machine has no CUDA GPU")]
    job = job_of(MODEL, BATCH, compile_model=True)
    return rows_of(job, torch.device("cuda", 0), torch.cuda.get_device_name(0))


def job_of(model: Mapping[str, Any], batch: int, compile_model: bool) -> JobSpec:
    """Return the job; also used with a tiny model by a test, on a CPU."""
    return JobSpec.model_validate(
        {
            "model": dict(model),
            "data": {"use": "text", "corpus": "python", "seq_len": model["seq_len"]},
            "optim": {"use": "adamw", "lr": _LR, "clip_norm": 1.0},
            "train": {
                "steps": 10**6,
                "batch_size": batch,
                "precision": "bf16",
                "compile": compile_model,
                "eval_every_steps": 10**6,
            },
            "parallel": {"replicate": 1},
        }
    )


def rows_of(job: JobSpec, device: torch.device, name: str) -> list[tuple[str, str]]:
    """Return the rows for one device."""
    plan = build_plan(job, Available.unknown())
    assert plan.num_params is not None
    assert plan.flops_per_sample is not None
    work = 3 * plan.flops_per_sample * job.train.batch_size * STEPS
    peak = next(
        (tflops for words, tflops in PEAK_TFLOPS.items() if f" {words} " in f" {name.replace('-', ' ')} "), None
    )
    rows = [(name, f"{plan.num_params / 1e9:.3f}B parameters, {job.train.batch_size} sequences a step")]
    ours: list[float] = []
    for what, make in contenders().items():
        found = paired(job, device, make)
        ours += [engine_s for engine_s, _ in found]
        ratio = median(theirs / engine_s for engine_s, theirs in found)
        rows.append((what, f"{_rate(work, median(theirs for _, theirs in found), peak)}; engine faster by {ratio:.3f}"))
    rows.insert(1, ("the engine (goal: 55 % and ahead of each)", _rate(work, median(ours), peak)))
    return rows


def _rate(work: float, seconds: float, peak_tflops: float | None) -> str:
    tflops = work / seconds / 1e12
    share = f"{100 * tflops / peak_tflops:.1f} % of the peak" if peak_tflops else "peak of this device not known"
    return f"{tflops:.4g} TFLOP/s, {share}"


def paired(job: JobSpec, device: torch.device, make: Callable[[Engine], Steps]) -> list[tuple[float, float]]:
    """Return (engine's seconds, contender's seconds) for every round; both models are freed afterwards."""
    found = _rounds(job, device, make)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def _rounds(job: JobSpec, device: torch.device, make: Callable[[Engine], Steps]) -> list[tuple[float, float]]:
    engine = build_engine(job, Rank(device=device))
    trainer = Trainer(engine, Ports(recorder=NullRecorder()), NullSaver())

    def advance() -> None:
        trainer.advance()

    both = (timed(advance, device), make(engine))
    for steps in both:  # warm up
        steps()
    found = []
    for number in range(ROUNDS):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        seconds = {index: both[index]() for index in order}
        found.append((seconds[0], seconds[1]))
    return found


def timed(step: Callable[[], None], device: torch.device) -> Steps:
    """Return a function that runs `STEPS` steps and waits for the device; it warms up when first called."""
    warm = iter([WARM_STEPS])

    def steps() -> float:
        for _ in range(next(warm, 0)):
            step()
        _wait(device)
        begun = time.perf_counter()
        for _ in range(STEPS):
            step()
        _wait(device)
        return time.perf_counter() - begun

    return steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def contenders() -> dict[str, Callable[[Engine], Steps]]:
    """Return what the engine is paired with: the bare loop, and what is installed."""
    found: dict[str, Callable[[Engine], Steps]] = {"bare PyTorch loop": bare_steps}
    for module, what, make in (
        ("lightning", "Lightning's Trainer", lightning_steps),
        ("transformers", "transformers' Trainer", transformers_steps),
    ):
        try:
            __import__(module)
        except ImportError:
            logging.getLogger(__name__).info("%s is not installed and is left out", module)
        else:
            found[what] = make
    return found


class WithLoss(nn.Module):
    """The same model, its loss inside, as Trainer wants it; compiled whole where the engine compiles."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.model = build_plain_model(engine.job).to(engine.rank.device)
        if engine.job.train.compile:
            self.model.compile()

    def forward(self, tokens: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return {"loss": mean cross-entropy} of tokens [B, L] and labels [B, L]."""
        logits = self.model(tokens)
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())}


def _tokens(engine: Engine) -> TensorDataset:
    split = engine.data.splits["train"]
    inputs, targets = split.batch(torch.arange(min(len(split), 64 * engine.job.train.batch_size)))
    return TensorDataset(inputs, targets)


def _endless(engine: Engine) -> Iterator[list[Tensor]]:
    pinned = engine.rank.device.type == "cuda"
    loader: Any = DataLoader(
        _tokens(engine), engine.job.train.batch_size, shuffle=True, drop_last=True, pin_memory=pinned
    )
    while True:
        yield from loader


def _optimizer(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=_LR, fused=True)


def bare_steps(engine: Engine) -> Steps:
    """The loop people write for one GPU: autocast to bf16, fused AdamW, clipping."""
    module, device = WithLoss(engine), engine.rank.device
    optimizer, batches, parameters = _optimizer(module), _endless(engine), list(module.parameters())

    def step() -> None:
        tokens, labels = (each.to(device, non_blocking=True) for each in next(batches))
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            loss = module(tokens, labels)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return timed(step, device)


def lightning_steps(engine: Engine) -> Steps:
    """A fit of Lightning's Trainer, bf16-mixed, without logger and checkpoints; its first steps are not timed."""
    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = WithLoss(engine)
            self.begun = self.seconds = 0.0

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss: Tensor = self.inner(*batch)["loss"]
            return loss

        def on_train_batch_end(self, *_: Any) -> None:
            if self.trainer.fit_loop.epoch_loop.batch_idx + 1 in (WARM_STEPS, WARM_STEPS + STEPS):
                _wait(engine.rank.device)
                now = time.perf_counter()
                self.begun, self.seconds = now, now - self.begun

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return _optimizer(self)

    module = Module()
    loader: Any = DataLoader(_tokens(engine), engine.job.train.batch_size, shuffle=True, drop_last=True)

    def steps() -> float:
        trainer = lightning.Trainer(
            accelerator="gpu" if engine.rank.device.type == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed",
            max_steps=WARM_STEPS + STEPS,
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader)
        return module.seconds

    return steps


def transformers_steps(engine: Engine) -> Steps:
    """A train of transformers' Trainer, bf16, nothing logged or saved; its first steps are not timed."""
    from tempfile import TemporaryDirectory

    from transformers import Trainer as HfTrainer
    from transformers import TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):  # type: ignore[misc]
        begun = seconds = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step in (WARM_STEPS, WARM_STEPS + STEPS):
                _wait(engine.rank.device)
                now = time.perf_counter()
                self.begun, self.seconds = now, now - self.begun

    module, clock, size = WithLoss(engine), Clock(), engine.job.train.batch_size
    samples = [{"tokens": tokens, "labels": labels} for tokens, labels in _tokens(engine)]
    folder = TemporaryDirectory(prefix="trainer-")

    def steps() -> float:
        args = TrainingArguments(
            output_dir=folder.name,
            per_device_train_batch_size=size,
            max_steps=WARM_STEPS + STEPS,
            learning_rate=_LR,
            max_grad_norm=1.0,
            bf16=True,
            optim="adamw_torch_fused",
            use_cpu=engine.rank.device.type == "cpu",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
        )
        args._n_gpu = 1  # alone it would take every GPU that it sees, by DataParallel
        HfTrainer(model=module, args=args, train_dataset=samples, callbacks=[clock]).train()
        return clock.seconds

    return steps
