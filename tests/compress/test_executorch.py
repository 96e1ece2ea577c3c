"""Format `executorch`: what XNNPACK is given is counted in the file; floats by the name of integers fail."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest
import torch

from orchestrator.compress.formats import FORMATS
from orchestrator.compress.pipeline import Outcome, Trained, compress
from orchestrator.compress.runtimes.base import open_folder
from orchestrator.compress.verify import check_artifact
from orchestrator.errors import ExportError

from .making import check_here, make_job, make_trained, rewrite
from .test_spec import job as job_of
from .test_spec import said

MODEL = {"use": "resnet", "channels": [32, 64, 128], "depths": [1, 1, 1]}
EXPORT = {"use": "export", "format": "executorch"}
installed = pytest.mark.skipif(find_spec("executorch") is None, reason="the extra executorch is not installed")


@pytest.fixture(scope="module")
def trained() -> Trained:
    return make_trained(make_job(MODEL, [EXPORT, {"use": "quantise"}]), epochs=2)


@pytest.fixture(scope="module")
def good(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    outcome = compress(trained, tmp_path_factory.mktemp("good") / "compress", timed=False)
    assert outcome.ok, outcome.error
    return outcome


@installed
@pytest.mark.slow
def test_integers_are_counted_in_what_xnnpack_is_given(good: Outcome) -> None:
    found = check_artifact(good.folder / "artifact")
    assert found["fidelity"]["sqnr_db"] > 25
    assert found["integer_operators"] == 10  # nine convolutions and the head
    assert found["coverage"] > 0.99
    assert found["size_ratio"] > 3.5
    assert found["operators"]["XNNFullyConnected"] == 1


@installed
@pytest.mark.slow
def test_a_batch_of_any_size_is_answered(good: Outcome) -> None:
    run = open_folder(good.folder / "artifact", "executorch")
    inputs = numpy.random.default_rng(0).random((600, 1, 8, 8)).astype("float32")
    whole = run(inputs)
    assert whole.shape == (600, 10)
    assert numpy.allclose(whole[590:], run(inputs[590:]), atol=1e-5)
    assert numpy.allclose(whole[:1], run(inputs[:1]), atol=1e-5)


@installed
@pytest.mark.slow
def test_floats_under_the_name_of_integers_fail(good: Outcome, copied: Path) -> None:
    shutil.copyfile(good.folder / "1_export" / "model.pte", copied / "model.pte")
    rewrite(copied, baseline_bytes=10**8)
    with pytest.raises(ExportError, match="int8-static in name only"):
        check_here(copied)


@installed
@pytest.mark.slow
def test_weights_that_are_turned_back_into_floats_fail(trained: Trained, copied: Path) -> None:
    """Integers in the file whose products are those of floats."""
    from orchestrator.compress.writers.executorch import lower
    from orchestrator.compress.writers.program import lean

    class Unpacking(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.randint(-127, 127, (10, 64), dtype=torch.int8))

        def forward(self, inputs_B: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(inputs_B.flatten(1), self.weight.float() * 0.01)

    shapes = ({0: torch.export.Dim("n")},)
    lower(
        lean(torch.export.export(Unpacking(), (torch.rand(2, 1, 8, 8),), dynamic_shapes=shapes)), copied / "model.pte"
    )
    rewrite(copied, baseline_bytes=10**8)
    with pytest.raises(ExportError, match="int8-static in name only"):
        check_here(copied)


@installed
@pytest.mark.slow
def test_a_damaged_file_fails(copied: Path) -> None:
    content = (copied / "model.pte").read_bytes()
    (copied / "model.pte").write_bytes(content[: len(content) // 2])
    rewrite(copied)
    with pytest.raises(ExportError, match=r"cannot be run by ExecuTorch|is no ExecuTorch program"):
        check_here(copied)


def test_what_is_missing_is_said_when_the_job_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.compress import formats

    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    text = said(job_of([{"use": "prune"}, EXPORT]))
    assert "executorch needs executorch, torchao, which is not installed" in text
    assert 'pip install "orchestrator[executorch]"' in text


def test_schemes_that_were_not_measured_are_refused() -> None:
    text = said(job_of([EXPORT, {"use": "quantise", "scheme": "int8-weight"}]))
    assert "executorch cannot be made int8-weight" in text
    assert FORMATS["executorch"].schemes == ("int8-static",)
