"""Mixed precision within a budget: bits go where they cost least, the file holds what the table says, or is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array, to_array

from orchestrator.compress import mixed
from orchestrator.compress.mixed import Layer, _write, allocate, grid_in_file
from orchestrator.compress.pipeline import compress
from orchestrator.compress.qat import observed
from orchestrator.compress.quantise import Budget, Config
from orchestrator.compress.report import as_json, table
from orchestrator.compress.runtimes.base import open_folder
from orchestrator.compress.verify import check_artifact
from orchestrator.compress.writers.onnx import slim
from orchestrator.errors import ExportError, PlanError
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan

from .making import RESNET, make_job, make_trained, rewrite
from .test_quantise import job as text_job

HERE = Available(num_cpus=2.0, num_gpus=0, memory_bytes=8 << 30)


def steps(**budget: float) -> tuple[dict[str, Any], ...]:
    return ({"use": "export"}, {"use": "quantise", "scheme": "mixed", "budget": budget})


def test_bits_are_taken_where_a_byte_costs_least() -> None:
    def layers() -> list[Layer]:
        return [
            Layer("tough", ("a",), "MatMul", 64, 64, {8: 0.0001, 4: 0.001}),
            Layer("tender", ("b",), "MatMul", 64, 64, {8: 0.0002, 4: 9.0}),
            Layer("conv", ("c",), "Conv", 64, 64, {8: 0.5}),
        ]

    def chosen(allowed: float) -> list[int]:
        found = layers()
        allocate(found, allowed, 32)
        assert sum(layer.num_bytes(layer.bits, 32) for layer in found) <= allowed
        return [layer.bits for layer in found]

    whole = 3 * 4 * 64 * 64
    assert chosen(whole) == [32, 32, 32]
    assert chosen(whole - 1) == [8, 32, 32]
    assert chosen(30_000) == [8, 8, 32]
    assert chosen(24_000) == [4, 8, 32]
    assert chosen(15_000) == [4, 8, 8]
    assert chosen(10_500) == [4, 4, 8]
    nothing_left = layers()
    allocate(nothing_left, 100, 32)
    assert [layer.bits for layer in nothing_left] == [4, 4, 8]


def test_a_tensor_that_two_layers_read_takes_its_bytes_once_and_is_lowered_for_both() -> None:
    def layers() -> list[Layer]:
        return [
            Layer("embedding", ("a",), "Gather", 64, 64, {8: 0.1, 4: 0.4}, tensor="shared"),
            Layer("head", ("b",), "Gemm", 64, 64, {8: 0.1}, tensor="shared"),
            Layer("other", ("c",), "MatMul", 64, 64, {8: 0.25}, tensor="own"),
        ]

    found, once = layers(), 4 * 64 * 64
    assert allocate(found, 2 * once, 32) == 2 * once
    assert [layer.bits for layer in found] == [32, 32, 32], "as large as the file that there is"
    whole = allocate(found, 2 * once - 1, 32)
    assert [layer.bits for layer in found] == [32, 32, 8], "0.25 for three quarters of it, not 0.2 for half"
    assert whole == once + found[2].num_bytes(8, 32)
    allocate(found, once, 32)
    assert [layer.bits for layer in found] == [8, 8, 8], "one alone would add bytes"
    allocate(found, 13_000, 32)
    assert [layer.bits for layer in found] == [4, 8, 8]


def test_a_file_larger_than_estimated_takes_more_bits_until_none_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [Layer(f"layer{at}", (f"node{at}",), "MatMul", 64, 64, {8: 0.1 + at}) for at in range(3)]
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    source.write_bytes(bytes(3 * 4 * 64 * 64))
    written: list[list[int]] = []

    def write(_: Path, target: Path, found: list[Layer], *given: Any) -> None:
        written.append([layer.bits for layer in found])
        target.write_bytes(bytes(int(sum(layer.num_bytes(layer.bits, 32) for layer in found)) + 9_300))

    monkeypatch.setattr(mixed, "_layers", lambda source, model: layers)
    monkeypatch.setattr(mixed, "_measure", lambda *given: None)
    monkeypatch.setattr(mixed, "_write", write)
    monkeypatch.setattr(mixed, "slim", lambda path: None)
    nothing = cast(Any, None)

    def quantised(wanted: int) -> list[int]:
        written.clear()
        config = Config(scheme="mixed", budget=Budget(bytes=wanted))
        return [row["bits"] for row in mixed.quantise_mixed(source, target, nothing, nothing, config, 0)]

    assert quantised(46_700) == [8, 8, 32]
    assert written == [[8, 32, 32], [8, 8, 32]], "a budget missed by little is not tried again with the same bits"
    with pytest.raises(ExportError, match="with as few bits as the runtime has kernels for"):
        quantised(23_000)
    assert written[-1] == [8, 8, 8]


def test_a_budget_is_for_the_file_without_what_no_runtime_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quantisers copy weights and keep shapes: bytes of the file that is handed on are those that count."""
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    stored = [from_array(each, name) for name, each in (("one", weight), ("copy", weight), ("other", -weight))]
    nodes = [
        helper.make_node("MatMul", [given, name], [out], out)
        for given, name, out in (("inputs", "one", "a"), ("a", "copy", "b"), ("b", "other", "out"))
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 64]) for name in ("inputs", "out")]
    graph = helper.make_graph(nodes, "layers", ends[:1], ends[1:], stored, doc_string="x" * 9000)
    source, target, lean = (tmp_path / f"{name}.onnx" for name in ("source", "target", "lean"))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), source)
    lean.write_bytes(source.read_bytes())
    slim(lean)
    layers = [
        Layer(name, nodes, "MatMul", 64, 64, {8: cost}, tensor=name)
        for name, nodes, cost in (("one", ("a", "b"), 9.0), ("other", ("out",), 0.1))
    ]
    monkeypatch.setattr(mixed, "_layers", lambda source, model: layers)
    monkeypatch.setattr(mixed, "_measure", lambda *given: None)
    nothing = cast(Any, None)

    def quantised(wanted: int) -> list[int]:
        config = Config(scheme="mixed", budget=Budget(bytes=wanted))
        rows = mixed.quantise_mixed(source, target, nothing, nothing, config, 0)
        assert target.stat().st_size <= wanted
        return [row["bits"] for row in rows]

    assert lean.stat().st_size < source.stat().st_size - 9000 - weight.nbytes
    assert quantised(lean.stat().st_size) == [32, 32]
    assert quantised(lean.stat().st_size - 1) == [32, 8]
    assert quantised(target.stat().st_size) == [32, 8]


