"""OpenVINO files: every model's, on integers too; what its tools cannot do is said when the job is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.compress.export import write
from orchestrator.compress.pipeline import Trained, compress
from orchestrator.compress.runtimes.base import open_folder
from orchestrator.compress.stage import trained_from
from orchestrator.errors import PlanError
from orchestrator.export.weights import state_tensors
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.spec.job import JobSpec
from orchestrator.spec.load import load_spec
from orchestrator.train.build import build_plain_model
from tests.tiers import sample_of

from .making import CNN, MEASURE, RESNET, context_of, make_trained

openvino = pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
pytest.importorskip("nncf", reason="the extra `openvino` is not installed")

WORDS = {"vocab": 256, "seq_len": 16}
TEXT = {"use": "transformer", **WORDS, "dim": 64, "layers": 2, "heads": 4}
MOE = {"use": "moe", **WORDS, "dim": 32, "layers": 1, "heads": 4, "experts": 4}
VIT = {"use": "vit", "image_size": 8, "in_channels": 1, "patch_size": 2, "dim": 64, "layers": 2, "heads": 4}
MLP = {"use": "mlp", "inputs": 64, "hidden": [32], "outputs": 10}
RNN = {"use": "rnn", **WORDS, "dim": 32, "hidden": 48}
MODELS = {"cnn": CNN, "resnet": RESNET, "mlp": MLP, "rnn": RNN, "transformer": TEXT, "moe": MOE, "vit": VIT}


def job(model: dict[str, Any], scheme: str = "", **options: Any) -> JobSpec:
    data = {"use": "digits", "flat": model["use"] == "mlp"}
    if "vocab" in model:
        data = {"use": "text", "corpus": "python", "seq_len": 16, "max_bytes": 60_000}
    quantise = [{"use": "quantise", "scheme": scheme, **options}] if scheme else []
    return load_spec(
        {
            "name": "tiny",
            "model": model,
            "data": data,
            "optim": {"lr": 3e-3},
            "train": {"epochs": 1, "batch_size": 64},
            "cluster": {"gpus_per_worker": 0},
            "compress": {"steps": [{"use": "export", "format": "openvino"}, *quantise], "measure": MEASURE},
        }
    )


def untrained(spec: JobSpec) -> Trained:
    torch.manual_seed(0)
    return trained_from(spec, state_tensors(build_plain_model(spec)), "step-0", 0)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_answers_as_in_torch_whatever_the_batch(name: str, tmp_path: Path) -> None:
    trained = untrained(job(MODELS[name]))
    names = write("openvino", trained.model, context_of(trained, tmp_path), tmp_path)
    run = open_folder(tmp_path, "openvino", names)
    inputs, _ = trained.data.splits["train"].batch(torch.arange(9))
    for rows in (1, 9, 4):
        with torch.no_grad():
            wanted = trained.model(inputs[:rows]).numpy()
        assert np.abs(run(inputs[:rows].numpy()) - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_weights_stay_as_wide_as_they_were(tmp_path: Path) -> None:
    trained = untrained(job(MLP))
    write("openvino", trained.model, context_of(trained, tmp_path), tmp_path)
    numbers = sum(parameter.numel() for parameter in trained.model.parameters())
    assert (tmp_path / "model.bin").stat().st_size >= 4 * numbers


@pytest.fixture(scope="module")
def text() -> Trained:
    return make_trained(job(TEXT), epochs=1)


BOUNDS = [
    ("int8-static", {}, 2.2, 0.004),
    ("int8-weight", {}, 2.5, 0.002),
    ("int4-weight", {"algorithm": "gptq"}, 3, 0.01),
    ("int4-weight", {}, 3, 0.02),
    ("int4-weight", {"algorithm": "awq", "group": 16}, 2.5, 0.02),
    ("int4-weight", {"algorithm": "scale", "group": 64}, 3, 0.02),
]


@pytest.mark.parametrize(("scheme", "options", "smaller", "lost"), sample_of(BOUNDS, 2, seed=1))
def test_a_transformer_becomes_integers(
    text: Trained, scheme: str, options: dict[str, Any], smaller: float, lost: float, tmp_path: Path
) -> None:
    spec = job(TEXT, scheme, **options)
    outcome = compress(replace(text, job=spec), tmp_path / "compress", timed=False)
    assert outcome.ok, outcome.error
    assert outcome.checked["size_ratio"] > smaller
    assert outcome.checked["integer_operators"] >= 2 * 7
    assert outcome.checked["coverage"] > 0.98
    assert outcome.checked["loss_delta"] < lost
    if scheme == "int8-static":
        assert widest(outcome.folder) == 64, "more than half of the range overflows on processors without VNNI"
    bits = scheme[3]
    assert outcome.checked["weights_by_bits"][bits] == 139264  # all but norms: embedding and head, too
    assert outcome.checked["imported_torch"] is False


def widest(folder: Path) -> int:
    """Return the greatest magnitude of the 8-bit weights that a file multiplies with."""
    found = []
    for node in openvino.Core().read_model(str(folder / "artifact" / "model.xml")).get_ops():
        if node.get_type_name() == "Constant" and node.get_element_type().to_string() == "i8":
            user = node
            while user.get_type_name() in ("Constant", "Convert", "Multiply"):
                (user,) = [each.get_node() for each in user.output(0).get_target_inputs()]
            if user.get_type_name() == "MatMul":
                found.append(int(np.abs(node.get_data().astype(np.int32)).max()))
    return max(found)


EVERY = [
    *((name, "int8-static") for name in ("cnn", "mlp", "moe", "vit")),
    ("moe", "int4-weight"),
    ("vit", "int8-weight"),
]


@pytest.mark.parametrize(("name", "scheme"), sample_of(EVERY, 2, seed=1))
def test_every_model_becomes_integers(name: str, scheme: str, tmp_path: Path) -> None:
    spec = job(MODELS[name], scheme)
    outcome = compress(make_trained(spec, epochs=2), tmp_path / "compress", timed=False)
    assert outcome.ok, outcome.error
    assert outcome.checked["accuracy_delta"] > -0.02


def test_recurrent_weights_stay_floats_which_is_told_when_the_job_is_read() -> None:
    with pytest.raises(PlanError) as caught:
        untrained(job(RNN, "int8-weight"))
    (problem,) = caught.value.problems
    assert "recurrent layers, which stay floats as int8-weight in openvino" in problem.message


@pytest.mark.soak
def test_the_same_weights_give_the_same_files(text: Trained, tmp_path: Path) -> None:
    trained = replace(text, job=job(TEXT, "int8-static"))
    files = []
    for name in ("one", "two"):
        outcome = compress(trained, tmp_path / name, timed=False)
        files.append([(outcome.folder / "artifact" / file).read_bytes() for file in ("model.xml", "model.bin")])
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("model", "scheme", "options", "words"),
    [
        (TEXT, "int8-dynamic", {}, "openvino cannot be made int8-dynamic: OpenVINO rounds the inputs of int8-weight"),
        (TEXT, "mixed", {"budget": {"size_ratio": 5}}, "openvino cannot be made mixed: NNCF gives no measured"),
        (TEXT, "int8-static", {"qat": {}}, "training on the integers knows the grid of onnx, not that of openvino"),
        (TEXT, "int8-static", {"algorithm": "entropy"}, "the tools of openvino have no entropy for int8-static"),
        (TEXT, "int8-weight", {"group": 64}, "int8-weight has a scale for each output in openvino"),
        (CNN, "int4-weight", {}, "int4-weight changes linear layers only"),
    ],
)
def test_what_its_tools_cannot_do_is_refused_before_training(
    model: dict[str, Any], scheme: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(PlanError) as caught:
        build_plan(job(model, scheme, **options), Available(num_cpus=2.0, num_gpus=0, memory_bytes=8 << 30))
    assert any(problem.message.startswith(words) for problem in caught.value.problems), caught.value.problems
    assert all(problem.hint for problem in caught.value.problems)


def test_roundings_of_openvino_are_refused_for_onnx() -> None:
    spec = job(TEXT, "int4-weight", algorithm="gptq")
    steps = ({"use": "export"}, {"use": "quantise", "scheme": "int4-weight", "algorithm": "gptq"})
    data = spec.model_dump(mode="json") | {"compress": {"steps": steps}}
    with pytest.raises(PlanError) as caught:
        build_plan(load_spec(data), Available(num_cpus=2.0, num_gpus=0, memory_bytes=8 << 30))
    assert "the tools of onnx have no gptq for int4-weight" in caught.value.problems[0].message
