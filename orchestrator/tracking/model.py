"""The trained model in MLflow: logged from the exported program, pickle-free, and registered once. Sender process only.

Why not `mlflow.pytorch`: its pt2 flavour traces the model again, stores the example as a pickle, and refuses a program
made on a CPU wherever a GPU is visible. A loader module beside the program's own bytes gives exactly its outputs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ExportError
from orchestrator.export.archive import check_archive
from orchestrator.export.base import CHECK_FILE
from orchestrator.export.manifest import Manifest, check_folder
from orchestrator.log import get_logger, redact
from orchestrator.runs.paths import RunDir
from orchestrator.tracking import program_loader
from orchestrator.tracking.artifact_model import packer_of
from orchestrator.tracking.request import TrackingRequest, read_state, url_of
from orchestrator.tracking.store import is_rejection

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROGRAM = "model.pt2"
EXPORT_TAG = "orchestrator.export"
RUN_TAG = "orchestrator.run"
PARENT_TAG = "orchestrator.parent_version"
LOADER = "orchestrator_program_loader"
EXAMPLE_ROWS = 2
_log = get_logger("tracking")


def register_model(
    client: MlflowClient,
    run: RunDir,
    request: TrackingRequest,
    experiment_id: str,
    run_id: str,
    record: Mapping[str, Any],
) -> dict[str, str] | None:
    """Log the model of a `model` record and register it; return {"name", "version"}, or None when it is only logged.

    `record["path"]` is the export folder (of the run, or of the format `program`). Optional: `register_as`, `alias`
    (else the request's), `description` (markdown, verdict first), `tags`. Doing it again after a crash makes no second
    version. With `flavour`, the format of a compressed model: it is registered beside its parent, whose version a tag
    names. Raises ExportError when the export is not whole.
    """
    digest, packer = _packer(record)
    tags = {str(key): redact(str(value)) for key, value in dict(record.get("tags") or {}).items()}
    tags |= {EXPORT_TAG: digest, RUN_TAG: run.run_id}
    name = record.get("register_as") or request.register_as
    parent = read_state(run).model_version
    if record.get("flavour") and parent is not None:
        tags[PARENT_TAG] = parent["version"]
    model_id = _log_model(client, experiment_id, run_id, name or "model", packer, tags)
    if not name:
        return None
    number = _register(client, str(name), run_id, model_id, tags)
    link = url_of(read_state(run))
    description = redact(str(record.get("description") or "")).strip()
    if PARENT_TAG in tags:
        description += f"\n\nCompressed from version {tags[PARENT_TAG]}."
    text = f"{description}\n\nRun: [{run.run_id}]({link})".strip() if link else description
    client.update_model_version(str(name), number, description=text)
    _set_alias(client, str(name), str(record.get("alias") or request.alias or ""), number)
    versions = json.dumps([{"name": name, "version": number}])
    client.set_logged_model_tags(model_id, {"mlflow.modelVersions": versions})
    return {"name": str(name), "version": number}


def _set_alias(client: MlflowClient, name: str, alias: str, number: str) -> None:
    """Move the alias to this version. A name that MLflow refuses costs the alias, not the version."""
    from mlflow.exceptions import MlflowException

    if alias.lower() in ("", "latest"):
        return  # MLflow reserves `latest`: models:/NAME/latest is the newest version by itself
    try:
        client.set_registered_model_alias(name, alias, number)
    except MlflowException as error:
        if not is_rejection(error):
            raise
        _log.error("the alias '%s' was refused: %s", alias, error)


def _program_folder(path: Path) -> Path:
    for folder in (path, path / "program"):
        if (folder / PROGRAM).is_file():
            return folder
    raise ExportError(f"no {PROGRAM} in {path}", hint="the job must list the exporter `program` for MLflow to serve it")


def _packer(record: Mapping[str, Any]) -> tuple[str, Callable[..., Path]]:
    """Return the digest of what a record names, and what makes an MLflow folder of it (scratch folder, ids)."""
    path = Path(record["path"])
    if record.get("flavour"):
        return packer_of(path)
    folder = _program_folder(path)
    manifest = check_folder(folder)
    return manifest.files[PROGRAM].sha256[:16], partial(pack, folder, manifest)


def _log_model(
    client: MlflowClient,
    experiment_id: str,
    run_id: str,
    name: str,
    packer: Callable[..., Path],
    tags: dict[str, str],
) -> str:
    """Return the id of the run's logged model with this digest; one that was begun and not finished is completed."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    condition = f"tags.`{EXPORT_TAG}` = '{tags[EXPORT_TAG]}'"
    found = client.search_logged_models([experiment_id], filter_string=condition)
    mine = [model for model in found if model.source_run_id == run_id]
    model = mine[0] if mine else client.create_logged_model(experiment_id, name, source_run_id=run_id, tags=tags)
    if model.status != LoggedModelStatus.READY:
        with tempfile.TemporaryDirectory(prefix="orchestrator-model-") as scratch:
            packed = packer(Path(scratch), run_id=run_id, model_id=model.model_id, place=model.artifact_location)
            client.log_model_artifacts(model.model_id, str(packed))
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return str(model.model_id)


def pack(
    folder: Path, manifest: Manifest, scratch: Path, *, run_id: str = "", model_id: str = "", place: str = ""
) -> Path:
    """Write an MLflow model folder under `scratch` from an exported program and return it."""
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    data, code, packed = scratch / "data", scratch / "code", scratch / "model"
    data.mkdir()
    code.mkdir()
    write_plain_program(folder / PROGRAM, data / PROGRAM)
    digest = hashlib.sha256((data / PROGRAM).read_bytes()).hexdigest()
    page = {"sha256": digest, "dtype": manifest.inputs["dtype"], "inputs": manifest.inputs, "outputs": manifest.outputs}
    (data / "program.json").write_text(json.dumps(page | {"weights_digest": manifest.weights_digest}, indent=1))
    loader = code / f"{LOADER}.py"
    shutil.copyfile(Path(program_loader.__file__), loader)
    specs = [_spec(TensorSpec, manifest.inputs), _spec(TensorSpec, manifest.outputs)]
    mlflow.pyfunc.save_model(
        str(packed),
        loader_module=LOADER,
        data_path=str(data),
        code_paths=[str(loader)],
        signature=ModelSignature(inputs=Schema([specs[0]]), outputs=Schema([specs[1]])),
        input_example=_example(folder, manifest),
        pip_requirements=[f"torch=={version('torch').split('+')[0]}", f"numpy=={version('numpy')}"],
        mlflow_model=Model(artifact_path=place or None, run_id=run_id or None, model_id=model_id or None),
    )
    for cache in packed.rglob("__pycache__"):
        shutil.rmtree(cache, ignore_errors=True)
    return packed


def write_plain_program(source: Path, target: Path) -> None:
    """Copy a program archive without its example inputs, which torch stores as a pickle. Raises ExportError."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            is_example = info.filename.partition("/")[2].startswith("data/sample_inputs/")
            new.writestr(info.filename, b"" if is_example else old.read(info))
    check_archive(target)


def _spec(kind: Any, page: Mapping[str, Any]) -> Any:
    import numpy

    dtype = "float32" if page["dtype"] == "bfloat16" else page["dtype"]
    return kind(numpy.dtype(dtype), tuple(-1 if size is None else int(size) for size in page["shape"]))


def _example(folder: Path, manifest: Manifest) -> Any:
    """Return two rows of held-out inputs; zeros where the export kept none."""
    import numpy
    from safetensors.numpy import load_file

    if (folder / CHECK_FILE).is_file():
        rows = load_file(str(folder / CHECK_FILE))["inputs"][:EXAMPLE_ROWS]
        if len(rows) == EXAMPLE_ROWS:
            return rows
    sizes = [EXAMPLE_ROWS, *(int(size) for size in manifest.inputs["shape"][1:])]
    return numpy.zeros(sizes, dtype=_spec(lambda dtype, _: dtype, manifest.inputs))


def _register(client: MlflowClient, name: str, run_id: str, model_id: str, tags: dict[str, str]) -> str:
    """Return the number of the version that holds this export of this run, created when absent."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
            raise
    for found in client.search_model_versions(f"name = '{name}'"):
        if found.run_id == run_id and found.tags.get(EXPORT_TAG) == tags[EXPORT_TAG]:
            return str(found.version)
    made = client.create_model_version(
        name, source=f"models:/{model_id}", run_id=run_id, tags=tags, model_id=model_id, await_creation_for=30
    )
    return str(made.version)
