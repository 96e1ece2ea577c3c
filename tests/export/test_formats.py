"""Every format gives what the trained model gives, for batches of any size, for built-in and for users' own models."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from orchestrator.errors import NotAbleError
from orchestrator.export.manifest import check_folder, read_manifest
from orchestrator.export.onnx import Config, OnnxExporter
from orchestrator.export.package import ExportOutcome, open_export
from orchestrator.export.program import ProgramExporter
from orchestrator.export.weights import digest_weights, plain_copy, state_tensors
from orchestrator.spec.job import JobSpec
from tests.export.making import CNN, MLP, NET, export, make_inputs, make_job, make_model
from tests.export.nets import Embedder

FORMATS = ("safetensors", "program", "onnx")
Exported = tuple[JobSpec, dict[str, ExportOutcome]]


@pytest.fixture(scope="module", params=[CNN, MLP, NET], ids=["cnn", "mlp", "plain module"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    job = make_job(request.param)
    outcomes = export(job, FORMATS, tmp_path_factory.mktemp("export"))
    return job, {outcome.format: outcome for outcome in outcomes}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_done_only_with_a_measured_comparison(exported: Exported, name: str) -> None:
    _, outcomes = exported
    outcome = outcomes[name]
    assert outcome.ok, outcome.error
    page = check_folder(outcome.path)
    assert page.verified is not None
    assert page.verified.samples == 45
    assert page.verified.batch_sizes == (1, 2, 5, 37)
    assert page.verified.relative_diff <= 1e-4
    if name != "onnx":
        assert page.verified.max_abs_diff == 0.0


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("batch", [1, 2, 5, 37])
def test_any_batch_size_runs(exported: Exported, name: str, batch: int) -> None:
    job, outcomes = exported
    run, _ = open_export(outcomes[name].path)
    inputs = make_inputs(job, batch)
    with torch.no_grad():
        wanted = make_model(job)(inputs)
    assert torch.allclose(run(inputs), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_the_manifest_says_where_the_file_comes_from(exported: Exported, name: str) -> None:
    job, outcomes = exported
    page = read_manifest(outcomes[name].path)
    assert page.format == name
    assert page.checkpoint == "step-00000012-a1-abcdef"
    assert page.weights_digest == digest_weights(state_tensors(make_model(job)))
    assert page.job["model"]["use"] == job.model.use
    assert "track" not in page.job
    assert page.inputs["shape"] == [None, *make_inputs(job, 2).shape[1:]]
    assert page.outputs["shape"] == [None, 10]
    assert page.versions["torch"] == torch.__version__.split("+")[0] or page.versions["torch"] == torch.__version__


def test_no_draft_is_left(exported: Exported) -> None:
    _, outcomes = exported
    root = outcomes["program"].path.parent
    assert sorted(path.name for path in root.iterdir()) == ["onnx", "program", "safetensors"]


def test_weights_can_be_read_back_by_name_from_the_program(exported: Exported) -> None:
    job, outcomes = exported
    weights = ProgramExporter().read_weights(outcomes["program"].path)
    assert digest_weights(weights) == digest_weights(state_tensors(make_model(job)))


def test_onnx_takes_int64_tokens_and_names_its_batch_dim(tmp_path: Path) -> None:
    import onnx

    model = plain_copy(Embedder())
    tokens = torch.randint(0, 20, (2, 7))
    exporter = OnnxExporter(Config())
    (path,) = exporter.write(model, tokens, tmp_path)
    (graph_input,) = onnx.load(str(path)).graph.input
    dims = graph_input.type.tensor_type.shape.dim
    assert graph_input.name == "inputs"
    assert graph_input.type.tensor_type.elem_type == onnx.TensorProto.INT64
    assert (dims[0].dim_param, dims[1].dim_value) == ("batch", 7)
    run = exporter.load(tmp_path)
    for batch in (1, 9):
        many = torch.randint(0, 20, (batch, 7))
        assert torch.allclose(run(many), model(many), rtol=1e-4, atol=1e-5)


def test_channels_last_weights_export_like_plain_ones(tmp_path: Path) -> None:
    job = make_job(CNN)
    model = make_model(job).to(memory_format=torch.channels_last)
    inputs = make_inputs(job, 4)
    assert digest_weights(state_tensors(model)) == digest_weights(state_tensors(make_model(job)))
    ProgramExporter().write(plain_copy(model), inputs[:2], tmp_path)
    with torch.no_grad():
        assert torch.equal(ProgramExporter().load(tmp_path)(inputs), make_model(job)(inputs))


def test_float64_models_stay_float64(tmp_path: Path) -> None:
    job = make_job(MLP)
    model = make_model(job).double()
    inputs = make_inputs(job, 3).double()
    ProgramExporter().write(model, inputs[:2], tmp_path)
    assert ProgramExporter().load(tmp_path)(inputs).dtype == torch.float64


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    exporter, job = OnnxExporter(Config()), make_job(MLP)
    steps = {"onnxruntime": lambda: exporter.load_arrays(tmp_path)}
    step = steps.get(package, lambda: exporter.write(make_model(job), make_inputs(job, 2), tmp_path))
    with pytest.raises(NotAbleError, match=package) as caught:
        step()
    assert caught.value.hint == 'pip install "orchestrator[onnx]"'
    assert caught.value.exit_code == 4


def test_the_digest_knows_names_dtypes_shapes_and_bytes() -> None:
    base = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1)}
    others = [
        {"c": base["a"], "b": base["b"]},
        base | {"a": base["a"].double()},
        base | {"a": base["a"].reshape(3, 2)},
        base | {"b": torch.full((1,), 2.0)},
    ]
    digests = {digest_weights(tensors) for tensors in (base, *others)}
    assert len(digests) == 5
    assert digest_weights({"b": base["b"], "a": base["a"]}) == digest_weights(base)
