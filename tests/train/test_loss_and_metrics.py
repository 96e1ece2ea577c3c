"""Losses and metrics are sums over samples, so that parts add up to the whole."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from orchestrator import plugins
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.spec.job import JobSpec
from orchestrator.train.metrics import build_metrics, metric_name

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 0.5], [0.2, 0.1, 0.3]])
CLASSES = torch.tensor([0, 1, 2, 2])


def test_cross_entropy_sums_to_the_mean_times_the_count() -> None:
    loss = plugins.build("losses", "cross_entropy", {})
    assert loss.count(CLASSES) is None
    assert float(loss.sum(LOGITS, CLASSES)) == pytest.approx(4 * float(functional.cross_entropy(LOGITS, CLASSES)))


def test_ignored_targets_do_not_count() -> None:
    loss = plugins.build("losses", "cross_entropy", {"ignore_index": 2})
    assert loss.count(CLASSES) == 2
    assert float(loss.sum(LOGITS, CLASSES)) == pytest.approx(
        2 * float(functional.cross_entropy(LOGITS[:2], CLASSES[:2]))
    )


def test_squared_error_averages_over_a_samples_elements() -> None:
    loss = plugins.build("losses", "mse", {})
    outputs, targets = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.zeros(2, 2)
    assert float(loss.sum(outputs, targets)) == pytest.approx(5.0)
    assert float(loss.sum(torch.tensor([[2.0], [1.0]]), torch.zeros(2))) == pytest.approx(5.0)


def test_binary_cross_entropy_takes_one_logit() -> None:
    loss = plugins.build("losses", "bce", {})
    assert float(loss.sum(torch.zeros(3, 1), torch.tensor([0, 1, 1]))) == pytest.approx(3 * 0.6931472)


@pytest.mark.parametrize(
    ("name", "options", "outputs", "targets", "want"),
    [
        ("accuracy", {}, LOGITS, CLASSES, 0.75),
        ("accuracy", {}, torch.tensor([[1.0], [-1.0]]), torch.tensor([1, 1]), 0.5),
        ("top_k", {"k": 2}, LOGITS, CLASSES, 1.0),
        ("mae", {}, torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 0.0]), 2.0),
        ("r2", {}, torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.0, 2.0, 3.0]), 1.0),
    ],
)
def test_metrics_of_parts_add_up(
    name: str, options: dict[str, int], outputs: torch.Tensor, targets: torch.Tensor, want: float
) -> None:
    metric = plugins.build("metrics", name, options)
    whole = metric.compute(metric.sums(outputs, targets))
    parts = metric.compute(metric.sums(outputs[:1], targets[:1]) + metric.sums(outputs[1:], targets[1:]))
    assert whole == pytest.approx(want)
    assert parts == pytest.approx(want)


@pytest.mark.parametrize(("name", "options"), [("accuracy", {}), ("top_k", {"k": 1})])
def test_targets_that_the_loss_ignores_are_neither_right_nor_wrong(name: str, options: dict[str, int]) -> None:
    job = JobSpec.model_validate(
        {
            "model": {"use": "mlp", "inputs": 2, "outputs": 3},
            "data": {"use": "synthetic", "kind": "blobs", "classes": 3},
            "train": {
                "steps": 1,
                "batch_size": 8,
                "loss": {"use": "cross_entropy", "ignore_index": -1},
                "metrics": [{"use": name, **options}],
            },
            "cluster": {"gpus_per_worker": 0},
        }
    )
    metric = build_metrics(job, build_plan(job, Available.local()))[name]
    sums = metric.sums(LOGITS, torch.tensor([0, -1, 1, -1]))
    assert sums.tolist() == [1, 2]
    assert metric.compute(sums) == 0.5
    assert math.isnan(metric.compute(metric.sums(LOGITS, torch.full((4,), -1)))), "there is no share of nothing"


def test_a_metric_of_ones_own_is_named_after_its_last_part() -> None:
    assert metric_name("accuracy") == "accuracy"
    assert metric_name("my_pkg.scores:F1") == "f1"
