"""One straight line cannot separate XOR, a hidden layer can: both trained, with every seed tried."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from orchestrator.models import mlp, perceptron
from orchestrator.models.perceptron.model import Perceptron
from orchestrator.testing.models import seeded

X_BF = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
XOR_B1 = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
AND_B1 = torch.tensor([[0.0], [0.0], [0.0], [1.0]])


def trained(module: nn.Module, targets_B1: torch.Tensor, seed: int, steps: int = 150) -> nn.Module:
    for name, parameter in module.named_parameters():
        mlp.init_parameter(name, parameter, seeded(name, seed))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(module(X_BF), targets_B1).backward()
        optimizer.step()
    return module


def num_right(module: nn.Module, targets_B1: torch.Tensor) -> int:
    with torch.no_grad():
        return int(((module(X_BF) > 0).float() == targets_B1).sum())


@pytest.mark.parametrize("seed", range(3))
def test_the_perceptron_learns_and_but_never_xor(seed: int) -> None:
    module = perceptron.build(perceptron.Config(inputs=2))
    assert num_right(trained(module, AND_B1, seed), AND_B1) == 4
    assert num_right(trained(module, XOR_B1, seed), XOR_B1) < 4
    assert binary_cross_entropy_with_logits(module(X_BF), XOR_B1) > 0.69  # ln 2 = 0.693: no better than a coin


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_the_mlp_learns_xor_whatever_the_bend(activation: str) -> None:
    for seed in range(2):
        config = mlp.Config(inputs=2, hidden=(8,), outputs=1, activation=activation)  # type: ignore[arg-type]
        assert num_right(trained(mlp.build(config), XOR_B1, seed), XOR_B1) == 4, f"seed {seed}"


def test_without_a_hidden_layer_the_mlp_is_a_perceptron_again() -> None:
    module = trained(mlp.build(mlp.Config(inputs=2, hidden=(), outputs=1)), XOR_B1, seed=0)
    assert num_right(module, XOR_B1) < 4


def test_the_perceptron_predicts_with_a_step() -> None:
    module = trained(perceptron.build(perceptron.Config(inputs=2)), AND_B1, seed=0)
    assert isinstance(module, Perceptron)
    assert module.predict(X_BF).flatten().tolist() == [0, 0, 0, 1]
