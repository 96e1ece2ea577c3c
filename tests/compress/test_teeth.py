"""Every way a "compressed" model can be a lie fails the check, in the process that judges and not by the recipe."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch.nn.utils import prune

from orchestrator.compress.base import Context
from orchestrator.compress.manifest import read_page
from orchestrator.compress.pipeline import Outcome, Trained, compress
from orchestrator.compress.runtimes.base import open_deployed, open_folder
from orchestrator.compress.verify import _ask, check_artifact
from orchestrator.compress.writers.onnx import write_onnx
from orchestrator.data.dataset import TensorSplit
from orchestrator.errors import ExportError

from .making import RESNET, STEPS, context_of, lay_out, make_job, make_trained, rewrite


@pytest.fixture(scope="module")
def trained() -> Trained:
    return make_trained(make_job(RESNET))


@pytest.fixture(scope="module")
def good(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    outcome = compress(trained, tmp_path_factory.mktemp("good") / "compress")
    assert outcome.ok, outcome.error
    return outcome


def test_a_file_opened_where_it_lies_answers_as_its_bytes_do(copied: Path) -> None:
    inputs = np.random.default_rng(0).random((5, 1, 8, 8)).astype("float32")
    found = open_deployed(copied, "onnx")(inputs)
    assert np.array_equal(found, open_folder(copied, "onnx", read_page(copied).needed)(inputs))
    with pytest.raises(ExportError, match=r"model\.onnx cannot be run by ONNX Runtime alone"):
        open_deployed(copied.parent, "onnx")


def test_a_good_artifact_holds_without_torch(copied: Path) -> None:
    found = _ask("check", [str(copied)])
    assert "error" not in found
    assert found["imported_torch"] is False
    assert found["samples"] == 359
    assert found["size_bytes"] == (copied / "model.onnx").stat().st_size


def test_one_flipped_byte_fails(copied: Path) -> None:
    content = bytearray((copied / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copied / "model.onnx").write_bytes(content)
    with pytest.raises(ExportError, match="was altered"):
        check_artifact(copied)


def test_a_changed_page_fails(copied: Path) -> None:
    text = (copied / "manifest.json").read_text()
    (copied / "manifest.json").write_text(text.replace('"baseline_bytes": ', '"baseline_bytes": 9'))
    with pytest.raises(ExportError, match="was altered"):
        check_artifact(copied)


def test_a_file_that_the_page_does_not_count_fails(copied: Path) -> None:
    (copied / "weights.bin").write_bytes(b"0" * 100)
    with pytest.raises(ExportError, match=r"does not count: weights\.bin"):
        check_artifact(copied)


def test_a_swapped_artifact_fails_even_when_its_hash_was_swapped_too(copied: Path, tmp_path: Path) -> None:
    job = make_job(RESNET)
    other = make_trained(job.model_copy(update={"train": job.train.model_copy(update={"seed": 5})}), epochs=0)
    for parameter in other.model.parameters():
        parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
    outcome = compress(other, tmp_path / "other")
    made = tmp_path / "other" / "4_quantise" / "model.onnx"
    assert made.is_file(), outcome.error
    shutil.copyfile(made, copied / "model.onnx")
    rewrite(copied)
    with pytest.raises(ExportError, match="answers otherwise than the model it was made of"):
        check_artifact(copied)


def test_masks_alone_are_no_compression(trained: Trained, tmp_path: Path) -> None:
    model = copy.deepcopy(trained.model)
    layers = [(part, "weight") for part in model.modules() if isinstance(part, torch.nn.Conv2d)]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=0.9)
    for part, name in layers:
        prune.remove(part, name)
    file = write_onnx(model, context_of(trained, tmp_path), tmp_path / "masked")
    place = lay_out(trained, file, tmp_path / "compress", model, "fp32")
    page = rewrite(place, baseline_bytes=file.stat().st_size)  # a generous comparison: it is still no smaller
    assert page.scheme == "fp32"
    with pytest.raises(ExportError, match="nothing was compressed"):
        check_artifact(place)


def test_a_file_that_needs_its_training_code_fails(trained: Trained, copied: Path, tmp_path: Path) -> None:
    proto = onnx.load(str(copied / "model.onnx"))
    node = next(node for node in proto.graph.node if node.op_type == "Add")
    node.domain, node.op_type = "my.training.code", "MyAdd"
    proto.opset_import.append(onnx.helper.make_opsetid("my.training.code", 1))
    (copied / "model.onnx").write_bytes(proto.SerializeToString())
    rewrite(copied)
    with pytest.raises(ExportError, match="cannot be run by ONNX Runtime alone"):
        check_artifact(copied)


def test_the_judging_process_cannot_import_the_training_code(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.compress.check import ALWAYS_REFUSED
    from orchestrator.compress.runtimes.onnx import RUNTIME

    assert {"torch", "orchestrator.models", "orchestrator.train"} <= {*ALWAYS_REFUSED, *RUNTIME.refused}


def test_calibration_on_zeros_fails(trained: Trained, tmp_path: Path) -> None:
    splits = dict(trained.data.splits)
    inputs, targets = splits["train"].batch(torch.arange(64))
    splits["train"] = TensorSplit(torch.zeros_like(inputs), targets)
    job = make_job(RESNET, [{"use": "export"}, {"use": "quantise"}])
    outcome = compress(replace(trained, job=job, data=replace(trained.data, splits=splits)), tmp_path / "compress")
    assert not outcome.ok
    assert "answers otherwise than the model it was made of" in outcome.error


def test_quantised_in_name_only_fails(trained: Trained, tmp_path: Path) -> None:
    file = write_onnx(trained.model, context_of(trained, tmp_path), tmp_path / "plain")
    place = lay_out(trained, file, tmp_path / "compress", trained.model, "int8-static")
    with pytest.raises(ExportError, match="in name only"):
        check_artifact(place)


def test_weights_outside_of_the_file_fail(trained: Trained, tmp_path: Path) -> None:
    file = write_onnx(trained.model, context_of(trained, tmp_path), tmp_path / "plain")
    proto = onnx.load(str(file))
    onnx.save(proto, str(file), save_as_external_data=True, location="weights.bin", size_threshold=0)
    place = lay_out(trained, file, tmp_path / "compress", trained.model, "fp32")
    with pytest.raises(ExportError, match=r"cannot be run|weights in files beside"):
        check_artifact(place)


def test_dead_fp32_weights_fail(copied: Path) -> None:
    """As a converter leaves them: the integers are used, and the floats they were made of are still in the file."""
    proto = onnx.load(str(copied / "model.onnx"))
    dead = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(dead, "conv.weight_before"))
    (copied / "model.onnx").write_bytes(proto.SerializeToString())
    rewrite(copied)
    with pytest.raises(ExportError, match=r"weights that no operator reads: conv\.weight_before"):
        check_artifact(copied)


def test_limits_of_the_job_are_kept(trained: Trained, tmp_path: Path) -> None:
    job = make_job(RESNET, STEPS, limits={"size_ratio": 1000})
    outcome = compress(replace(trained, job=job), tmp_path / "compress")
    assert "compress.limits.size_ratio asks for 1000" in outcome.error


def test_figures_in_the_outcome_are_those_of_the_file(good: Outcome) -> None:
    import onnxruntime

    place = good.folder / "artifact"
    with np.load(good.folder / "evaluation.npz") as file:
        inputs, targets = file["inputs"], file["targets"]
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # sums that do not overflow without VNNI
    session = onnxruntime.InferenceSession(str(place / "model.onnx"), options)
    answers = session.run(None, {"inputs": inputs})[0].argmax(1)
    assert good.checked["metrics"]["accuracy"] == pytest.approx((answers == targets).mean())
    assert good.checked["size_ratio"] > 4


def test_a_missing_calibration_split_is_said(trained: Trained, tmp_path: Path) -> None:
    context: Context = context_of(trained, tmp_path)
    section = trained.job.compress.calibration.model_copy(update={"split": "dev"})
    job = trained.job.model_copy(update={"compress": trained.job.compress.model_copy(update={"calibration": section})})
    with pytest.raises(ExportError, match="no samples in split 'dev'"):
        Context(job, context.plan, context.data, context.teacher, tmp_path).calibration()