@pytest.mark.parametrize(("operator", "bits"), [("Gather", 8), ("Gather", 4), ("MatMul", 8), ("MatMul", 4)])
def test_what_a_layer_bears_is_measured_on_the_grid_of_the_file(operator: str, bits: int, tmp_path: Path) -> None:
    numbers = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(48, 32, generator=numbers) * torch.rand(48, 1, generator=numbers) + 0.3  # rows unalike
    table = operator == "Gather"
    stored = from_array((weight_OI if table else weight_OI.T.contiguous()).numpy(), "weight")
    kind, shape = (TensorProto.INT64, [48]) if table else (TensorProto.FLOAT, [32, 32])
    node = helper.make_node(operator, ["weight", "inputs"] if table else ["inputs", "weight"], ["out"], "node")
    given = [helper.make_tensor_value_info("inputs", kind, shape)]
    out = [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
    graph = helper.make_graph([node], "layer", given, out, [stored])
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), source)
    layer = Layer("layer", ("node",), operator, 48, 32, bits=bits)
    _write(source, target, [layer], cast(Any, None), Config(scheme="mixed", budget=Budget(size_ratio=2.0)))
    found = open_folder(target.parent, "onnx", [target.name])(np.arange(48) if table else np.eye(32, dtype=np.float32))
    wanted = grid_in_file(operator, bits, 32).snap(weight_OI)
    torch.testing.assert_close(torch.from_numpy(found if table else found.T), wanted, rtol=0, atol=2e-4)


