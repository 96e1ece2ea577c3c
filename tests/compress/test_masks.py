"""Zeros where they were asked for: how many, where, kept through training, and made up for by the weights that stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator.compress import masks
from orchestrator.compress.base import State
from orchestrator.compress.finetune import Config as FinetuneConfig
from orchestrator.compress.finetune import Finetune
from orchestrator.compress.masks import sparse_update
from orchestrator.compress.pipeline import Trained
from orchestrator.compress.prune import Config, Prune
from orchestrator.compress.targets import input_moments, weighted_layers
from orchestrator.errors import ExportError, PlanError
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan

from .making import CNN, RESNET, context_of, in_memory, make_job, make_trained

ORDER = ({"use": "prune", "kind": "unstructured"}, {"use": "export"}, {"use": "pack"})


@pytest.fixture(scope="module")
def trained() -> Trained:
    return make_trained(make_job(RESNET, ORDER), epochs=1)


def masked(trained: Trained, folder: Path, **options: Any) -> State:
    return Prune(Config(**options)).apply(in_memory(trained), context_of(trained, folder)).state


def share_of_zeros(state: State) -> float:
    zeros = sum(int((state.model.get_parameter(name) == 0).sum()) for name in state.masks)
    return zeros / sum(mask.numel() for mask in state.masks.values())


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "random"])
def test_the_wished_share_of_all_weights_becomes_zero(trained: Trained, importance: str, tmp_path: Path) -> None:
    state = masked(trained, tmp_path, kind="unstructured", ratio=0.8, importance=importance)
    assert share_of_zeros(state) == pytest.approx(0.8, abs=1e-3)
    for name, mask in state.masks.items():
        weight, old = state.model.get_parameter(name), trained.model.get_parameter(name)
        assert torch.equal(weight, torch.where(mask, old, 0.0))


def test_magnitude_takes_the_least_of_the_whole_model(trained: Trained, tmp_path: Path) -> None:
    state = masked(trained, tmp_path, kind="unstructured", ratio=0.5)
    old = {name: trained.model.get_parameter(name).abs() for name in state.masks}
    gone = torch.cat([old[name][~mask] for name, mask in state.masks.items()])
    kept = torch.cat([old[name][mask] for name, mask in state.masks.items()])
    assert gone.max() <= kept.min()


def test_gradual_pruning_ends_at_the_same_share(trained: Trained, tmp_path: Path) -> None:
    state = masked(trained, tmp_path, kind="unstructured", ratio=0.9, rounds=2, recover_epochs=0.2)
    assert share_of_zeros(state) == pytest.approx(0.9, abs=1e-3)


def test_two_of_every_four_inputs_stay(trained: Trained, tmp_path: Path) -> None:
    change = Prune(Config(kind="2:4")).apply(in_memory(trained), context_of(trained, tmp_path))
    assert change.notes == ("2:4 leaves out layers.stem.conv: inputs are no multiple of 4",)
    assert len(change.state.masks) == len(weighted_layers(trained.model)) - 1
    for mask in change.state.masks.values():
        assert (mask.flatten(1).reshape(-1, 4).sum(1) == 2).all()


@pytest.mark.parametrize(("kind", "ratio"), [("unstructured", 0.6), ("2:4", 0.5)])
def test_weights_that_stay_make_up_for_the_zeros(kind: str, ratio: float, trained: Trained, tmp_path: Path) -> None:
    """The answers stay nearer to the model's own than with zeros alone."""
    inputs, _ = context_of(trained, tmp_path).calibration()
    wanted = trained.model(inputs)
    errors = []
    for update in ("none", "hessian"):
        state = masked(trained, tmp_path, kind=kind, ratio=ratio, update=update)
        assert share_of_zeros(state) == pytest.approx(ratio, abs=0.01)
        errors.append(float((state.model(inputs) - wanted).norm()))
    assert errors[1] < 0.7 * errors[0]


def test_the_update_is_least_squares_over_the_inputs_still_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """With zeros in the first columns only, all others may make up for them: the best that can be."""
    monkeypatch.setattr(masks, "_choose", lambda saliency, kept, kind: kept)
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(12, 12, generator=generator, dtype=torch.float64) + 3 * torch.eye(12, dtype=torch.float64)
    x_NI = torch.randn(4000, 12, generator=generator, dtype=torch.float64) @ mix
    weight = torch.randn(6, 12, generator=generator)
    kept = torch.ones(6, 12, dtype=torch.bool)
    kept[:, :2] = False
    found, mask = sparse_update(weight, x_NI.T @ x_NI / 4000, kept, "unstructured")
    assert torch.equal(mask, kept)
    best = torch.linalg.lstsq(x_NI[:, 2:], x_NI @ weight.double().T).solution.T

    def loss(rows: Tensor) -> float:
        return float((x_NI @ (rows.double() - weight.double()).T).square().sum())

    least = loss(torch.cat([torch.zeros(6, 2, dtype=torch.float64), best], dim=1))
    assert not found[:, :2].any()
    assert least <= loss(found) < 1.05 * least
    assert loss(found) < 0.7 * loss(weight * mask)


