"""The numbers of the check, in numpy, are those of the engine's losses and metrics, in torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.compress.artifact import loss_of
from orchestrator.compress.measures import fidelity, quality
from orchestrator.errors import ExportError
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.plan.plan import Plan
from orchestrator.spec.job import JobSpec
from orchestrator.train.loss import CrossEntropy, build_loss
from orchestrator.train.metrics import build_metrics


class Doubled(CrossEntropy):
    """Not the loss that it is made of."""

    def sum(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return 2 * super().sum(outputs, targets)


def parts(loss: dict[str, Any], kind: str) -> tuple[JobSpec, Plan]:
    data = {"class": "blobs", "binary": "xor", "value": "regression"}[kind]
    job = JobSpec.model_validate(
        {
            "model": {"use": "mlp", "inputs": 2, "outputs": 1},
            "data": {"use": "synthetic", "kind": data, "classes": 2},
            "train": {"steps": 1, "batch_size": 8, "loss": loss, "monitor": {"metric": "val/loss", "mode": "min"}},
            "cluster": {"gpus_per_worker": 0},
        }
    )
    return job, build_plan(job, Available.local())


def by_the_engine(job: JobSpec, plan: Plan, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    loss = build_loss(job, plan)
    count = loss.count(targets)
    found = {"loss": float(loss.sum(outputs, targets)) / (len(targets) if count is None else count)}
    return found | {
        name: metric.compute(metric.sums(outputs, targets)) for name, metric in build_metrics(job, plan).items()
    }


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def classes(*shape: int, below: int = 3) -> torch.Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(1))


CROSS: dict[str, Any] = {"use": "cross_entropy"}


@pytest.mark.parametrize(
    ("loss", "kind", "outputs", "targets"),
    [
        (CROSS, "class", drawn(40, 3), classes(40)),
        (CROSS, "class", drawn(8, 5, 3), classes(8, 5)),
        (CROSS | {"label_smoothing": 0.2}, "class", drawn(40, 3), classes(40)),
        (CROSS | {"label_smoothing": 0.1}, "class", drawn(8, 5, 3), classes(8, 5)),
        ({"use": "bce"}, "class", drawn(40, 1), classes(40, below=2)),
        ({"use": "bce"}, "binary", drawn(40, 1), classes(40, 1, below=2).float()),
        ({"use": "bce"}, "binary", drawn(40, 4), classes(40, 4, below=2).float()),
        ({"use": "mse"}, "value", drawn(40, 2), drawn(40, 2).flip(0)),
    ],
)
def test_the_check_measures_the_loss_and_the_metrics_of_the_job(
    loss: dict[str, Any], kind: str, outputs: torch.Tensor, targets: torch.Tensor
) -> None:
    job, plan = parts(loss, kind)
    found = quality(outputs.numpy(), targets.numpy(), kind, loss_of(job, plan))
    assert found == pytest.approx(by_the_engine(job, plan, outputs, targets))


@pytest.mark.parametrize("ignored", [-1, -100, 0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_targets_that_the_loss_ignores_are_neither_wrong_nor_right(ignored: int, smoothing: float) -> None:
    outputs, targets = drawn(8, 5, 3), classes(8, 5)
    targets[:, 3:] = ignored
    job, plan = parts(CROSS | {"ignore_index": ignored, "label_smoothing": smoothing}, "class")
    found = quality(outputs.numpy(), targets.numpy(), "class", loss_of(job, plan))
    assert found == pytest.approx(by_the_engine(job, plan, outputs, targets))
    kept = targets != ignored
    assert found["accuracy"] == pytest.approx(float((outputs.argmax(-1) == targets)[kept].double().mean()))


def test_torch_ignores_minus_100_by_itself_and_the_engine_counts_it() -> None:
    outputs, targets = drawn(40, 3), classes(40)
    targets[:7] = -100
    job, plan = parts(CROSS, "class")
    found = quality(outputs.numpy(), targets.numpy(), "class", loss_of(job, plan))
    assert found == pytest.approx(by_the_engine(job, plan, outputs, targets))


def test_a_class_that_the_outputs_do_not_have_is_said() -> None:
    with pytest.raises(ExportError, match="a target is class -1, and the outputs are 3 classes"):
        quality(drawn(4, 3).numpy(), np.array([0, -1, 1, 2]), "class", {})


@pytest.mark.parametrize("kind", ["class", "binary"])
def test_answers_of_one_logit_agree_by_their_sign(kind: str) -> None:
    before = np.array([[1.0], [2.0], [-1.0], [-2.0]])
    assert fidelity(before * [[1], [1], [1], [-1]], before, kind)["agreement"] == 0.75


def test_the_loss_of_a_page_is_the_jobs_and_a_subclass_is_another_one() -> None:
    wanted = {"use": "cross_entropy", "options": {"ignore_index": None, "label_smoothing": 0.1}}
    assert loss_of(*parts(CROSS | {"label_smoothing": 0.1}, "class")) == wanted
    assert loss_of(*parts({"use": "bce"}, "class")) == {"use": "bce", "options": {}}
    job, plan = parts(CROSS, "class")
    name = f"{__name__}:Doubled"
    assert loss_of(
        job.model_copy(update={"train": job.train.model_copy(update={"loss": None})}), replace(plan, loss=name)
    ) == {
        "use": name,
        "custom": True,
    }


def test_a_loss_of_the_jobs_own_code_is_left_out_and_an_accuracy_that_does_not_fit_too() -> None:
    own = {"use": "mine:Loss", "custom": True}
    assert set(quality(drawn(40, 3).numpy(), classes(40).numpy(), "class", own)) == {"accuracy"}
    assert quality(drawn(40, 3, 2).numpy(), classes(40).numpy(), "class", own) == {}
    assert set(quality(drawn(40, 2).numpy(), drawn(40, 2).numpy(), "value", own)) == {"mae"}


def test_a_page_of_before_means_the_loss_that_fits_the_targets() -> None:
    outputs, targets = drawn(40, 3), classes(40)
    job, plan = parts(CROSS, "class")
    assert quality(outputs.numpy(), targets.numpy(), "class", {}) == pytest.approx(
        by_the_engine(job, plan, outputs, targets)
    )
