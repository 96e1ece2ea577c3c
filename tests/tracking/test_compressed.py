"""The compressed model is a version of its own that names its parent, loads without pickle and answers as the file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest

from orchestrator.compress.manifest import read_page
from orchestrator.compress.pipeline import Outcome, Trained, compress
from orchestrator.compress.runtimes.base import open_folder
from orchestrator.compress.stage import model_record
from orchestrator.runs.paths import RunDir
from orchestrator.runs.spool import SpoolWriter
from orchestrator.tracking.pump import Pump
from orchestrator.tracking.request import read_state, resolve_uri
from tests.compress.making import RESNET, STEPS, make_job, make_trained
from tests.compress.pretended import pretended_gpu
from tests.tracking.conftest import drain
from tests.tracking.test_model import make_export, record_model

NAME = "digits-cnn"
PumpBuilder = Callable[..., Pump]


ARCHIVE = (
    {"use": "prune", "kind": "unstructured", "ratio": 0.8},
    {"use": "finetune", "epochs": 1},
    {"use": "share"},
    {"use": "export"},
    {"use": "pack"},
)
OPENVINO = ({"use": "export", "format": "openvino"}, {"use": "quantise"})
PROGRAM = (*STEPS[:2], {"use": "export", "format": "program"})
AOTI = ({"use": "export", "format": "aoti"}, {"use": "quantise"})
EXECUTORCH = ({"use": "export", "format": "executorch"}, {"use": "quantise"})
SPARSE = (
    {"use": "prune", "kind": "2:4"},
    {"use": "export", "format": "program"},
    {"use": "quantise", "scheme": "2:4", "target": "cuda"},
)
IN_TORCH = ("program", "aoti", "executorch")
VIT = {"use": "vit", "dim": 64, "layers": 1, "heads": 4}
WIDE = {"use": "resnet", "channels": [32, 64, 128], "depths": [1, 1, 1]}
KINDS = [
    STEPS,
    pytest.param(OPENVINO, marks=pytest.mark.slow),
    *(pytest.param(steps, marks=(pytest.mark.slow, pytest.mark.soak)) for steps in (PROGRAM, AOTI, EXECUTORCH)),
    pytest.param(ARCHIVE, marks=pytest.mark.slow),
    pytest.param(SPARSE, marks=pytest.mark.slow),
]
NAMES = ["int8", "openvino", "program", "aoti", "executorch", "archive", "sparse"]


@pytest.fixture(scope="module", params=KINDS, ids=NAMES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Outcome]:
    for steps, module in ((OPENVINO, "nncf"), (AOTI, "torchao"), (EXECUTORCH, "executorch")):
        if request.param is steps:
            pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("made") / "compress"
    if request.param is SPARSE:
        with pretended_gpu():
            trained = make_trained(make_job(VIT, request.param), epochs=1)
            outcome = compress(trained, folder, timed=False)
    else:
        # Code takes more bytes than the smaller one's weights.
        model = WIDE if request.param in (AOTI, EXECUTORCH) else RESNET
        trained = make_trained(make_job(model, request.param))
        outcome = compress(trained, folder)
    assert outcome.ok, outcome.error
    return trained, outcome


def test_the_compressed_model_is_registered_beside_its_parent(
    run: RunDir, pump: PumpBuilder, made: tuple[Trained, Outcome]
) -> None:
    trained, outcome = made
    make_export(run.exports / "program")
    record_model(run)
    with SpoolWriter(run.spool / "finish-compress-a1.jsonl") as spool:
        spool.record("model", **model_record(outcome, trained))
    sender = pump(register_as=NAME, alias="newest")
    drain(sender)
    state, client = read_state(run), sender.shipper.client
    assert state.model_version == {"name": NAME, "version": "1"}
    assert state.compressed_version == {"name": NAME, "version": "2"}
    assert str(client.get_model_version_by_alias(NAME, "newest").version) == "1"
    version = client.get_model_version_by_alias(NAME, "compressed")
    assert version.tags["orchestrator.parent_version"] == "1"
    assert "Compressed from version 1" in version.description
    _predicts_as_the_file(run, outcome)
    files = [path for path in (run.storage / "mlartifacts" / "models").rglob("*") if path.is_file()]
    served = {"pack": "model.onnx"}  # as the graph it restores
    names = {path.name for path in files}
    assert {served.get(path.suffix[1:], path.name) for path in model_files(outcome)} <= names
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pth", ".joblib")]


def model_files(outcome: Outcome) -> list[Path]:
    """Return the files of an artifact but for its page."""
    return [path for path in (outcome.folder / "artifact").iterdir() if path.stem == "model"]


def _predicts_as_the_file(run: RunDir, outcome: Outcome) -> None:
    place = outcome.folder / "artifact"
    page = read_page(place)
    inputs = numpy.random.default_rng(0).random((7, 1, 8, 8)).astype("float32")
    numpy.save(run.path / "in.npy", inputs)
    code = (
        "import sys, numpy, mlflow\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        f"model = mlflow.pyfunc.load_model('models:/{NAME}/2')\n"
        "found = model.predict(numpy.load(sys.argv[2]))\n"
        "numpy.save(sys.argv[3], next(iter(found.values())) if isinstance(found, dict) else found)\n"
        f"assert {page.format in IN_TORCH} or 'torch' not in sys.modules\n"
    )
    arguments = [resolve_uri(None, run.storage), str(run.path / "in.npy"), str(run.path / "out.npy")]
    environment = dict(os.environ, MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false")
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=run.path, env=environment)
    found = open_folder(place, page.format, page.needed)(inputs)
    assert numpy.allclose(numpy.load(run.path / "out.npy"), found, atol=1e-5)


def test_an_artifact_that_was_altered_is_not_registered(
    run: RunDir, pump: PumpBuilder, made: tuple[Trained, Outcome], tmp_path: Path
) -> None:
    import shutil

    trained, outcome = made
    shutil.copytree(outcome.folder, tmp_path / "copy")
    file = tmp_path / "copy" / "artifact" / model_files(outcome)[-1].name
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    record = model_record(outcome, trained) | {"path": str(file.parent)}
    with SpoolWriter(run.spool / "finish-compress-a1.jsonl") as spool:
        spool.record("model", **record)
    sender = pump(register_as=NAME)
    drain(sender)
    assert read_state(run).compressed_version is None
    assert "was altered" in (run.spool / "rejected.jsonl").read_text()