def test_moments_are_those_of_what_a_layer_multiplies(trained: Trained, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(48, 2))
    inputs = torch.rand(5, 1, 8, 8)
    moments = input_moments(model, weighted_layers(model), inputs)
    rows = nn.functional.unfold(inputs, 3, padding=1, stride=2).transpose(1, 2).reshape(-1, 9).double()
    torch.testing.assert_close(moments["0"], rows.T @ rows / len(rows))
    hidden = model[0](inputs).flatten(1).double()
    torch.testing.assert_close(moments["2"], hidden.T @ hidden / 5, rtol=1e-5, atol=1e-8)


def test_zeros_are_kept_by_finetuning_and_by_a_second_pruning(trained: Trained, tmp_path: Path) -> None:
    first = masked(trained, tmp_path, kind="2:4")
    context = context_of(trained, tmp_path)
    tuned = Finetune(FinetuneConfig(epochs=0.2)).apply(first, context).state
    second = Prune(Config(kind="unstructured", ratio=0.7)).apply(tuned, context).state
    for name, mask in first.masks.items():
        assert not tuned.model.get_parameter(name)[~mask].any()
        assert not second.masks[name][~mask].any()
        assert not tuned.model.get_parameter(name)[~mask].signbit().any(), "zeros of either sign would not pack"


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 0.7},
        {"ratio": 0.7, "update": "hessian"},
        {"ratio": 0.7, "importance": "taylor"},
        {"ratio": 0.8, "importance": "random", "rounds": 2, "recover_epochs": 0.05},
        {"kind": "2:4"},
        {"kind": "2:4", "update": "hessian"},
        {"ratio": 0.7, "rounds": 2, "recover_epochs": 0.05, "keep": ("block2",)},
        {"ratio": 0.3},
    ],
    ids=["magnitude", "hessian", "taylor", "random", "two", "two-hessian", "kept", "lower"],
)
def test_a_second_pruning_chooses_among_what_the_first_left(
    options: dict[str, Any], trained: Trained, tmp_path: Path
) -> None:
    first = masked(trained, tmp_path, kind="unstructured", ratio=0.5)
    asked = Config(**{"kind": "unstructured", **options})
    change = Prune(asked).apply(first, context_of(trained, tmp_path))
    after = change.state
    assert set(after.masks) == set(first.masks)
    for name, mask in after.masks.items():
        weight, old = after.model.get_parameter(name), first.masks[name]
        assert not weight[~mask].any(), "what is masked is zero"
        assert not (mask & ~old).any(), "what was masked stays masked"
        if asked.kind == "2:4" and not mask[0].numel() % 4:
            open_, kept = (each.flatten(1).reshape(-1, 4).sum(1) for each in (old, mask))
            assert torch.equal(kept, open_.clamp(max=2))
        if any(word in name for word in asked.keep):
            assert torch.equal(mask, old)
    zeros = sum(int((~mask).sum()) for mask in after.masks.values())
    total = sum(mask.numel() for mask in after.masks.values())
    assert change.facts["sparsity"] == zeros / total
    if asked.kind == "unstructured" and not asked.keep:
        assert zeros / total == pytest.approx(max(asked.ratio, 0.5), abs=1e-3)


def test_structural_pruning_after_masks_is_refused(trained: Trained, tmp_path: Path) -> None:
    state = masked(trained, tmp_path, kind="unstructured")
    with pytest.raises(ExportError, match="would not fit the narrower weights"):
        Prune(Config()).apply(state, context_of(trained, tmp_path))


def test_a_ratio_that_empties_a_layer_is_refused_before_anything_trains(trained: Trained, tmp_path: Path) -> None:
    def plan(ratio: float) -> None:
        steps = [{"use": "prune", "kind": "unstructured", "ratio": ratio}, {"use": "export"}]
        build_plan(make_job(RESNET, steps), Available(num_cpus=2.0, num_gpus=0, memory_bytes=8 << 30))

    with pytest.raises(PlanError) as caught:
        plan(0.999)
    (problem,) = caught.value.problems
    assert problem.path == "compress.steps.0.ratio"
    assert "weights for 4 layers: some would have none" in problem.message
    most = float(problem.hint.removeprefix("at most "))
    plan(most)
    masks = masked(trained, tmp_path, kind="unstructured", ratio=most).masks
    assert all(mask.any() for mask in masks.values()), "what is allowed empties no layer, whatever the weights"
    with pytest.raises(ExportError, match=r"the ratio leaves \d weights for 7 layers"):
        masked(trained, tmp_path, kind="unstructured", ratio=0.9999)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"recover_epochs": 2.0}, "recover_epochs is for the training between rounds, and one round has none"),
        ({"kind": "2:4", "ratio": 0.3}, "2:4 takes out half"),
        ({"kind": "unstructured", "multiple_of": 4}, "multiple_of means nothing for unstructured"),
        ({"kind": "channels", "update": "hessian"}, "update: hessian is for unstructured and 2:4"),
        ({"kind": "unstructured", "importance": "taylr"}, "importance of unstructured must be"),
        ({"kind": "unstructured", "update": "hessian", "importance": "random"}, "chooses by its own measure"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Config(**options)


def test_a_word_that_names_no_layer_is_refused(tmp_path: Path) -> None:
    trained = make_trained(make_job(CNN, ORDER), epochs=0)
    with pytest.raises(ExportError, match="keep names 'blok', which is in no layer's path"):
        masked(trained, tmp_path, kind="unstructured", keep=("blok",))
    with pytest.raises(ExportError, match="keep names 'blok', which is in no layer's path"):
        masked(trained, tmp_path, kind="channels", keep=("block1", "blok"))
