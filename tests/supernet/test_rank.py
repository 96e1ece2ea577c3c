"""Scores of parts: batch norms take their figures from training batches, other nets are left as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from orchestrator.errors import PlanError
from orchestrator.parallel.apply import ParallelModel
from orchestrator.spec.base import Use
from orchestrator.supernet.model import Part, _fill_buffers
from orchestrator.supernet.page import Nets, read_ranking
from orchestrator.supernet.rank import recalibrate, score
from orchestrator.train.engine import Engine
from orchestrator.train.evaluate import evaluate
from orchestrator.train.step import Stepper
from tests.supernet.nets import engine_of, folder_of, job_data
from tests.supernet.test_stage import train

WIDE = {"use": "resnet", "channels": [8, 12], "depths": [2, 2]}
SMALL = {"use": "resnet", "channels": [4, 6], "depths": [1, 1]}


def batches(engine: Engine, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    stepper = Stepper(engine)
    return [pair for step in range(count) for pair in stepper.microbatches(step)]


def part_of(engine: Engine, net: dict[str, Any]) -> Part:
    return Part(engine.job, Use.model_validate(net), dict(engine.model.module.named_parameters()))


def test_batch_norms_take_the_mean_over_the_batches_and_nothing_from_before() -> None:
    engine = engine_of(job_data(WIDE, precision="fp64"), Nets((SMALL, WIDE)))
    part, pairs = part_of(engine, SMALL), batches(engine, 3)
    norm: Any = part.shell.get_submodule("layers.stem.norm")
    norm.running_mean.fill_(100.0)
    assert recalibrate(part, pairs, engine) == 6
    with torch.no_grad():
        conv = part.weights()["layers.stem.conv.weight"]
        means = [torch.nn.functional.conv2d(images, conv, padding=1).mean((0, 2, 3)) for images, _ in pairs]
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0).to(norm.running_mean.dtype))
    assert (norm.momentum, part.training, norm.training) == (0.1, False, False)


def test_a_layer_with_buffers_that_it_cannot_fill_is_refused_not_run_on_whatever_memory_holds() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.full((4,), 2.0))

    with torch.device("meta"):
        net = nn.Sequential(nn.BatchNorm2d(4), Scaled())
    with pytest.raises(PlanError, match=r"layer '1' \(Scaled\) has buffers but no reset_buffers"):
        _fill_buffers(net, torch.device("cpu"))
    figures = net[0].running_var
    assert isinstance(figures, torch.Tensor)
    assert figures.tolist() == [1.0] * 4


def test_a_net_without_batch_norm_is_not_run() -> None:
    engine = engine_of(job_data())
    assert recalibrate(part_of(engine, {"use": "cnn", "channels": [4], "kernel_size": 3}), [], engine) == 0


def test_narrow_parts_of_a_wide_net_decide_how_images_lie_in_memory() -> None:
    """The wide net alone could train channels last on a CPU; its parts of few channels could not."""
    wide = {"use": "resnet", "channels": [32, 48], "depths": [1, 1]}
    assert engine_of(job_data(wide), Nets((SMALL, wide))).memory_format is torch.contiguous_format


def test_a_part_scores_better_with_figures_of_its_own(tmp_path: Path) -> None:
    nets = Nets((SMALL, WIDE), num_random=1)
    run = folder_of(tmp_path / "wide", job_data(WIDE, steps=60), nets)
    assert train(run) == "finished"
    found = read_ranking(run, 2)
    assert found is not None
    engine = engine_of(job_data(WIDE), nets)
    engine.model.module.load_state_dict(load_file(found.file), strict=False)  # figures are no part of what is shared
    part = part_of(engine, SMALL)
    before = evaluate(replace(engine, model=ParallelModel(part, part)), "val")
    after = score(engine, part, batches(engine, nets.recalibrate))
    assert after == pytest.approx(found.scores[0])
    assert after["val/loss"] < before["loss"] - 0.1


def test_parts_of_a_transformer_with_tied_weights_learn_together(tmp_path: Path) -> None:
    wide = {
        "use": "transformer", "seq_len": 32, "dim": 32, "layers": 3, "heads": 4, "kv_heads": 2, "hidden": 64,
        "head_dim": 8, "tied_embeddings": True,
    }  # fmt: skip
    smallest = {**wide, "layers": 1, "heads": 2, "kv_heads": 1, "hidden": 16}
    nets = Nets((smallest, {**wide, "layers": 2}, {**wide, "heads": 2, "dim": 16}, wide))
    text = {"use": "text", "corpus": "python", "seq_len": 32, "max_bytes": 40000}
    losses = []
    for steps in (1, 60):
        run = folder_of(tmp_path / str(steps), {**job_data(wide, steps=steps), "data": text}, nets)
        assert train(run) == "finished"
        found = read_ranking(run, len(nets.models))
        assert found is not None
        assert found.scores[-1] == pytest.approx(found.whole)
        losses.append([each["val/loss"] for each in found.scores])
    assert all(after < before - 1.0 for before, after in zip(*losses, strict=True))
