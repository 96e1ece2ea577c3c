"""Format `aoti`: compiled for this processor; integers in name only and code of another processor fail."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy
import pytest
import torch

from orchestrator.compress import processor
from orchestrator.compress.pipeline import Outcome, Trained, compress
from orchestrator.compress.runtimes.base import open_folder
from orchestrator.compress.verify import check_artifact
from orchestrator.errors import ExportError, NotAbleError
from orchestrator.spec.load import load_spec

from .making import check_here, context_of, make_job, make_trained, rewrite
from .test_spec import job as job_of
from .test_spec import said

compiles = pytest.mark.skipif(bool(processor.compiler_problems()), reason="no C++ compiler for AOTInductor here")
MODEL = {"use": "resnet", "channels": [32, 64, 128], "depths": [1, 1, 1]}
AOTI = {"use": "export", "format": "aoti"}


@pytest.fixture(scope="module")
def trained() -> Trained:
    return make_trained(make_job(MODEL, [AOTI, {"use": "quantise"}]), epochs=2)


@pytest.fixture(scope="module")
def good(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    pytest.importorskip("torchao")
    outcome = compress(trained, tmp_path_factory.mktemp("good") / "compress", timed=False)
    assert outcome.ok, outcome.error
    return outcome


def edit(path: Path, record: str, content: bytes) -> None:
    """Replace or add one record of a package."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(records)).partition("/")[0]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, old in (records | {f"{root}/{record}": content}).items():
            archive.writestr(name, old)


@compiles
@pytest.mark.soak
def test_a_model_is_compiled_and_answers_as_before(tmp_path: Path) -> None:
    from orchestrator.compress.writers.aoti import compile_package
    from orchestrator.export.trace import traces

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
    compile_package(traces.trace(net, torch.rand(2, 8)), tmp_path / "model.pt2")
    run = open_folder(tmp_path, "aoti")
    for batch in (1, 7):
        inputs = torch.rand(batch, 8)
        assert numpy.allclose(run(inputs.numpy()), net(inputs).detach(), atol=1e-5)
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        assert not [name for name in archive.namelist() if name.endswith(".cpp")]
    edit(tmp_path / "model.pt2", "extra/processor.json", json.dumps(["avx1024_vnni"]).encode())
    with pytest.raises(NotAbleError, match="another processor: this one lacks avx1024_vnni"):
        open_folder(tmp_path, "aoti")
    edit(tmp_path / "model.pt2", "extra/processor.json", b"[]")
    edit(tmp_path / "model.pt2", "data/weights/model.pt", b"cos\nsystem\n")
    with pytest.raises(ExportError, match=r"is refused: record 'data/weights/model\.pt'"):
        open_folder(tmp_path, "aoti")


@compiles
@pytest.mark.slow
def test_integers_hold_in_torch_alone(good: Outcome) -> None:
    found = check_artifact(good.folder / "artifact")
    assert found["imported_torch"] is True
    assert found["fidelity"]["sqnr_db"] > 25
    assert found["integer_operators"] >= 8
    assert found["coverage"] > 0.95
    assert found["size_ratio"] > 2.5
    assert found["size_bytes"] == (good.folder / "artifact" / "model.pt2").stat().st_size
    assert abs(found["accuracy_delta"]) < 0.01


@compiles
@pytest.mark.soak
def test_linear_layers_are_multiplied_as_integers_with_ranges_as_they_come(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    model = {"use": "mlp", "inputs": 64, "hidden": [512, 512], "outputs": 10}
    steps = [AOTI, {"use": "quantise", "scheme": "int8-dynamic"}]
    spec = load_spec({**job_of(steps), "model": model, "data": {"use": "digits", "flat": True}})
    outcome = compress(make_trained(spec, epochs=2), tmp_path / "compress", timed=False)
    assert outcome.ok, outcome.error
    assert outcome.checked["coverage"] > 0.95
    assert outcome.checked["fidelity"]["sqnr_db"] > 20  # ranges of whole inputs, not of their rows


@compiles
@pytest.mark.slow
def test_floats_under_the_name_of_integers_fail(good: Outcome, copied: Path) -> None:
    shutil.copyfile(good.folder / "1_export" / "model.pt2", copied / "model.pt2")
    rewrite(copied, baseline_bytes=10**8)
    with pytest.raises(ExportError, match="int8-static in name only"):
        check_here(copied)


@compiles
@pytest.mark.slow
def test_integers_that_are_turned_back_into_floats_fail(trained: Trained, copied: Path) -> None:
    """Without freezing the weights are packed for no kernel."""
    from orchestrator.compress.writers.aoti import EXTRA, SETTINGS, build_quantiser, compile_package
    from orchestrator.compress.writers.pt2e import to_integers

    program = to_integers(trained.model, context_of(trained, copied), build_quantiser(False), EXTRA)
    compile_package(program, copied / "model.pt2", {**SETTINGS, "freezing": False})
    rewrite(copied, baseline_bytes=10**8)
    with pytest.raises(ExportError, match="int8-static in name only"):
        check_here(copied)


@pytest.mark.parametrize(
    ("scheme", "why"), [("int8-weight", "the file grows"), ("int4-weight", "no kernel for 4-bit weights")]
)
def test_integers_that_bring_nothing_are_refused(scheme: str, why: str) -> None:
    text = said(job_of([AOTI, {"use": "quantise", "scheme": scheme}]))
    assert f"aoti cannot be made {scheme}" in text
    assert why in text
    assert "write int8-static or int8-dynamic" in text


def test_other_ways_to_choose_ranges_are_refused() -> None:
    text = said(job_of([AOTI, {"use": "quantise", "algorithm": "entropy"}]))
    assert "the tools of aoti have no entropy for int8-static [write minmax]" in text


def test_no_compiler_is_said_when_the_job_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    text = said(job_of([{"use": "prune"}, AOTI]))
    assert "compress.steps.1.format: aoti: a C++ compiler is needed, no-such-compiler is not there" in text
    assert "apt-get install g++" in text
