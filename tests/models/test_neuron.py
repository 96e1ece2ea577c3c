"""The neuron's sum, checked by hand, by exact fractions and by torch."""

from __future__ import annotations

from fractions import Fraction

import torch

from orchestrator.models import neuron

INPUTS = ("8", "5", "22", "-5", "2", "-3")
WEIGHTS = ("5.4", "-10.2", "-0.1", "101.4", "0", "12")


def test_the_textbook_neuron_says_minus_543_exactly() -> None:
    terms = [Fraction(x) * Fraction(w) for x, w in zip(INPUTS, WEIGHTS, strict=True)]
    assert [float(term) for term in terms] == [43.2, -51.0, -2.2, -507.0, 0.0, -36.0]
    assert sum(terms) + 10 == -543


def test_the_model_says_so_too() -> None:
    config = neuron.Config(inputs=6, weights=tuple(map(float, WEIGHTS)), bias=10.0)
    x_BF = torch.tensor([list(map(float, INPUTS))])
    assert abs(neuron.build(config)(x_BF).item() + 543) < 1e-4  # float32 keeps 24 bits
    assert neuron.build(config).double()(x_BF.double()).item() + 543 < 1e-5


def test_without_given_weights_it_starts_from_the_seed() -> None:
    torch.manual_seed(3)
    once = neuron.build(neuron.Config())
    torch.manual_seed(3)
    again = neuron.build(neuron.Config())
    assert torch.equal(once.get_parameter("layers.sum.weight"), again.get_parameter("layers.sum.weight"))
