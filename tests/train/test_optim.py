"""Parameter groups: the first pattern that matches wins, and nothing is silently ignored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.errors import JobFileError
from orchestrator.spec.job import OptimSection
from orchestrator.train.optim import build_optimizer


def build(**keys: Any) -> torch.optim.Optimizer:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    return build_optimizer(OptimSection.model_validate(keys), model.named_parameters())


def test_without_groups_all_parameters_are_together() -> None:
    groups = build(use="adamw", lr=0.1).param_groups
    assert [len(group["params"]) for group in groups] == [4]
    assert groups[0]["lr"] == 0.1


def test_groups_take_what_matches_first_with_keys_of_their_own() -> None:
    groups = build(
        use="adamw",
        lr=0.1,
        weight_decay=0.5,
        groups=[{"match": "*.bias", "weight_decay": 0.0}, {"match": "1.*", "lr": 0.01}],
    ).param_groups
    assert [(len(group["params"]), group["lr"], group["weight_decay"]) for group in groups] == [
        (1, 0.1, 0.5),
        (2, 0.1, 0.0),
        (1, 0.01, 0.5),
    ]


def test_a_group_that_matches_nothing_is_refused() -> None:
    with pytest.raises(JobFileError, match=r"no trainable parameter matches 'head\.\*'") as caught:
        build(groups=[{"match": "head.*", "lr": 0.1}])
    assert "it has 0.weight, 0.bias" in caught.value.hint


def test_a_key_that_the_optimiser_does_not_take_is_refused_in_section_and_group() -> None:
    with pytest.raises(JobFileError, match="momentum"):
        build(use="adamw", momentum=0.9)
    with pytest.raises(JobFileError, match="nesterov"):
        build(use="adamw", groups=[{"match": "*", "nesterov": True}])


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor"])
def test_every_optimiser_lowers_a_quadratic(name: str) -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = build_optimizer(OptimSection.model_validate({"use": name, "lr": 0.05}), [("weight", weight)])
    for _ in range(50):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert float(weight.detach().square().sum()) < 8.0


def test_frozen_parameters_are_left_out() -> None:
    frozen, free = nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.ones(2))
    optimizer = build_optimizer(OptimSection(), [("frozen", frozen), ("free", free)])
    assert optimizer.param_groups[0]["params"][0] is free
