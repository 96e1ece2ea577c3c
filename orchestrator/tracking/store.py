"""Opening an MLflow store and the run in it. Imports mlflow: used inside the sender process only."""

from __future__ import annotations

import fcntl
import http.client
import os
import shutil
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from orchestrator.errors import TrackingError
from orchestrator.log import get_logger, redact, redact_value
from orchestrator.tracking.request import TrackingRequest

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY_TAG = "orchestrator.key"
PROBE_S = 4.0
_RETRY_CODES = {"UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "REQUEST_LIMIT_EXCEEDED"}
_RETRY_CODES |= {"ENDPOINT_NOT_FOUND", "RESOURCE_EXHAUSTED", "ABORTED", "RESOURCE_CONFLICT", "TEMPORARILY_UNAVAILABLE"}
_log = get_logger("tracking")


class DeletedRunError(TrackingError):
    """The MLflow run that is to be written to was deleted, and may be restored."""

    def __init__(self, run_id: str) -> None:
        hint = f"restore it (`mlflow runs restore --run-id {run_id}`), or start a new run"
        super().__init__(f"the MLflow run {run_id} was deleted", hint=hint)


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` (created when absent) among the processes of this machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_local(uri: str) -> bool:
    """Say whether `uri` is a SQLite file, which this process creates and writes by itself."""
    return uri.startswith("sqlite:")


def is_rejection(error: Exception) -> bool:
    """Say whether the store understood a request and refused it for good, so that sending it again is of no use."""
    if isinstance(error, OSError):
        return False  # an outage, known without importing mlflow
    from mlflow.exceptions import MlflowException

    if not isinstance(error, MlflowException):
        return False
    return error.error_code not in _RETRY_CODES and 400 <= error.get_http_status_code() < 500


def check_answers(uri: str) -> None:
    """Raise OSError when nothing answers at an http(s) URI; any answer will do. Takes seconds and needs no mlflow."""
    if not uri.startswith(("http://", "https://")):
        return
    try:
        with urllib.request.urlopen(f"{redact(uri).replace('***@', '')}/health", timeout=PROBE_S):
            return
    except urllib.error.HTTPError:
        return
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLError):
            return  # MLflow has settings of its own for certificates and will judge
        raise ConnectionError(str(error.reason)) from error
    except http.client.HTTPException as error:
        raise ConnectionError(f"not an HTTP server: {error}") from error


def open_client(uri: str, storage: Path) -> MlflowClient:
    """Return a client for `uri`; a SQLite store is created and migrated first, by one process at a time.

    Raises TrackingError when the URI can never work (unknown scheme, schema too old), else what MLflow raises.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    # Not through environment variables: the user's MLFLOW_TRACKING_URI must not send the registry elsewhere.
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    if is_local(uri):
        _create_sqlite(uri, storage)
    try:
        client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    except MlflowException as error:
        if urlsplit(uri).scheme not in ("http", "https"):
            raise _unusable(uri, error) from error
        raise
    return client


def _create_sqlite(uri: str, storage: Path) -> None:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    file = Path(uri.split("///", 1)[-1])
    try:
        with file_lock(file.with_name(f"{file.name}.lock")):
            if not file.exists() or file.stat().st_size == 0:
                _build_sqlite(file, storage)
    except (OSError, SQLAlchemyError, MlflowException) as error:
        raise _unusable(uri, error) from error


def _build_sqlite(file: Path, storage: Path) -> None:
    """Build all tables in a scratch file, then move it into place: a kill leaves no half-made store.

    In memory where the machine offers it: some hundred small commits would each wait for the disk.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    memory = Path("/dev/shm")
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        scratch = Path(folder) / "mlflow.db"
        # The artifact root is given because MLflow's own default is `./mlruns`, wherever this process happens to be.
        SqlAlchemyStore(f"sqlite:///{scratch}", artifact_root(storage)).engine.dispose()
        shutil.copyfile(scratch, draft)
    with open(draft, "rb") as copied:
        os.fsync(copied.fileno())
    os.replace(draft, file)


def _unusable(uri: str, error: Exception) -> TrackingError:
    text = redact(str(error)).strip().splitlines()[0]
    hint = "mend `track.uri`: http(s)://host:port of an MLflow server, or sqlite:////absolute/path.db"
    if "out-of-date" in str(error) or "out of date" in str(error):
        hint = f"save a copy of the file, then: mlflow db upgrade {redact(uri)}"
    return TrackingError(f"the tracking store {redact(uri)} cannot be used: {text}", hint=hint)


def artifact_root(storage: Path) -> str:
    """Return the URI under which artifacts of the default store lie."""
    return (storage.resolve() / "mlartifacts").as_uri()


def ensure_experiment(client: MlflowClient, request: TrackingRequest, storage: Path) -> str:
    """Return the experiment's id, creating it when absent. Raises TrackingError when it was deleted."""
    from mlflow.exceptions import MlflowException

    location = artifact_root(storage) if is_local(request.uri) else None
    for _ in range(2):
        found = client.get_experiment_by_name(request.experiment)
        if found is not None and found.lifecycle_stage != "active":
            raise TrackingError(
                f"the experiment '{request.experiment}' was deleted on {redact(request.uri)}",
                hint=f"restore it (`mlflow experiments restore -x {found.experiment_id}`) or change `track.experiment`",
            )
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(client.create_experiment(request.experiment, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    raise TrackingError(f"the experiment '{request.experiment}' can neither be found nor created")


def ensure_run(
    client: MlflowClient, request: TrackingRequest, experiment_id: str, run_id: str, *, reopen: bool = True
) -> str:
    """Return the id of the MLflow run: the known one, one found by its key, or a new one; `reopen` makes it RUNNING.

    Raises DeletedRunError when the known one was deleted.
    """
    found = run_id if run_id and _exists(client, run_id) else _find_by_key(client, request.key, experiment_id)
    if found and not reopen:
        return found
    if found:
        client.update_run(found, status="RUNNING")
        return found
    tags = {key: redact_value(key, value) for key, value in request.tags.items()}
    tags[KEY_TAG] = request.key
    start_time = request.started_ms or time.time_ns() // 1_000_000
    created = client.create_run(experiment_id, start_time=start_time, tags=tags, run_name=request.run_name)
    return str(created.info.run_id)


def _exists(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        if not is_rejection(error):
            raise
        _log.warning("the MLflow run %s is gone; a new one is created", run_id)
        return False
    if found.info.lifecycle_stage != "active":
        raise DeletedRunError(run_id)
    return True


def _find_by_key(client: MlflowClient, key: str, experiment_id: str) -> str:
    found = client.search_runs([experiment_id], filter_string=f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
    return str(found[0].info.run_id) if found else ""
