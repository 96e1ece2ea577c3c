"""The registered model is the exported program: same outputs to the last bit, no pickle, one version however often."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file

from orchestrator.export.manifest import Manifest, Verified, hash_files, write_manifest
from orchestrator.runs.paths import RunDir
from orchestrator.runs.spool import SpoolWriter
from orchestrator.tracking import model as model_module
from orchestrator.tracking.program_loader import check_plain
from orchestrator.tracking.pump import Pump
from orchestrator.tracking.request import read_state, resolve_uri
from tests.tracking.conftest import drain

NAME = "digits-cnn"
PumpBuilder = Callable[..., Pump]


def make_export(folder: Path) -> torch.export.ExportedProgram:
    """Write an export folder as the exporter `program` does, and return the program."""
    torch.manual_seed(3)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 10)
    ).eval()
    inputs = torch.randn(45, 1, 8, 8)
    program = torch.export.export(net, (inputs[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    folder.mkdir(parents=True)
    torch.export.save(program, folder / "model.pt2")
    save_file({"inputs": inputs, "outputs": net(inputs).detach()}, str(folder / "check.safetensors"))
    page = Manifest(
        format="program",
        options={},
        files=hash_files(folder, ["model.pt2", "check.safetensors"]),
        versions={"torch": torch.__version__},
        inputs={"shape": [None, 1, 8, 8], "dtype": "float32"},
        outputs={"shape": [None, 10], "dtype": "float32"},
        job={},
        job_digest="",
        checkpoint="step-10",
        weights_digest="w",
        verified=Verified(0.0, 0.0, 45, (1, 2, 5, 37)),
    )
    write_manifest(folder, page)
    return program


def record_model(run: RunDir, **extra: object) -> None:
    with SpoolWriter(run.spool / "finish-a1.jsonl") as spool:
        spool.record(
            "model",
            path=str(run.exports),
            description="finished: val/accuracy 0.989 at epoch 12 (best)\n\nmore",
            tags={"layout": "replicate 2"},
            **extra,
        )


def test_the_registered_model_gives_the_programs_outputs_in_a_fresh_process(run: RunDir, pump: PumpBuilder) -> None:
    program = make_export(run.exports / "program")
    record_model(run)
    sender = pump(register_as=NAME, alias="newest")
    drain(sender)
    client = sender.shipper.client
    version = client.get_model_version_by_alias(NAME, "newest")
    assert version.version == "1" or version.version == 1
    assert version.description.startswith("finished: val/accuracy 0.989 at epoch 12 (best)")
    assert version.run_id == sender.shipper.run_id
    assert version.tags["layout"] == "replicate 2"
    assert read_state(run).model_version == {"name": NAME, "version": "1"}

    batches = [numpy.random.default_rng(n).standard_normal((n, 1, 8, 8)).astype("float32") for n in (1, 2, 7, 300)]
    numpy.savez(run.path / "in.npz", *batches)
    code = (
        "import sys, time, numpy, mlflow\n"
        "mlflow.set_tracking_uri(sys.argv[1]); begin = time.time()\n"
        f"model = mlflow.pyfunc.load_model('models:/{NAME}/1')\n"
        "assert model.metadata.signature.inputs.inputs[0].shape == (-1, 1, 8, 8)\n"
        "assert model.input_example.shape == (2, 1, 8, 8)\n"
        "batches = numpy.load(sys.argv[2])\n"
        "numpy.savez(sys.argv[3], *[model.predict(batches[name]) for name in batches])\n"
        "print(f'{time.time() - begin:.2f}')\n"
    )
    arguments = [resolve_uri(None, run.storage), str(run.path / "in.npz"), str(run.path / "out.npz")]
    environment = dict(os.environ, MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false")
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=run.path, env=environment)
    outputs = numpy.load(run.path / "out.npz")
    for name, batch in zip(outputs, batches, strict=True):
        assert numpy.array_equal(outputs[name], program.module()(torch.from_numpy(batch)).detach().numpy())


def test_no_file_of_the_logged_model_holds_a_pickle(run: RunDir, pump: PumpBuilder) -> None:
    make_export(run.exports / "program")
    record_model(run)
    drain(pump(register_as=NAME))
    files = [path for path in (run.storage / "mlartifacts" / "models").rglob("*") if path.is_file()]
    assert {"MLmodel", "model.pt2", "orchestrator_program_loader.py"} <= {path.name for path in files}
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pth", ".joblib")]
    (archive,) = [path for path in files if path.name == "model.pt2"]
    check_plain(archive)
    with zipfile.ZipFile(archive) as opened:
        assert not [name for name in opened.namelist() if name.endswith(".pt") and opened.read(name)]


def test_a_second_delivery_after_a_crash_makes_no_second_version(
    run: RunDir, pump: PumpBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_export(run.exports / "program")
    record_model(run)

    def die(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    for place in ("log_outputs", "create_model_version", "update_model_version", "set_logged_model_tags"):
        sender = pump(register_as=NAME, alias="newest")
        with monkeypatch.context() as patch:
            patch.setattr(sender.shipper.client, place, die)
            with pytest.raises(KeyboardInterrupt):
                sender.round()
    sender = pump(register_as=NAME, alias="newest")
    drain(sender)
    client = sender.shipper.client
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 1
    assert len(client.search_logged_models([sender.shipper.experiment_id])) == 1
    assert not (run.spool / "rejected.jsonl").exists()


def test_a_reserved_alias_costs_the_alias_only(run: RunDir, pump: PumpBuilder) -> None:
    make_export(run.exports / "program")
    record_model(run, alias="v7", register_as="other-name")
    sender = pump(register_as=NAME, alias="latest")
    drain(sender)
    assert read_state(run).model_version == {"name": "other-name", "version": "1"}


def test_without_a_name_the_model_is_logged_and_not_registered(run: RunDir, pump: PumpBuilder) -> None:
    make_export(run.exports / "program")
    record_model(run)
    sender = pump()
    drain(sender)
    (logged,) = sender.shipper.client.search_logged_models([sender.shipper.experiment_id])
    assert (str(logged.status), logged.source_run_id) == ("READY", sender.shipper.run_id)
    assert sender.shipper.client.search_registered_models() == []
    assert read_state(run).model_version is None


def test_an_altered_export_is_refused_and_the_rest_goes_on(run: RunDir, pump: PumpBuilder) -> None:
    make_export(run.exports / "program")
    with open(run.exports / "program" / "model.pt2", "r+b") as file:
        file.seek(200)
        file.write(b"\x00\x01")
    record_model(run)
    with SpoolWriter(run.spool / "finish-a1.jsonl") as spool:
        spool.record("note", text="still here")
    sender = pump(register_as=NAME)
    drain(sender)
    assert "altered" in (run.spool / "rejected.jsonl").read_text()
    assert sender.shipper.client.get_run(sender.shipper.run_id).data.tags["mlflow.note.content"] == "still here"


def test_the_loader_refuses_pickles_and_altered_files(tmp_path: Path) -> None:
    make_export(tmp_path / "program")
    whole = tmp_path / "program" / "model.pt2"
    with pytest.raises(ValueError, match="may hold a pickle"):
        check_plain(whole)  # as torch writes it: the example inputs are one
    plain = tmp_path / "plain.pt2"
    model_module.write_plain_program(whole, plain)
    check_plain(plain)
    with zipfile.ZipFile(plain, "a") as archive:
        archive.writestr("model/data/weights/extra.pkl", pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"extra\.pkl"):
        check_plain(plain)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_every_record_is_looked_at_also_when_two_have_one_name(tmp_path: Path) -> None:
    from orchestrator.tracking.served.program import check_plain as check_served

    path = tmp_path / "twice.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        for use_pickle in (True, False):
            page = {"config": {"weight": {"path_name": "weight_0", "use_pickle": use_pickle}}}
            archive.writestr("model/data/weights/model_weights_config.json", json.dumps(page))
    for check in (lambda: check_plain(path), lambda: check_served(path.read_bytes())):
        with pytest.raises(ValueError, match="names a pickled tensor"):
            check()
