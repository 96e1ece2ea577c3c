"""Every way a "compressed" OpenVINO file can be a lie fails the check."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np
import pytest
import torch

from orchestrator.compress.export import write
from orchestrator.compress.ir import lean, parse, read_ir
from orchestrator.compress.pipeline import Outcome, Trained, compress
from orchestrator.compress.verify import _ask, check_artifact
from orchestrator.data.dataset import TensorSplit
from orchestrator.errors import ExportError

from .making import RESNET, context_of, lay_out, make_job, make_trained, rewrite

pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
pytest.importorskip("nncf", reason="the extra `openvino` is not installed")

STEPS = ({"use": "export", "format": "openvino"}, {"use": "quantise"})


@pytest.fixture(scope="module")
def trained() -> Trained:
    return make_trained(make_job(RESNET, STEPS))


@pytest.fixture(scope="module")
def good(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    outcome = compress(trained, tmp_path_factory.mktemp("good") / "compress", timed=False)
    assert outcome.ok, outcome.error
    return outcome


def spoil(place: Path, change: Callable[[Element], None]) -> None:
    """Change the graph and cover it up."""
    root = ElementTree.fromstring((place / "model.xml").read_bytes())
    change(root)
    (place / "model.xml").write_bytes(ElementTree.tostring(root))
    rewrite(place)


def constants(root: Element, kind: str) -> list[Element]:
    found = [layer for layer in root.iter("layer") if layer.get("type") == "Const"]
    return [layer for layer in found if layer.find("data").get("element_type") == kind]  # type: ignore[union-attr]


def test_a_good_artifact_holds_without_torch_and_onnx(copied: Path) -> None:
    found = _ask("check", [str(copied)])
    assert "error" not in found
    assert found["imported_torch"] is False
    assert found["size_bytes"] == sum((copied / name).stat().st_size for name in ("model.xml", "model.bin"))
    assert found["integer_operators"] == 7  # six convolutions and the head
    assert found["weights_by_bits"]["8"] == 19408


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_one_flipped_byte_fails(copied: Path, name: str) -> None:
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(ExportError, match="was altered"):
        check_artifact(copied)


@pytest.fixture(scope="module")
def another(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The integer files of another model."""
    folder = tmp_path_factory.mktemp("another")
    other = make_trained(trained.job, epochs=0)
    for parameter in other.model.parameters():
        parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
    outcome = compress(other, folder / "compress", timed=False)
    made = folder / "compress" / "2_quantise"
    assert (made / "model.bin").is_file(), outcome.error
    return made


@pytest.mark.parametrize("names", [["model.bin"], ["model.xml", "model.bin"]], ids=["weights", "both"])
def test_a_swapped_artifact_fails_even_when_its_hashes_were_swapped_too(
    copied: Path, another: Path, names: list[str]
) -> None:
    for name in names:
        shutil.copyfile(another / name, copied / name)
    rewrite(copied)
    with pytest.raises(ExportError, match="answers otherwise than the model it was made of"):
        check_artifact(copied)


def test_calibration_on_zeros_fails(trained: Trained, tmp_path: Path) -> None:
    splits = dict(trained.data.splits)
    inputs, targets = splits["train"].batch(torch.arange(64))
    splits["train"] = TensorSplit(torch.zeros_like(inputs), targets)
    outcome = compress(replace(trained, data=replace(trained.data, splits=splits)), tmp_path / "compress", timed=False)
    assert not outcome.ok
    assert "answers otherwise than the model it was made of" in outcome.error


def test_quantised_in_name_only_fails(trained: Trained, tmp_path: Path) -> None:
    write("openvino", trained.model, context_of(trained, tmp_path), tmp_path / "plain")
    place = lay_out(
        trained, tmp_path / "plain" / "model.xml", tmp_path / "compress", trained.model, "int8-static", "openvino"
    )
    with pytest.raises(ExportError, match="in name only"):
        check_artifact(place)


def test_weights_as_integers_alone_are_not_static(trained: Trained, tmp_path: Path) -> None:
    """The file is as small, but activations stay floats: the runtime multiplies no integers by integers."""
    import nncf

    from orchestrator.compress.runtimes.openvino import library
    from orchestrator.compress.writers.openvino import save

    write("openvino", trained.model, context_of(trained, tmp_path), tmp_path / "plain")
    model = library().Core().read_model(str(tmp_path / "plain" / "model.xml"))
    save(nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM), tmp_path / "small")
    place = lay_out(
        trained, tmp_path / "small" / "model.xml", tmp_path / "compress", trained.model, "int8-static", "openvino"
    )
    with pytest.raises(ExportError, match="in name only"):
        check_artifact(place)


def test_fp32_weights_alone_are_no_compression(trained: Trained, tmp_path: Path) -> None:
    write("openvino", trained.model, context_of(trained, tmp_path), tmp_path / "plain")
    place = lay_out(trained, tmp_path / "plain" / "model.xml", tmp_path / "compress", trained.model, "fp32", "openvino")
    with pytest.raises(ExportError, match="nothing was compressed"):
        check_artifact(place)


