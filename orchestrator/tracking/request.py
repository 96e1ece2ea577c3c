"""What the driver asks of the sender (`tracking.json`) and what it answers (`tracking-state.json`). No mlflow."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from orchestrator.log import redact
from orchestrator.runs.paths import RunDir, default_tracking_uri

DEFAULT_UI = "http://127.0.0.1:5000"
# Without it a first visit shows MLflow's pages for language-model applications; other versions ignore it.
TRAINING_VIEW = "?workflowType=machine_learning"


@dataclass(frozen=True)
class TrackingRequest:
    """Where a run is tracked and under which names. `key` finds a run again that was created but not yet announced.

    `mlflow_run_id` is set on resume: that run is reopened. `after_bytes` is the length of `driver.jsonl` when the
    request was written: a `status` before it belongs to an earlier start and does not end this one. `started_ms`: when
    the run began; 0: now, as far as the sender is concerned, which for a trial may be after its end.
    """

    uri: str
    experiment: str = "default"
    run_name: str = ""
    offline: bool = False
    resume: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    register_as: str | None = None
    alias: str | None = None
    mlflow_run_id: str = ""
    key: str = ""
    after_bytes: int = 0
    started_ms: int = 0


@dataclass(frozen=True)
class TrackingState:
    """What the sender has reached. `launch` names the start it belongs to; `url` is for people, without credentials."""

    state: Literal["starting", "ready", "failed", "offline"]
    uri: str = ""
    experiment_id: str = ""
    run_id: str = ""
    url: str = ""
    error: str = ""
    hint: str = ""
    launch: str = ""
    model_version: dict[str, str] | None = None
    compressed_version: dict[str, str] | None = None


def request_path(run: RunDir) -> Path:
    """Return the file of the request."""
    return run.path / "tracking.json"


def state_path(run: RunDir) -> Path:
    """Return the file of the answer."""
    return run.path / "tracking-state.json"


def write_request(
    run: RunDir,
    *,
    uri: str | None = None,
    experiment: str = "default",
    run_name: str = "",
    offline: bool = False,
    resume: bool = False,
    tags: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    description: str = "",
    register_as: str | None = None,
    alias: str | None = None,
    mlflow_run_id: str = "",
    started_ms: int = 0,
    complete: bool = False,
) -> TrackingRequest:
    """Write `tracking.json` (mode 0600: the URI may hold credentials) and return it.

    `uri` None means SQLite in the run's storage folder. With `resume` the MLflow run id and the key of the earlier
    start are taken over from the run's folder unless given. Call it before this start appends to `driver.jsonl`; with
    `complete` after all of it, the status included, was written.
    """
    earlier = read_request(run) if resume else None
    driver = run.spool / "driver.jsonl"
    request = TrackingRequest(
        uri=resolve_uri(uri, run.storage),
        experiment=experiment,
        run_name=run_name or run.run_id,
        offline=offline,
        resume=resume,
        tags={key: str(value) for key, value in (tags or {}).items()},
        params={key: str(value) for key, value in (params or {}).items()},
        description=description,
        register_as=register_as,
        alias=alias,
        mlflow_run_id=mlflow_run_id or (read_state(run).run_id if resume else ""),
        key=earlier.key if earlier else uuid.uuid4().hex,
        after_bytes=driver.stat().st_size if driver.exists() and not complete else 0,
        started_ms=started_ms,
    )
    replace_json(request_path(run), asdict(request), mode=0o600)
    return request


def amend_request(run: RunDir, **changes: Any) -> None:
    """Change some fields of the run's request where it stands (a sweep's winner gets the name of its model)."""
    request = read_request(run)
    if request is not None:
        replace_json(request_path(run), asdict(replace(request, **changes)), mode=0o600)


def read_request(run: RunDir) -> TrackingRequest | None:
    """Return the run's request; None when tracking was never asked for."""
    value = read_json(request_path(run))
    return TrackingRequest(**_known(TrackingRequest, value)) if value else None


def read_state(run: RunDir) -> TrackingState:
    """Return what the sender announced last; `starting` when nothing yet."""
    value = read_json(state_path(run))
    return TrackingState(**_known(TrackingState, value)) if value else TrackingState("starting")


def write_state(run: RunDir, state: TrackingState, /, **changes: Any) -> TrackingState:
    """Replace the announced state atomically and return it."""
    state = replace(state, **changes)
    replace_json(state_path(run), asdict(state))
    return state


def resolve_uri(uri: str | None, storage: Path) -> str:
    """Return the absolute tracking URI: the default store for None, relative SQLite paths made absolute."""
    if not uri:
        return default_tracking_uri(storage)
    prefix = "sqlite:///"
    if uri.startswith(prefix):
        return f"{prefix}{Path(uri.removeprefix(prefix)).resolve()}"
    return uri.rstrip("/") if uri.startswith(("http://", "https://")) else uri


def url_of(state: TrackingState, base: str = DEFAULT_UI) -> str:
    """Return the link that opens the run in MLflow's UI (a server's own, else `base`); "" before a run exists."""
    if not state.run_id:
        return ""
    root = redact(state.uri) if urlsplit(state.uri).scheme in ("http", "https") else base
    root = root.replace("***@", "").rstrip("/")
    return f"{root}/#/experiments/{state.experiment_id}/runs/{state.run_id}{TRAINING_VIEW}"


def replace_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """Write JSON to `path` so that a reader or a crash sees the old or the new text, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`; {} when there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _known(kind: type, value: Mapping[str, Any]) -> dict[str, Any]:
    return {item.name: value[item.name] for item in fields(kind) if item.name in value}