@pytest.mark.slow
def test_a_network_of_convolutions_keeps_its_budget_and_the_file_what_the_table_says(tmp_path: Path) -> None:
    job = make_job(RESNET, steps(size_ratio=2.0))
    outcome = compress(make_trained(job, epochs=1), tmp_path / "compress", timed=False)
    assert outcome.ok, outcome.error
    assert 2.0 <= outcome.checked["size_ratio"] < 3.5, "no smaller than asked: what is left stays exact"
    rows = outcome.steps[-1].facts["layers"]
    assert {row["bits"] for row in rows} == {8, 32}
    assert all(set(row["losses"]) == {8} for row in rows)
    eight = sum(row["weights"] for row in rows if row["bits"] == 8)
    assert eight <= outcome.checked["weights_by_bits"]["8"] <= eight + 200
    assert any("layers.block2.conv2" in line and "8: " in line for line in table(outcome))
    assert as_json(outcome)["steps"][-1]["facts"]["layers"] == rows
    place = tmp_path / "compress" / "artifact"
    rewrite(place, weights={"8": eight + 1000, "32": 0})
    with pytest.raises(ExportError, match="mixed precision in name only"):
        check_artifact(place)


@pytest.mark.parametrize("algorithm", ["minmax", "percentile", "entropy"])
def test_what_a_static_layer_bears_is_measured_with_the_ranges_of_the_file(algorithm: str, tmp_path: Path) -> None:
    """Of few samples with outliers: the range by which the loss is measured is the one that the tool writes."""
    numbers = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 8, generator=numbers)
    inputs[0, 0] = 100.0
    weight = torch.randn(4, 8, generator=numbers)
    stored = [from_array(weight.numpy(), "weight"), from_array(np.zeros(4, dtype=np.float32), "bias")]
    node = helper.make_node("Gemm", ["inputs", "weight", "bias"], ["out"], "node", transB=1)
    given = [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["batch", 8])]
    out = [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 4])]
    graph = helper.make_graph([node], "layer", given, out, stored)
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), source)
    context = cast(Any, SimpleNamespace(calibration=lambda: (inputs, None)))
    layer = Layer("layer", ("node",), "Gemm", 4, 8, bits=8)
    config = Config(scheme="mixed", budget=Budget(size_ratio=2.0), algorithm=cast(Any, algorithm))
    _write(source, target, [layer], context, config)
    scale = next(float(to_array(each)) for each in onnx.load(target).graph.initializer if each.name == "inputs_scale")
    found = mixed._ranges(source, [layer], context, algorithm)
    if algorithm == "minmax":
        found = {"layer": observed_alone(inputs)}
    assert found["layer"].scale_and_zero()[0] == pytest.approx(scale, rel=1e-4)


def observed_alone(inputs: torch.Tensor) -> Any:
    layer = torch.nn.Linear(inputs.shape[1], 4)
    return observed(torch.nn.Sequential(layer), {"layer": layer}, inputs)["layer"]


def test_a_budget_that_no_choice_of_bits_meets_is_refused_before_anything_trains() -> None:
    with pytest.raises(PlanError) as caught:
        build_plan(make_job(RESNET, steps(size_ratio=5.0)), HERE)
    assert caught.value.problems[0].path == "compress.steps.1.budget.size_ratio"
    assert "at most 4 x" in caught.value.problems[0].message


@pytest.mark.slow
def test_a_budget_that_is_missed_is_told_with_by_how_much(tmp_path: Path) -> None:
    job = make_job(RESNET, steps(bytes=6000))
    outcome = compress(make_trained(job, epochs=0), tmp_path / "compress", timed=False)
    assert "the budget of 6,000 bytes is missed by" in outcome.error


@pytest.mark.slow
def test_a_language_model_mixes_four_and_eight_bits(tmp_path: Path) -> None:
    before = make_trained(text_job("int8-dynamic"), epochs=2)
    found = {}
    for ratio in (3.0, 5.0):
        job = text_job("mixed", group=32, budget={"size_ratio": ratio})
        outcome = compress(replace(before, job=job), tmp_path / str(ratio), timed=False)
        assert outcome.ok, outcome.error
        assert outcome.checked["size_ratio"] >= ratio
        found[ratio] = outcome
    assert {"8", "4"} <= set(found[5.0].checked["weights_by_bits"])
    assert found[3.0].checked["loss_delta"] <= found[5.0].checked["loss_delta"] + 1e-3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scheme": "mixed"}, "mixed and budget go together"),
        ({"budget": Budget(size_ratio=3.0)}, "mixed and budget go together"),
    ],
)
def test_a_budget_needs_mixed_precision(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Config(**options)
    with pytest.raises(ValueError, match="either size_ratio or bytes"):
        Budget()
