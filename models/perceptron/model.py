"""The perceptron in torch: the sum is trained, the step is taken when it predicts."""

from __future__ import annotations

from torch import Tensor, nn

from ..layered import Layered
from . import Config


class Perceptron(Layered):
    """Returns the sum itself (the logit), for a step has no slope to train on."""

    def predict(self, x: Tensor) -> Tensor:
        """Return 1 where the sum is above 0, else 0; int64 [B, 1]."""
        logits: Tensor = self(x)
        return (logits > 0).long()


def build_perceptron(config: Config) -> Perceptron:
    """Return the layer `sum` with the step as `predict`."""
    return Perceptron({"sum": nn.Linear(config.inputs, 1)})