def test_dead_weights_fail(copied: Path) -> None:
    """As a converter leaves them: the integers are used, and the floats they were made of are still in the file."""
    end = (copied / "model.bin").stat().st_size
    dead = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32).tobytes()
    with (copied / "model.bin").open("ab") as file:
        file.write(dead)

    def add(root: Element) -> None:
        layer = SubElement(root.find("layers"), "layer", id="9999", name="before", type="Const", version="opset1")  # type: ignore[arg-type]
        SubElement(layer, "data", element_type="f32", shape="8, 16", offset=str(end), size=str(len(dead)))
        SubElement(SubElement(layer, "output"), "port", id="0", precision="FP32")

    spoil(copied, add)
    with pytest.raises(ExportError, match="weights that no operator reads: before"):
        check_artifact(copied)


def test_bytes_that_no_constant_refers_to_fail(copied: Path) -> None:
    with (copied / "model.bin").open("ab") as file:
        file.write(b"\x01" * 512)
    rewrite(copied)
    with pytest.raises(ExportError, match="512 bytes that no constant of the graph refers to"):
        check_artifact(copied)


def test_weights_in_files_beside_fail(copied: Path) -> None:
    content = (copied / "model.bin").read_bytes()
    (copied / "model.bin").write_bytes(content[:512])
    (copied / "rest.bin").write_bytes(content[512:])
    rewrite(copied)
    with pytest.raises(ExportError, match=r"does not count: rest\.bin"):
        check_artifact(copied)
    (copied / "rest.bin").unlink()
    with pytest.raises(ExportError, match="cannot be run by OpenVINO alone"):
        check_artifact(copied)


def test_an_operator_of_the_training_code_fails(copied: Path) -> None:
    def rename(root: Element) -> None:
        layer = next(layer for layer in root.iter("layer") if layer.get("type") == "Add")
        layer.set("type", "MyAdd")
        layer.set("version", "my.training.code")

    spoil(copied, rename)
    with pytest.raises(ExportError, match="cannot be run by OpenVINO alone"):
        check_artifact(copied)


def test_floats_passed_off_as_scales_are_weights(copied: Path) -> None:
    """Scales are left out of the count of weights only where there are far fewer of them than integers."""
    facts = read_ir((copied / "model.xml").read_bytes(), (copied / "model.bin").read_bytes())
    assert facts.coverage > 0.98
    lie = (
        b'<net version="11"><layers>'
        b'<layer id="0" name="w" type="Const"><data element_type="i8" shape="8, 64" offset="0" size="512"/></layer>'
        b'<layer id="1" name="s" type="Const"><data element_type="f32" shape="8, 64" offset="512" size="2048"/></layer>'
        b'<layer id="2" name="c" type="Convert"/><layer id="3" name="m" type="Multiply"/>'
        b'<layer id="4" name="r" type="Result"/></layers><edges><edge from-layer="0" to-layer="2"/>'
        b'<edge from-layer="2" to-layer="3"/><edge from-layer="1" to-layer="3"/><edge from-layer="3" to-layer="4"/>'
        b"</edges></net>"
    )
    assert read_ir(lie, bytes(2560)).coverage == 0.5
    fewer = lie.replace(b'shape="8, 64" offset="512" size="2048"', b'shape="8, 1" offset="512" size="32"')
    assert read_ir(fewer, bytes(544)).coverage == 1.0


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"<net", b'<!DOCTYPE net [<!ENTITY x SYSTEM "file:///etc/passwd">]><net', "declares a document type"),
        (b"</net>", b"", "is no OpenVINO model"),
        (b'element_type="i8"', b'element_type="x9"', "cannot be read"),
        (b'element_type="i8"', b'element_type="f64"', "its .* numbers of f64 take others"),
    ],
)
def test_xml_is_read_with_care(copied: Path, old: bytes, new: bytes, words: str) -> None:
    content = (copied / "model.xml").read_bytes().replace(old, new, 1)
    with pytest.raises(ExportError, match=words):
        read_ir(content, (copied / "model.bin").read_bytes())


def test_what_is_taken_out_of_the_xml_changes_no_answer(trained: Trained, tmp_path: Path) -> None:
    import openvino

    from orchestrator.compress.runtimes.openvino import RUNTIME

    write("openvino", trained.model, context_of(trained, tmp_path), tmp_path / "made")
    model = openvino.Core().read_model(str(tmp_path / "made" / "model.xml"))
    openvino.save_model(model, str(tmp_path / "full.xml"), compress_to_fp16=False)
    full, weights = (tmp_path / "full.xml").read_bytes(), (tmp_path / "full.bin").read_bytes()
    inputs = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    answers = [RUNTIME.open({"model.xml": xml, "model.bin": weights})(inputs) for xml in (full, lean(full))]
    assert len(lean(full)) < 0.7 * len(full)
    assert np.array_equal(*answers)
    assert parse(lean(full)).tag == "net"
