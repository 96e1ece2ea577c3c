"""`Manifest`: the page in an export folder that says what the files are, whence they come and how well they compare.

An export without a manifest that says `verified` does not exist. Read by verify, eval, tracking. No torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ExportError
from orchestrator.log import redact_data

if TYPE_CHECKING:
    from orchestrator.spec.job import JobSpec

MANIFEST_FILE = "manifest.json"
_JOB_SECTIONS = {"version", "name", "model", "data", "optim", "train"}


@dataclass(frozen=True)
class FileEntry:
    """Size and SHA-256 of one file."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Verified:
    """What was measured in a fresh process: reloaded outputs against the eager model's on held-out inputs."""

    max_abs_diff: float
    relative_diff: float
    samples: int
    batch_sizes: tuple[int, ...]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Verified:
        """Return it from its JSON form."""
        return cls(**{**value, "batch_sizes": tuple(value["batch_sizes"])})


@dataclass(frozen=True)
class Manifest:
    """Everything known about one exported model. `verified` is None until the comparison held."""

    format: str
    options: Mapping[str, Any]
    files: Mapping[str, FileEntry]
    versions: Mapping[str, str]
    inputs: Mapping[str, Any]
    """`shape` (the batch dim is null) and `dtype` of one batch."""
    outputs: Mapping[str, Any]
    job: Mapping[str, Any]
    """Sections name, model, data, optim and train of the job: enough to rebuild the model, to evaluate and train it.

    A manifest of before has no optim.
    """
    job_digest: str
    checkpoint: str
    weights_digest: str
    num_threads: int = 1
    """Threads that the trained model was evaluated with; sums are cut up alike when it is evaluated again."""
    tolerance: Mapping[str, float | None] = field(default_factory=dict)
    verified: Verified | None = None
    version: int = 1


def kept_job(job: JobSpec, *more: str) -> dict[str, Any]:
    """Return what a file that is handed on says of its job: no tracking, no secret of the data.

    `more` names further sections. Tracking may name a password in its URI.
    """
    kept = job.model_dump(mode="json", include=_JOB_SECTIONS | set(more))
    return kept | {"data": redact_data(kept["data"])}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` atomically and durably, with a SHA-256 over its own content."""
    payload = asdict(manifest)
    payload["sha256"] = _self_digest(payload)
    scratch = folder / f".{MANIFEST_FILE}.{os.getpid()}"
    with open(scratch, "w", encoding="utf-8") as file:
        json.dump(payload, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(folder / MANIFEST_FILE)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of an export folder. Raises ExportError when there is none or it was altered."""
    path = folder / MANIFEST_FILE
    try:
        payload = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{folder} holds no {MANIFEST_FILE}", hint="it is not an exported model folder") from None
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read: {error}", hint=_AGAIN) from error
    if not isinstance(payload, dict) or payload.pop("sha256", None) != _self_digest(payload):
        raise ExportError(f"{path} was altered after it was written: its own digest differs", hint=_AGAIN)
    try:
        payload["files"] = {name: FileEntry(**entry) for name, entry in payload["files"].items()}
        if payload["verified"] is not None:
            payload["verified"] = Verified.from_json(payload["verified"])
        return Manifest(**payload)
    except (TypeError, KeyError, AttributeError) as error:
        raise ExportError(f"{path} is not a manifest of version 1: {error}", hint=_AGAIN) from error


def hash_files(folder: Path, names: list[str]) -> dict[str, FileEntry]:
    """Return size and SHA-256 of these files of `folder`."""
    return {name: FileEntry((folder / name).stat().st_size, file_digest(folder / name)) for name in sorted(names)}


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raise ExportError when a file is missing, has another size or another content than the manifest says."""
    for name, entry in manifest.files.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ExportError(f"{folder}: the manifest names a file outside the folder: {name}", hint=_AGAIN)
        if not path.is_file():
            raise ExportError(f"{path} is missing", hint=_AGAIN)
        if path.stat().st_size != entry.num_bytes:
            raise ExportError(f"{path} has {path.stat().st_size} bytes, written were {entry.num_bytes}", hint=_AGAIN)
        if file_digest(path) != entry.sha256:
            raise ExportError(f"{path} was altered: its SHA-256 differs from the manifest's", hint=_AGAIN)


def check_folder(folder: Path) -> Manifest:
    """Return the manifest of a finished export whose files are untouched. Raises ExportError."""
    manifest = read_manifest(folder)
    if manifest.verified is None:
        raise ExportError(f"{folder} was never verified", hint=_AGAIN)
    check_files(folder, manifest)
    return manifest


def with_verified(manifest: Manifest, verified: Verified) -> Manifest:
    """Return the manifest with the measured comparison in it."""
    return replace(manifest, verified=verified)


def file_digest(path: Path) -> str:
    """Return the SHA-256 (hex) of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(value: object) -> str:
    """Return the SHA-256 (hex) of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _self_digest(payload: Mapping[str, Any]) -> str:
    return json_digest(payload)


_AGAIN = "export again: `orchestrator export RUN`"
