"""`use: finetune`: trains the compressed model on the job's data, if wished with the model before as its teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.compress.base import MODULE, Change, Context, State

if TYPE_CHECKING:
    from orchestrator.compress.recover import Lessons


@dataclass(frozen=True)
class Distill:
    """The teacher is the trained model as it was before the first step.

    `weight` of the loss pulls towards its answers, softened by `temperature`; the rest is the job's own loss.
    """

    temperature: float = 4.0
    weight: float = 0.7

    def __post_init__(self) -> None:
        if self.temperature <= 0 or not 0 < self.weight <= 1:
            raise ValueError("temperature must be above 0, weight above 0 and at most 1")


@dataclass(frozen=True)
class Config:
    """Passes over the training split, with the job's optimiser; the rate falls to 0 in half a cosine wave."""

    epochs: float = 10.0
    lr: float | None = None
    batch_size: int | None = None
    distill: Distill | None = None

    def __post_init__(self) -> None:
        if self.epochs <= 0 or (self.lr is not None and self.lr <= 0):
            raise ValueError("epochs and lr must be above 0")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError("batch_size must be at least 1")


def flow(config: Config) -> tuple[str, str]:
    """Return what it takes and gives."""
    return MODULE, MODULE


def build(config: Config) -> Finetune:
    """Return the step."""
    return Finetune(config)


class Finetune:
    """Trains in the compressing process; masks stay exact."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def apply(self, state: State, context: Context) -> Change:
        """Return the model after training."""
        from orchestrator.compress.recover import Lessons

        distill = self.config.distill
        lessons = Lessons(context.teacher, distill.temperature, distill.weight) if distill else None
        return train(state, context, self.config, lessons)


def train(state: State, context: Context, asked: Config, lessons: Lessons | None) -> Change:
    """Return the state after training; what the steps before left exact stays exact."""
    from orchestrator.compress.recover import recover
    from orchestrator.export.weights import plain_copy

    model = plain_copy(state.model)
    done = recover(
        model,
        context,
        epochs=asked.epochs,
        lr=asked.lr,
        batch_size=asked.batch_size,
        lessons=lessons,
        masks=state.masks,
        codes=state.codes,
    )
    after = State(MODULE, plain_copy(model), masks=state.masks, codes=state.codes)
    return Change(after, {"steps": done.steps, "final_loss": done.loss})
