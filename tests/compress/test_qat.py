"""Training on the integers: the file holds the trained scales and answers as the model did; at 4 bits it pays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from orchestrator.compress.artifact import as_function
from orchestrator.compress.base import Context, State
from orchestrator.compress.export import Config as ExportConfig
from orchestrator.compress.export import Export
from orchestrator.compress.fakequant import FakeConv2d, FakeLinear, Grid, Range, take_off, wear
from orchestrator.compress.pipeline import Trained, compress
from orchestrator.compress.qat import learn, put_on_grids
from orchestrator.compress.quantise import Config, Qat, Quantise
from orchestrator.errors import PlanError
from orchestrator.export.weights import plain_copy, state_tensors
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.plan.layout import Layout

from .making import CNN, RESNET, context_of, in_memory, make_job, make_trained
from .test_quantise import job as text_job
from .test_ranks import assert_equal

HERE = Available(num_cpus=2.0, num_gpus=0, memory_bytes=8 << 30)
STEPS = ({"use": "export"}, {"use": "quantise"})


@pytest.fixture(scope="module")
def trained() -> Trained:
    return make_trained(make_job(RESNET, STEPS), epochs=3)


def exported(trained: Trained, tmp_path: Path) -> tuple[State, Context]:
    state = Export(ExportConfig()).apply(in_memory(trained), context_of(trained, tmp_path / "export")).state
    return state, context_of(trained, tmp_path / "quantise")


@pytest.mark.parametrize("grid", [Grid(8), Grid(4, 16), Grid(8, 32)], ids=["channel", "four", "eight"])
def test_a_grid_takes_what_lies_on_it_as_it_is(grid: Grid) -> None:
    weight = torch.randn(5, 40)
    once = grid.snap(weight)
    assert not torch.equal(once, weight)
    torch.testing.assert_close(grid.snap(once), once, rtol=1e-5, atol=1e-6)
    values = [len(part.unique()) for part in (once if grid.group is None else once[:, : grid.group])]
    assert max(values) <= 2**grid.bits
    zeros = weight.masked_fill(torch.rand(5, 40) < 0.5, 0.0)
    assert torch.equal(grid.snap(zeros)[zeros == 0], zeros[zeros == 0]), "zeros under a mask stay zero"


def test_layers_on_grids_are_trained_and_become_plain_again() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3))
    names = list(state_tensors(model))
    span = Range(0.0, 1.0)
    assert wear(model[0], Grid(8), span)
    assert wear(model[2], Grid(4, 16))
    assert not wear(nn.ReLU(), Grid(8))
    assert isinstance(model[0], FakeConv2d)
    assert isinstance(model[2], FakeLinear)
    x = torch.rand(2, 1, 8, 8) * 2
    wanted = model(x)
    wanted.square().sum().backward()
    assert float(span.high.grad) != 0, "values above the range pull at its end"
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert take_off(model) == {"0": span}
    assert [type(part) for part in model] == [nn.Conv2d, nn.Flatten, nn.Linear]
    assert list(state_tensors(model)) == names
    torch.testing.assert_close(model[2](model[1](model[0](span(x)))), wanted)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 2.0)])
def test_what_lies_outside_a_range_pulls_at_the_end_that_it_is_beyond(low: float, high: float) -> None:
    span = Range(low, high).double()
    for x, wanted in ((high + 1, (0.0, 1.0)), (low - 1, (1.0, 0.0))):
        span.zero_grad()
        given = torch.tensor([[x]], dtype=torch.float64)
        span(given).sum().backward()
        share = 255**-0.5  # the gradient of one number is brought to a weight's size
        found = [float(end.grad) / share for end in (span.low, span.high) if end.grad is not None]
        assert found == pytest.approx(wanted, abs=0.002), (x, "but for the rounding of what stands for 0")
        inside = span(torch.zeros(1, 1, dtype=torch.float64))
        assert float(inside) == 0.0, "zero lies on the grid"


def test_the_file_holds_the_trained_scales_of_weights_and_activations(trained: Trained, tmp_path: Path) -> None:
    state, context = exported(trained, tmp_path)
    asked = Config(qat=Qat(epochs=0.5, lr=1e-3))
    learnt = learn(state, context, asked, Qat(epochs=0.5, lr=1e-3))
    after = Quantise(asked).apply(state, context).state
    graph = onnx.load(str(after.file())).graph
    stored = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    activations = {
        float(stored[node.input[1]]): int(stored[node.input[2]])
        for node in graph.node
        if node.op_type == "QuantizeLinear" and stored[node.input[1]].ndim == 0
    }
    for name, span in learnt.ranges.items():
        scale, zero = span.scale_and_zero()
        near = min(activations, key=lambda found: abs(found - scale))
        assert near == pytest.approx(scale, rel=1e-5), name
        assert activations[near] == zero
    rows = {tuple(value.shape) for value in stored.values() if value.dtype == np.int8}
    for name, layer in learnt.model.named_modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        weight = layer.weight.numpy()
        assert weight.shape in rows, name
        scales = np.abs(weight).reshape(len(weight), -1).max(1) / 127
        assert any(value.shape == scales.shape and np.allclose(value, scales, rtol=1e-4) for value in stored.values())


def test_the_file_is_as_accurate_as_the_model_that_was_trained_on_its_integers(
    trained: Trained, tmp_path: Path
) -> None:
    state, context = exported(trained, tmp_path)
    asked = Config(qat=Qat(epochs=1, lr=1e-3))
    learnt = learn(state, context, asked, asked.qat or Qat())
    after = Quantise(asked).apply(state, context).state
    rounded = plain_copy(learnt.model)
    for name, layer in rounded.named_modules():
        if name in learnt.ranges:
            wear(layer, Grid(8), learnt.ranges[name])
    inputs, targets = trained.data.splits["test"].batch(torch.arange(len(trained.data.splits["test"])))
    mine, file = rounded(inputs), as_function(after)(inputs)
    accuracy = [float((outputs.argmax(1) == targets).float().mean()) for outputs in (mine, file)]
    assert abs(accuracy[0] - accuracy[1]) < 0.005
    assert float((mine - file).norm() / mine.norm()) < 0.03


@pytest.mark.slow
def test_four_bits_lose_less_when_they_were_trained_on(tmp_path: Path) -> None:
    options: dict[str, Any] = {"group": 128}
    before = make_trained(text_job("int4-weight"), epochs=3)
    lost = {}
    for name, qat in (("after", None), ("aware", {"epochs": 1.0, "lr": 1e-3})):
        job = text_job("int4-weight", **options, **({"qat": qat} if qat else {}))
        job = job.model_copy(update={"compress": job.compress.model_copy(update={"control": qat is not None})})
        outcome = compress(replace(before, job=job), tmp_path / name, timed=False)
        assert outcome.ok, outcome.error
        lost[name] = outcome.checked["metrics"]["loss"] - outcome.control.get(
            "test/loss", outcome.checked["baseline"]["loss"]
        )
    assert lost["aware"] < 0.5 * lost["after"], lost


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["int8-static", "int8-dynamic"])
def test_training_on_integers_gives_the_same_on_two_ranks(trained: Trained, scheme: str, tmp_path: Path) -> None:
    weights = []
    for layout in (Layout(), Layout(replicate=2), Layout(shard=2)):
        context = replace(context_of(trained, tmp_path), layout=layout, dtype="float64")
        state = in_memory(replace(trained, model=plain_copy(trained.model).double()))
        asked = Qat(steps=4, lr=1e-4)
        weights.append(state_tensors(learn(state, context, Config(scheme=scheme), asked).model))
    assert_equal(weights[1], weights[0], 1e-9)
    assert_equal(weights[2], weights[0], 1e-9)


def test_layers_that_read_one_tensor_share_its_range(trained: Trained, tmp_path: Path) -> None:
    model = plain_copy(trained.model)
    put_on_grids(model, Config(), context_of(trained, tmp_path))
    block = model.get_submodule("layers.block2")
    assert block.conv1.inputs is block.shortcut.conv.inputs  # type: ignore[union-attr]
    assert block.conv1.inputs is not block.conv2.inputs  # type: ignore[union-attr]


def test_what_cannot_be_trained_on_integers_is_refused_before_anything_trains() -> None:
    def said(steps: tuple[dict[str, Any], ...], **parallel: int) -> str:
        job = make_job(CNN, steps).model_copy(update={})
        data = job.model_dump(mode="json") | {"parallel": {"replicate": 1, **parallel}}
        with pytest.raises(PlanError) as caught:
            build_plan(type(job).model_validate(data), HERE)
        return "\n".join(f"{each.path}: {each.message}" for each in caught.value.problems)

    aware = {"use": "quantise", "qat": {"epochs": 1}}
    assert "compress.steps.2.qat: training on the grid" in said(({"use": "share"}, {"use": "export"}, aware))
    assert "compress.steps.1.qat.replicate: training after" in said(({"use": "export"}, aware), tensor=2)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Qat(steps=0)
