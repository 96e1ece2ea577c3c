"""A step of the supernet: which nets it trains, and that its gradient is the sum of theirs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from orchestrator import plugins
from orchestrator.spec.base import Use
from orchestrator.supernet.lesson import lesson_sum
from orchestrator.supernet.model import Part
from orchestrator.supernet.page import Nets
from orchestrator.supernet.sandwich import SandwichStepper, nets_of_step
from orchestrator.train.build import construct_model
from orchestrator.train.loss import BinaryCrossEntropy, CrossEntropy, MeanSquaredError
from tests.supernet.nets import NETS, PARTS, engine_of, job_data


def test_every_step_trains_the_smallest_and_draws_the_others_alike_when_asked_again() -> None:
    rows = [nets_of_step(6, 2, seed=0, step=step) for step in range(200)]
    assert all(row[0] == 0 and len(set(row)) == 3 for row in rows)
    assert {number for row in rows for number in row} == set(range(6))
    assert rows == [nets_of_step(6, 2, seed=0, step=step) for step in range(200)]
    assert rows != [nets_of_step(6, 2, seed=1, step=step) for step in range(200)]
    assert nets_of_step(2, 5, seed=0, step=0) == [0, 1]
    assert nets_of_step(1, 2, seed=0, step=0) == [0]


@pytest.mark.parametrize("number", range(len(PARTS)))
def test_a_part_computes_what_its_plain_model_does_with_the_cut_weights(number: int) -> None:
    engine = engine_of(job_data(precision="fp64"))
    part = Part(engine.job, Use.model_validate(PARTS[number]), dict(engine.model.module.named_parameters())).eval()
    plain = construct_model(engine.job.model_copy(update={"model": part.net})).double().eval()
    plain.load_state_dict({name: each.detach() for name, each in part.weights().items()})
    images = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(part(images), plain(images), rtol=0, atol=1e-12)
    assert sum(each.numel() for each in part.parameters() if each.requires_grad) == 0


def test_the_widest_part_is_the_wide_net_itself() -> None:
    engine = engine_of(job_data(precision="fp64"))
    part = Part(engine.job, engine.job.model, dict(engine.model.module.named_parameters()))
    images = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(part(images), engine.model.module(images), rtol=0, atol=0)


@pytest.mark.parametrize("distill", [True, False])
def test_the_gradient_of_a_step_is_the_sum_of_those_of_its_nets(distill: bool) -> None:
    nets = Nets(PARTS, num_random=2, distill=distill)
    engine = engine_of(job_data(precision="fp64", accumulate=2))
    stepper = SandwichStepper(engine, nets)
    _, norm = stepper.backward(3)
    got = {name: each.grad for name, each in engine.model.module.named_parameters()}

    other = engine_of(job_data(precision="fp64"))
    whole = dict(other.model.module.named_parameters())
    pairs = stepper.microbatches(3)
    images, labels = torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])
    answers = other.model.module(images)
    total = cross_entropy(answers, labels)
    for number in nets_of_step(len(PARTS), 2, seed=0, step=3):
        outputs = Part(other.job, nets.uses[number], whole)(images)
        total = total + cross_entropy(outputs, answers.detach().float().softmax(-1).double() if distill else labels)
    total.backward()
    for name, each in whole.items():
        assert (each.grad is None) == (got[name] is None), name
        if each.grad is not None:
            torch.testing.assert_close(got[name], each.grad, rtol=1e-5, atol=1e-7)
    assert float(norm) == pytest.approx(
        float(sum(each.grad.square().sum() for each in whole.values() if each.grad is not None)) ** 0.5, rel=1e-5
    )


def test_a_shorter_net_has_a_classifier_that_the_wide_net_does_not_use() -> None:
    engine = engine_of(job_data())
    names = [name for name, _ in engine.model.module.named_parameters() if name.startswith("exits.")]
    assert len(names) == 2
    assert {name.rpartition("layers.")[2] for name in names} == {"head.weight", "head.bias"}
    assert sum(each.numel() for each in engine.model.module.parameters()) == sum(
        group_parameter.numel() for group in engine.optimizer.param_groups for group_parameter in group["params"]
    )


def loss_of(kind: Any, **options: Any) -> Any:
    return kind.build(plugins.build_config(kind.Config, options))


def test_parts_learn_the_answers_and_not_the_targets() -> None:
    torch.manual_seed(0)
    outputs, answers = torch.randn(4, 3, 5), torch.randn(4, 3, 5)
    targets = torch.tensor([[0, 1, -1], [2, -1, 3], [4, 0, 0], [1, 1, 1]])
    kept = targets.flatten() != -1
    wanted = cross_entropy(outputs.flatten(0, 1)[kept], answers.flatten(0, 1)[kept].softmax(-1), reduction="sum")
    torch.testing.assert_close(lesson_sum(loss_of(CrossEntropy, ignore_index=-1), outputs, answers, targets), wanted)
    one = lesson_sum(loss_of(MeanSquaredError), torch.zeros(4, 1), torch.full((4, 1), 2.0), torch.zeros(4))
    assert float(one) == 16.0
    logits = torch.tensor([0.3, -2.0])
    wanted = nn.functional.binary_cross_entropy_with_logits(logits, torch.sigmoid(logits), reduction="sum")
    torch.testing.assert_close(lesson_sum(loss_of(BinaryCrossEntropy), logits, logits, torch.zeros(2)), wanted)


class Absolute:
    """A loss of a user's own."""

    def sum(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).abs().sum()

    def count(self, targets: torch.Tensor) -> int | None:
        return None


def test_a_loss_of_ones_own_is_taken_on_the_targets() -> None:
    assert float(lesson_sum(Absolute(), torch.tensor([1.0, 2.0]), torch.tensor([5.0, 5.0]), torch.zeros(2))) == 3.0
    assert NETS.uses[0].use == "cnn"
