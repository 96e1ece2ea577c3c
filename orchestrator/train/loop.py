"""`fit`: the training loop. Knows steps, evaluation, saving and stopping; knows nothing of Ray, MLflow or processes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

import torch

from orchestrator.errors import TrainError
from orchestrator.parallel.process import sum_over_ranks
from orchestrator.train.balance import is_drawn
from orchestrator.train.callbacks import Callbacks, Moment
from orchestrator.train.engine import Engine
from orchestrator.train.evaluate import evaluate
from orchestrator.train.ports import FitResult, Ports, StepReport
from orchestrator.train.profile import PipelineProfiler, StepProfiler
from orchestrator.train.progress import Progress
from orchestrator.train.step import StepOutcome, Stepper

# A stop request is looked for after the first step and at logged steps; after every step where steps are slower.
_SLOW_STEP_S = 0.2


class Saver(Protocol):
    """Where state goes to and comes from."""

    def restore(self, engine: Engine) -> Progress | None:
        """Load the newest checkpoint that verifies into the engine; None when none was ever committed. Collective."""

    def save(self, engine: Engine, progress: Progress, *, best: bool) -> float:
        """Save; return the seconds that training waited. Collective."""

    def finish(self, progress: Progress) -> tuple[str | None, str | None]:
        """Wait until everything is committed; return the names of the best and the newest checkpoint. Collective."""


class NullSaver:
    """Saves nothing (tests, trials that need no state)."""

    def restore(self, engine: Engine) -> Progress | None:
        """Return None."""
        return None

    def save(self, engine: Engine, progress: Progress, *, best: bool) -> float:
        """Do nothing."""
        return 0.0

    def finish(self, progress: Progress) -> tuple[str | None, str | None]:
        """Return nothing."""
        return None, None


def fit(
    engine: Engine, ports: Ports, saver: Saver | None = None, stepper: Callable[[Engine], Stepper] = Stepper
) -> FitResult:
    """Train to the plan's last step (or `ports.until`), or until asked to stop or out of patience. Every rank calls it.

    `stepper` says what a step is, where it is more than one pass over the batch.
    Raises TrainError when loss or gradients stay non-finite, and whatever a callback raises.
    """
    return Trainer(engine, ports, saver or NullSaver(), stepper).run()


class Trainer:
    """One call of `fit`: the pieces that the steps share. `advance` takes one step and all that is due after it."""

    def __init__(
        self, engine: Engine, ports: Ports, saver: Saver, stepper: Callable[[Engine], Stepper] = Stepper
    ) -> None:
        self.engine, self.ports, self.saver = engine, ports, saver
        self.job, self.batch = engine.job, engine.plan.batch
        self.last_step = min(self.batch.total_steps, ports.until or self.batch.total_steps)
        self.stepper = stepper(engine)
        self.callbacks = Callbacks(engine.job)
        self.moment = Moment(engine.job, engine.plan, engine.rank.rank, engine.model.module, engine.optimizer)
        self.profiler = StepProfiler(False, None, 0)
        self.pipeline = PipelineProfiler(None, None, ports.recorder, 0)
        self.progress = Progress()
        self.clock = _Clock()
        self.saved_at = -1
        self.synced = False
        self.blocked_s = 0.0
        self.started_s = 0.0

    def run(self) -> FitResult:
        """Restore, step, close."""
        self.ports.beat(0, "start")
        if self.ports.resume:
            self.progress = self.saver.restore(self.engine) or Progress()
            self.saved_at = self.progress.step
        self.callbacks.start(self.moment, self.progress.step)
        self._start_profile()
        self.started_s = time.perf_counter() - self.progress.train_s
        status = self._status_at_start()
        while status == "running":
            status = self.advance()
        self.profiler.close()
        self.pipeline.close()
        if self.saved_at != self.progress.step:
            self._save(best=False)
        self.ports.beat(self.progress.step, "checkpoint")
        best, newest = self.saver.finish(self.progress)
        self.callbacks.end(self.moment, self.progress.step)
        self._report(newest, final=True)
        self.ports.beat(self.progress.step, "outside")
        return self._result(status, time.perf_counter() - self.started_s, best, newest)

    def _start_profile(self) -> None:
        if not self.job.train.profile:
            return
        left = self.last_step - self.progress.step
        run = self.ports.run if self.engine.rank.is_main else None
        self.profiler = StepProfiler(self.engine.rank.is_main, run, left)
        self.pipeline = PipelineProfiler(self.engine.model.pipeline, run, self.ports.recorder, left)

    def _status_at_start(self) -> str:
        """A resumed training may have been over before it was killed; then it takes no step more."""
        if self.progress.step >= self.last_step:
            return "finished"
        return "early_stopped" if self.progress.should_stop_early(self.job.train.monitor) else "running"

    def advance(self) -> str:
        """Take one step; return running, stopped, early_stopped or finished."""
        progress, monitor = self.progress, self.job.train.monitor
        self.ports.beat(progress.step, "step")
        begun = time.perf_counter()
        outcome = self.pipeline.take(lambda: self.stepper.step(progress.step), progress.step + 1)
        self.clock.add(time.perf_counter() - begun)
        progress.step += 1
        self._count_skips(outcome)
        self.profiler.step()
        stop = self._log(outcome)
        self.callbacks.step_end(self.moment, progress.step)
        best = False
        if self.batch.due(self.batch.eval_every_steps, progress.step):
            best = self._evaluate()
            stop = self._judged() or stop
        early = progress.should_stop_early(monitor)
        if best or self.batch.due(self.batch.save_every_steps, progress.step):
            self._save(best=best)
        if progress.step >= self.last_step:
            return "finished"
        return "early_stopped" if early else ("stopped" if stop else "running")

    def _count_skips(self, outcome: StepOutcome) -> None:
        progress = self.progress
        progress.skipped_in_a_row = 0 if outcome.finite else progress.skipped_in_a_row + 1
        progress.skipped_steps += not outcome.finite
        if progress.skipped_in_a_row > self.job.train.max_skipped_steps:
            raise TrainError(
                f"the gradient norm was {outcome.grad_norm} in {progress.skipped_in_a_row} steps in a row, "
                f"last in step {progress.step}",
                hint="lower optim.lr, set optim.clip_norm, train in fp32; the last checkpoint holds the weights before",
            )

    def _log(self, outcome: StepOutcome) -> bool:
        """Record at logged steps; say whether all ranks agree to stop."""
        step = self.progress.step
        logged = step % self.job.track.every_steps == 0 or step == self.batch.total_steps
        if not logged and self.synced and not self.clock.is_slow:
            return False
        self.synced = True
        asked = self.engine.rank.is_main and self.ports.should_stop()
        mine = [outcome.loss_share, float(asked), self.clock.mean_s]
        values = torch.tensor(mine, dtype=torch.float64, device=self.engine.rank.device)
        loss, stop, step_s = sum_over_ranks(values).tolist()
        self.clock.agree(step_s / self.engine.rank.world_size)
        if logged:
            self._record_step(step, loss, outcome)
        return bool(stop > 0)

    def _record_step(self, step: int, loss: float, outcome: StepOutcome) -> None:
        if outcome.finite and not math.isfinite(loss):
            raise TrainError(
                f"the loss was {loss} in step {step} though its gradient was finite",
                hint="look for a division by zero or a logarithm of zero in the loss or in the data",
            )
        step_s = self.clock.lap()
        experts = self.engine.balance.figures()
        if experts.loads and is_drawn(step, self.job.track.every_steps, self.batch.total_steps):
            self.ports.recorder.record("experts", step=step, loads=experts.loads)
        self.ports.recorder.metrics(
            step,
            {
                "train/loss": loss,
                "train/grad_norm": outcome.grad_norm,
                "train/lr": outcome.rate,
                "train/epoch": self.batch.epoch_after(step),
                "perf/step_s": step_s,
                "perf/samples_per_s": self.batch.global_batch / step_s,
                **experts.metrics,
            },
        )

    def _evaluate(self) -> bool:
        step = self.progress.step
        self.ports.beat(step, "eval")
        found = {f"val/{name}": value for name, value in evaluate(self.engine, "val").items()}
        if not found:
            return False
        self.ports.recorder.metrics(step, found)
        self.callbacks.evaluate(self.moment, step, found)
        return self.progress.judge(found, self.job.train.monitor)

    def _judged(self) -> bool:
        """Tell whoever compares this run with others how far it is; say whether all ranks are to stop."""
        if self.ports.judge is None:
            return False
        asked = self.engine.rank.is_main and self.ports.judge(self.progress.step, self.progress.last_metrics)
        stop = torch.tensor([float(asked)], dtype=torch.float64, device=self.engine.rank.device)
        return bool(sum_over_ranks(stop).item() > 0)

    def _save(self, *, best: bool) -> None:
        step = self.progress.step
        self.ports.beat(step, "checkpoint")
        self.progress.train_s = time.perf_counter() - self.started_s
        self.progress.step_s = self.clock.settled_s or self.progress.step_s
        blocked = self.saver.save(self.engine, self.progress, best=best)
        self.blocked_s += blocked
        self.saved_at = step
        self.ports.recorder.metrics(step, {"checkpoint/blocked_s": blocked})
        self._report()

    def _report(self, checkpoint: str | None = None, *, final: bool = False) -> None:
        step = self.progress.step
        metrics = {**self.progress.last_metrics, "step": float(step)}
        self.ports.report(StepReport(step, metrics, checkpoint, final, self.clock.agreed_total_s))

    def _result(self, status: str, train_s: float, best: str | None, newest: str | None) -> FitResult:
        progress = self.progress
        return FitResult(
            status=status,
            step=progress.step,
            total_steps=self.batch.total_steps,
            epoch=self.batch.epoch_after(progress.step),
            metrics=progress.last_metrics,
            best_step=progress.best_step,
            best_metrics=progress.best_metrics,
            best_checkpoint=best,
            last_checkpoint=newest,
            skipped_steps=progress.skipped_steps,
            train_s=train_s,
            step_s=self.clock.settled_s or progress.step_s,  # a resumed training may have no step left to take
            checkpoint_blocked_s=self.blocked_s,
        )


class _Clock:
    """Seconds per step: since the last record, the mean that all ranks agreed on, and that of all but the first."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._steps = 0
        self._agreed_s = 0.0
        self._unagreed = 0
        self._first_s: float | None = None
        self._later_s = 0.0
        self._later = 0
        self.agreed_total_s = 0.0

    def add(self, seconds: float) -> None:
        """Count a step."""
        self._seconds += seconds
        self._steps += 1
        self._unagreed += 1
        if self._first_s is None:
            self._first_s = seconds
        else:
            self._later_s += seconds
            self._later += 1

    @property
    def settled_s(self) -> float:
        """Mean seconds of the steps after the first; those of the first when it was the only one, 0 without any."""
        return self._later_s / self._later if self._later else self._first_s or 0.0

    @property
    def mean_s(self) -> float:
        """Mean seconds per step since the last record, on this rank."""
        return self._seconds / max(1, self._steps)

    @property
    def is_slow(self) -> bool:
        """Say whether steps are slow by the agreed mean; equal on every rank, since what follows is collective."""
        return self._agreed_s > _SLOW_STEP_S

    def agree(self, seconds: float) -> None:
        """Take note of the mean over ranks."""
        self._agreed_s = seconds
        self.agreed_total_s += seconds * self._unagreed
        self._unagreed = 0

    def lap(self) -> float:
        """Return the mean since the last call and start anew."""
        mean = self.mean_s
        self._seconds, self._steps = 0.0, 0
        return max(mean, 1e-9)
