"""Format `safetensors`: after every step the model is rebuilt from the names and shapes of its tensors, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from orchestrator import plugins
from orchestrator.compress.base import MODULE, State
from orchestrator.compress.pipeline import Outcome, compress
from orchestrator.compress.report import table
from orchestrator.compress.runtimes.base import open_folder
from orchestrator.compress.runtimes.safetensors import FILE
from orchestrator.compress.verify import _ask
from orchestrator.compress.writers.safetensors import write
from orchestrator.errors import ExportError
from orchestrator.spec.job import JobSpec

from .making import CNN, RESNET, check_here, context_of, make_job, make_trained, rewrite
from .test_quantise import TEXT
from .test_quantise import job as text_job
from .test_spec import job as job_of
from .test_spec import said

EXPORT = {"use": "export", "format": "safetensors"}
HALF = {"use": "prune", "ratio": 0.5}
DEEP = {"use": "resnet", "channels": [16, 32], "depths": [2, 2]}
GROUPED = {**RESNET, "norm": "group"}
MLP = {"use": "mlp", "inputs": 64, "hidden": [32, 32], "outputs": 10}
VIT = {
    "use": "vit",
    "image_size": 8,
    "patch_size": 2,
    "in_channels": 1,
    "dim": 32,
    "layers": 3,
    "heads": 4,
    "classes": 10,
}
MOE = {"use": "moe", "vocab": 256, "seq_len": 16, "dim": 32, "layers": 2, "heads": 4, "kv_heads": 4, "experts": 4}
TIED = {**TEXT, "tied_embeddings": True}
CASES: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    (RESNET, [HALF]),
    (GROUPED, [HALF]),
    (CNN, [HALF]),
    (DEEP, [{"use": "prune", "kind": "depth", "ratio": 0.5}]),
    (RESNET, [{"use": "prune", "kind": "unstructured", "ratio": 0.7}, {"use": "share"}]),
    (RESNET, [HALF, {"use": "lowrank", "ratio": 0.3}]),
    (RESNET, [{"use": "lowrank", "ratio": 0.4}, {"use": "share"}]),
    (MLP, [{"use": "prune", "kind": "mlp"}, {"use": "lowrank", "ratio": 0.3}]),
    (VIT, [{"use": "prune", "kind": "heads"}, {"use": "prune", "kind": "mlp"}]),
    (VIT, [{"use": "prune", "kind": "depth", "ratio": 0.4}, {"use": "lowrank", "ratio": 0.3}]),
    (TEXT, [{"use": "prune", "kind": "heads"}, {"use": "prune", "kind": "mlp"}]),
    (TEXT, [{"use": "share", "kind": "blocks"}]),
    (TIED, [{"use": "prune", "kind": "depth"}, {"use": "lowrank", "ratio": 0.3}]),
    (MOE, [{"use": "prune", "kind": "mlp"}, {"use": "prune", "kind": "heads"}]),
]


def job_with(model: dict[str, Any], steps: list[dict[str, Any]]) -> JobSpec:
    if model["use"] in ("transformer", "moe"):
        job = text_job("int8-dynamic", model) if model["use"] == "transformer" else moe_job()
    else:
        job = make_job(model, [*steps, EXPORT])
        data = job.data.model_copy(update={"flat": True}) if model["use"] == "mlp" else job.data
        return job.model_copy(update={"data": data})
    return job.model_copy(update={"compress": make_job(CNN, [*steps, EXPORT]).compress})


def moe_job() -> JobSpec:
    job = text_job("int8-dynamic", TEXT)
    return job.model_copy(update={"model": type(job.model).model_validate(MOE)})


@pytest.mark.parametrize(("model", "steps"), CASES, ids=lambda value: "-".join(_words(value)))
def test_a_model_is_rebuilt_after_every_step(
    model: dict[str, Any], steps: list[dict[str, Any]], tmp_path: Path
) -> None:
    trained = make_trained(job_with(model, steps), epochs=0)
    context = context_of(trained, tmp_path)
    state = State(MODULE, trained.model)
    for step in steps:
        options = {name: value for name, value in step.items() if name != "use"}
        state = plugins.build("compressors", step["use"], options).apply(state, context).state
    write(state.model, context, tmp_path)
    inputs, _ = context.calibration()
    with torch.no_grad():
        wanted = state.model(inputs[:32])
    found = torch.from_numpy(open_folder(tmp_path, "safetensors")(inputs[:32].numpy()))
    assert torch.equal(found, wanted)


def _words(value: Any) -> list[str]:
    return [value["use"]] if isinstance(value, dict) else [step.get("kind", step["use"]) for step in value]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    trained = make_trained(make_job(RESNET, [HALF, EXPORT]))
    outcome = compress(trained, tmp_path_factory.mktemp("good") / "compress", timed=False)
    assert outcome.ok, outcome.error
    return outcome


def test_the_report_says_that_it_is_not_to_be_deployed(good: Outcome) -> None:
    assert any("NOT A DEPLOYMENT FORMAT" in line for line in table(good))


def test_the_file_holds_with_the_models_code_and_no_more(good: Outcome) -> None:
    from orchestrator.compress.check import ALWAYS_REFUSED
    from orchestrator.compress.runtimes import aoti, onnx, openvino, program
    from orchestrator.compress.runtimes.safetensors import RUNTIME

    found = _ask("check", [str(good.folder / "artifact")])
    assert "error" not in found
    assert found["fidelity"]["relative"] < 1e-6
    assert found["size_ratio"] > 2
    assert set(ALWAYS_REFUSED) - set(RUNTIME.code) == {"ray", "mlflow", "orchestrator.train"}
    assert not any(each.RUNTIME.code for each in (aoti, onnx, openvino, program))


def spoil(place: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (None) remove tensors of the file, and hash it anew."""
    path = place / FILE
    tensors = load_file(str(path))
    use = {"use": "resnet", "channels": [16, 32], "depths": [1, 1]}
    for name, value in changes.items():
        real = name.replace("__", ".")
        tensors.pop(real, None)
        if value is not None:
            tensors[real] = value
    save_file(tensors, str(path), metadata={"orchestrator": json.dumps({"model": use, "shared": {}})})
    rewrite(place)


def test_weights_that_the_model_does_not_read_fail(copied: Path) -> None:
    spoil(copied, layers__head__weight_before=torch.rand(10, 32))
    with pytest.raises(ExportError, match=r"do not fit the model resnet: layers\.head\.weight_before"):
        check_here(copied)


def test_a_missing_weight_fails(copied: Path) -> None:
    spoil(copied, layers__head__bias=None)
    with pytest.raises(ExportError, match=r"do not fit the model resnet: layers\.head\.bias"):
        check_here(copied)


def test_other_weights_fail(copied: Path) -> None:
    spoil(copied, layers__head__bias=torch.arange(10.0))
    with pytest.raises(ExportError, match="answers otherwise than the model it was made of"):
        check_here(copied)


def test_a_file_without_the_models_name_fails(copied: Path) -> None:
    save_file(load_file(str(copied / FILE)), str(copied / FILE))
    rewrite(copied)
    with pytest.raises(ExportError, match="does not say which model its weights are of"):
        check_here(copied)


def test_integers_are_refused_when_the_job_is_read() -> None:
    text = said(job_of([EXPORT, {"use": "quantise"}]))
    assert "safetensors cannot be made int8-static: it holds weights alone" in text
