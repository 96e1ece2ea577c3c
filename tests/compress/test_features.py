"""Inner features of a teacher: drawn near through learnt maps that leave no trace, refused where they cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from orchestrator.compress.distill import Config as DistilConfig
from orchestrator.compress.features import Features, chosen
from orchestrator.compress.finetune import Config, Distill, Finetune
from orchestrator.compress.prune import Config as PruneConfig
from orchestrator.compress.prune import Prune
from orchestrator.compress.recover import Lessons
from orchestrator.errors import ExportError, PlanError
from orchestrator.export.weights import plain_copy, state_tensors
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan

from .making import RESNET, context_of, in_memory, make_job, make_trained

STEPS = ({"use": "prune"}, {"use": "finetune"}, {"use": "export"})
BLOCKS = ("layers.block1", "layers.block2")


def test_a_narrower_pupil_comes_nearer_inside_and_keeps_no_map(tmp_path: Path) -> None:
    trained = make_trained(make_job(RESNET, STEPS), epochs=1)
    context = context_of(trained, tmp_path)
    state = Prune(PruneConfig(multiple_of=4)).apply(in_memory(trained), context).state
    names = list(state_tensors(state.model))
    explained = []
    for features in ((), BLOCKS):
        distill = Distill(features=features, features_weight=5.0 if features else 1.0)
        step = Finetune(Config(epochs=3, lr=0.003, distill=distill))
        pupil = step.apply(state, context).state.model
        assert list(state_tensors(pupil)) == names
        assert not any(part._forward_hooks for part in pupil.modules())
        explained.append(unexplained(pupil, trained.model, context.calibration()[0]))
    assert not any(part._forward_hooks for part in trained.model.modules()), "the teacher is left alone"
    assert explained[1] < 0.9 * explained[0], explained


def unexplained(pupil: nn.Module, teacher: nn.Module, inputs: torch.Tensor) -> float:
    """Return how much of the teacher's last block no linear map from the pupil's gives, relative."""
    found = []
    for model in (pupil, teacher):
        twin, kept = plain_copy(model), []
        twin.get_submodule(BLOCKS[1]).register_forward_hook(lambda _, given, output, kept=kept: kept.append(output))
        twin(inputs)
        found.append(kept[0].movedim(1, -1).flatten(0, -2).double())
    mine, theirs = found
    solved = torch.linalg.lstsq(mine, theirs).solution
    return float((mine @ solved - theirs).square().mean() / theirs.square().mean())


def test_auto_takes_every_top_level_layer_but_the_last(tmp_path: Path) -> None:
    trained = make_trained(make_job(RESNET, STEPS), epochs=0)
    assert chosen(trained.model, trained.model, "auto") == ["layers.stem", *BLOCKS, "layers.pool"]
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    assert chosen(plain, plain, "auto") == ["0"]
    with pytest.raises(ExportError, match=r"features names 'layers.block9', which the model does not have"):
        chosen(trained.model, trained.model, ("layers.block9",))


def test_features_that_differ_in_more_than_channels_are_refused(tmp_path: Path) -> None:
    trained = make_trained(make_job(RESNET, STEPS), epochs=0)
    other = make_trained(make_job({**RESNET, "channels": [16, 32, 32], "depths": [1, 1, 1]}, STEPS), epochs=0)
    context = replace(context_of(trained, tmp_path), teacher=other.model)
    assert Features(plain_copy(trained.model), Lessons(other.model, features=BLOCKS), context)
    with pytest.raises(ExportError, match="they differ in more than channels"):
        Features(plain_copy(trained.model), Lessons(halved(plain_copy(trained.model)), features=BLOCKS), context)


def test_a_layer_that_gives_no_tensor_is_refused_by_name(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    class Net(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[1](self[0](x)[0])  # type: ignore[no-any-return]

    net = Net(Pair(), nn.Flatten())
    context = context_of(make_trained(make_job(RESNET, STEPS), epochs=0), tmp_path)
    with pytest.raises(ExportError, match="feature '0' gives tuple, not one tensor"):
        Features(net, Lessons(net, features="auto"), context)


def halved(model: nn.Module) -> nn.Module:
    """Return the model with a first block that halves its images."""
    model.get_submodule("layers").add_module("block1", nn.MaxPool2d(2))
    return model


def test_a_layer_that_the_model_does_not_name_is_refused_before_anything_trains() -> None:
    finetune = {"use": "finetune", "distill": {"features": ["layers.blok1"]}}
    with pytest.raises(PlanError) as caught:
        build_plan(
            make_job(RESNET, ({"use": "prune"}, finetune, {"use": "export"})),
            Available(num_cpus=2.0, num_gpus=0, memory_bytes=8 << 30),
        )
    (problem,) = caught.value.problems
    assert problem.path == "compress.steps.1.distill.features"
    assert "no layer 'layers.blok1'" in problem.message
    with pytest.raises(ValueError, match="features_weight must be above 0"):
        Distill(features="auto", features_weight=0.0)
    for config in (Distill, DistilConfig):
        with pytest.raises(ValueError, match="features_weight means nothing without `features`"):
            config(features_weight=5.0)
