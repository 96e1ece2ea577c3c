"""The sandwich rule (Yu & Huang 2019; BigNAS, Yu et al. 2020): every step trains the widest net, the smallest, others.

Gradients of all of them are added up before the one update, so that both ends and what lies between get better at once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

from torch import Tensor

from orchestrator.spec.base import Use
from orchestrator.supernet.lesson import lesson_sum
from orchestrator.supernet.model import Part
from orchestrator.supernet.page import Nets
from orchestrator.train.engine import Engine
from orchestrator.train.state import optimizer_state
from orchestrator.train.step import StepOutcome, Stepper

_KEPT_PARTS = 64


def nets_of_step(num_nets: int, num_random: int, seed: int, step: int) -> list[int]:
    """Return which parts a step trains beside the widest net: number 0, the smallest, then drawn ones, none twice.

    A function of (seed, step), so that a resumed training draws the same.
    """
    drawn = random.Random(f"{seed}/sandwich/{step}").sample(range(1, num_nets), min(num_random, num_nets - 1))
    return [0, *drawn]


class SandwichStepper(Stepper):
    """Takes steps of the widest net and of parts of it at once; all else about a step is as usual."""

    def __init__(self, engine: Engine, nets: Nets) -> None:
        super().__init__(engine)
        self._asked = nets
        self._seed = engine.job.train.seed
        self._nets: Sequence[Use] = nets.uses
        whole = dict(engine.model.module.named_parameters())
        self._part = lru_cache(maxsize=_KEPT_PARTS)(lambda number: Part(engine.job, self._nets[number], whole))
        self.now: list[int] = []
        optimizer_state(engine)  # made now: an exit that no step has used yet would have none to save

    def part(self, number: int) -> Part:
        """Return a part as a module, in training."""
        found: Part = self._part(number)
        return found.train()

    def backward(self, step: int) -> tuple[Tensor, Tensor]:
        """Compute the step's gradients (see `Stepper.backward`)."""
        self._draw(step)
        return super().backward(step)

    def step(self, step: int) -> StepOutcome:
        """Take the step numbered `step`."""
        self._draw(step)
        return super().step(step)

    def _draw(self, step: int) -> None:
        self.now = nets_of_step(len(self._nets), self._asked.num_random, self._seed, step)

    def one_pass(self, inputs: Tensor, targets: Tensor, scale: float, *, last: bool) -> Tensor:
        """Add the gradients of the widest net on the targets, and of the step's parts on its answers."""
        engine = self.engine
        with engine.autocast():
            answers = engine.model(inputs)
            total = engine.loss.sum(answers, targets)
        (total * scale).backward()  # type: ignore[no-untyped-call]
        answers = answers.detach()
        for number in self.now:
            with engine.autocast():
                outputs = self.part(number)(inputs)
                if self._asked.distill:
                    loss = lesson_sum(engine.loss, outputs, answers, targets)
                else:
                    loss = engine.loss.sum(outputs, targets)
            (loss * scale).backward()  # type: ignore[no-untyped-call]
        return total.detach()
