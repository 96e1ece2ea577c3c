"""Two thin layers in place of one: nearest in the directions that inputs have, and as many weights as planned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from orchestrator.compress.base import State
from orchestrator.compress.factors import factors, rank_of, thin
from orchestrator.compress.lowrank import Config, LowRank
from orchestrator.compress.pipeline import compress
from orchestrator.compress.targets import input_moments, weighted_layers
from orchestrator.errors import ExportError

from .making import RESNET, context_of, in_memory, make_job, make_trained
from .test_structure import MODELS, job_for, make

WIDE = {"use": "resnet", "channels": [32, 64], "depths": [1, 1]}


def test_whitened_factors_are_the_best_of_their_rank() -> None:
    """Beside gradient-free alternatives: plain truncation, and least squares of the right factor for its left one."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(10, 10, generator=generator, dtype=torch.float64)
    x_NI = torch.randn(500, 10, generator=generator, dtype=torch.float64) @ mix
    weight = torch.randn(8, 10, generator=generator)

    def loss(left: torch.Tensor, right: torch.Tensor) -> float:
        return float((x_NI @ (left.double() @ right.double() - weight.double()).T).square().sum())

    moment = x_NI.T @ x_NI / len(x_NI)
    left, right = factors(weight, 4, moment)
    plain = factors(weight, 4, None)
    assert left.shape == (8, 4)
    assert right.shape == (4, 10)
    assert loss(left, right) < 0.9 * loss(*plain)
    wanted = x_NI @ weight.double().T
    _, sizes, _ = torch.linalg.svd(wanted, full_matrices=False)
    least = float(sizes[4:].square().sum())  # no product of rank 4 can come nearer (Eckart, Young 1936)
    assert loss(left, right) == pytest.approx(least, rel=1e-3)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Linear(12, 9), torch.rand(5, 12)),
        (nn.Linear(12, 9, bias=False), torch.rand(2, 5, 12)),
        (nn.Conv2d(4, 9, 3, stride=2, padding=1), torch.rand(2, 4, 8, 8)),
        (nn.Conv2d(4, 9, (3, 1), padding=(1, 0), dilation=(2, 1), bias=False), torch.rand(2, 4, 8, 8)),
    ],
)
def test_at_full_rank_nothing_changes(layer: nn.Linear | nn.Conv2d, inputs: torch.Tensor) -> None:
    full = min(layer.weight.flatten(1).shape)
    moments = input_moments(nn.Sequential(layer), {"0": layer}, inputs)
    for moment in (None, moments["0"]):
        torch.testing.assert_close(thin(layer, full, moment)(inputs), layer(inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["vit", "transformer", "mlp"])
def test_half_of_the_weights_go_and_the_answer_keeps_its_shape(name: str) -> None:
    trained, context = make(name, "mlp")
    change = LowRank(Config()).apply(in_memory(trained), context)
    model = change.state.model
    inputs, _ = context.calibration()
    assert model(inputs[:2]).shape == trained.model(inputs[:2]).shape
    ranks = change.facts["ranks"]
    for path, rank in ranks.items():
        outputs, width = trained.model.get_submodule(path).weight.flatten(1).shape  # type: ignore[union-attr]
        assert rank == rank_of(torch.Size((outputs, width)), 0.5)
        made = sum(part.weight.numel() for part in model.get_submodule(path))  # type: ignore[attr-defined]
        assert made <= 0.5 * outputs * width
    assert list(weighted_layers(trained.model))[-1] not in ranks, "the last layer stays"


def test_whitening_keeps_the_answers_nearer(tmp_path: Path) -> None:
    trained = make_trained(make_job(WIDE, ({"use": "lowrank"}, {"use": "export"})), epochs=2)
    context = context_of(trained, tmp_path)
    inputs, _ = context.calibration()
    wanted = trained.model(inputs)
    errors = []
    for whiten in (False, True):
        model = LowRank(Config(ratio=0.4, whiten=whiten)).apply(in_memory(trained), context).state.model
        errors.append(float((model(inputs) - wanted).norm()))
    assert errors[1] < errors[0]


def test_layers_too_small_to_gain_are_named_and_masks_are_refused(tmp_path: Path) -> None:
    trained = make_trained(make_job(RESNET, ({"use": "lowrank"}, {"use": "export"})), epochs=0)
    context = context_of(trained, tmp_path)
    change = LowRank(Config(ratio=0.9)).apply(in_memory(trained), context)
    assert change.notes == ("left as they are, too small to gain: layers.stem.conv",)
    masked = State("module", trained.model, masks={"layers.stem.conv.weight": torch.ones(16, 1, 3, 3).bool()})
    with pytest.raises(ExportError, match="put lowrank before them"):
        LowRank(Config()).apply(masked, context)
    with pytest.raises(ExportError, match="no layer is large enough"):
        LowRank(Config(ratio=0.9999)).apply(in_memory(trained), context)


@pytest.mark.slow
def test_a_model_of_thin_layers_becomes_a_file_that_holds(tmp_path: Path) -> None:
    assert MODELS["vit"]["use"] == "vit"
    job = job_for("vit", {"use": "lowrank", "ratio": 0.6})
    outcome = compress(make_trained(job, epochs=0), tmp_path / "compress")
    assert outcome.ok, outcome.error
    assert outcome.checked["size_ratio"] > 1.8
