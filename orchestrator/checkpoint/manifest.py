"""What a checkpoint says of itself: `CheckpointMeta` (the engine's), `Manifest` (the store's) and `CheckpointRef`.

The manifest is the commit: a folder without one that verifies does not exist. Standard library only, no pickle.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TypeAlias

from orchestrator.checkpoint.disk import MANIFEST, open_regular
from orchestrator.errors import CheckpointError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

VERSION = 1
MAX_MANIFEST_BYTES = 64 << 20
_FILE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FOLDER_NAME = re.compile(r"step-(\d{8,12})-a(\d{1,6})-[0-9a-f]{6}")


@dataclass(frozen=True)
class CheckpointMeta:
    """Everything a run needs to go on besides tensors; plain JSON values.

    `step` counts optimiser steps done. The next sample is number `samples` (global, over all ranks) of epoch `epoch`,
    both from 0. `layout` maps axis to degree. `extra` is free for the engine.
    """

    step: int
    epoch: int = 0
    samples: int = 0
    seed: int = 0
    job_digest: str = ""
    layout: Mapping[str, int] = field(default_factory=dict)
    scheduler: Mapping[str, Json] = field(default_factory=dict)
    monitor: Mapping[str, Json] = field(default_factory=dict)
    """Best value and step so far, evaluations without improvement, and what else early stopping counts."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The newest evaluation when this was saved."""
    mlflow_run_id: str = ""
    mlflow_sequence: int = 0
    extra: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint: name (no folders), size in bytes and SHA-256 in hex."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Content of `manifest.json`. `values` holds the state's leaves that are not tensors, by path."""

    step: int
    attempt: int
    token: int
    world_size: int
    best: bool
    files: tuple[FileEntry, ...]
    meta: CheckpointMeta
    values: Mapping[str, Json] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    finite: bool = True
    """All floating-point tensors were checked to hold no NaN and no infinity before the commit."""
    version: int = VERSION

    @property
    def total_bytes(self) -> int:
        """Size of all files together."""
        return sum(entry.size for entry in self.files)

    @property
    def order(self) -> tuple[int, int, int]:
        """Newer checkpoints compare larger: step, then fencing token, then attempt."""
        return self.step, self.token, self.attempt

    def entry(self, name: str) -> FileEntry:
        """Return the entry of a file. Raises CheckpointError when the manifest does not list it."""
        for entry in self.files:
            if entry.name == name:
                return entry
        raise CheckpointError(f"the manifest of step {self.step} lists no file {name}")

    def to_json(self) -> bytes:
        """Return the bytes of manifest.json. Raises CheckpointError when the meta holds what JSON cannot."""
        try:
            return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"step {self.step} cannot be described in JSON: {error}",
                hint="CheckpointMeta takes plain values only: numbers, strings, lists, dicts.",
            ) from error

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Parse and check manifest.json. Raises CheckpointError saying what is wrong."""
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"manifest is not JSON: {error}") from error
        if not isinstance(raw, dict) or raw.get("version") != VERSION:
            raise CheckpointError(f"manifest is not of version {VERSION}")
        try:
            entries = tuple(FileEntry(**entry) for entry in raw.pop("files"))
            meta = CheckpointMeta(**raw.pop("meta"))
            manifest = cls(files=entries, meta=meta, **raw)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"manifest has a missing, unknown or misshapen field: {error}") from error
        _check(manifest)
        return manifest


@dataclass(frozen=True)
class Skipped:
    """A checkpoint that was passed over, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class CheckpointRef:
    """A committed checkpoint. `skipped` lists newer ones that did not verify (from `find_newest`). Pickles."""

    path: Path
    manifest: Manifest
    skipped: tuple[Skipped, ...] = ()

    @property
    def name(self) -> str:
        """Name of the folder, for example `step-00000100-a1-3f9c2b`."""
        return self.path.name

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.manifest.step

    @property
    def best(self) -> bool:
        """Whether it was the best so far when it was saved."""
        return self.manifest.best

    @property
    def meta(self) -> CheckpointMeta:
        """What the engine left in it."""
        return self.manifest.meta


def folder_name(step: int, attempt: int, random_hex: str) -> str:
    """Return the name of a save's folder: unique, and sortable by step and attempt."""
    return f"step-{step:08d}-a{attempt}-{random_hex}"


def parse_folder_name(name: str) -> tuple[int, int] | None:
    """Return (step, attempt) of a save's folder name; None for a name of another kind."""
    match = _FOLDER_NAME.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def read_manifest(folder: Path) -> Manifest:
    """Read and check a checkpoint's manifest. Raises CheckpointError, or FileNotFoundError when there is none."""
    if folder.is_symlink():
        raise CheckpointError("the folder is a symbolic link")
    try:
        with open_regular(folder / MANIFEST) as handle:
            data = handle.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"manifest cannot be read: {error}") from error
    if len(data) > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"manifest is larger than {MAX_MANIFEST_BYTES} bytes")
    manifest = Manifest.from_json(data)
    named = parse_folder_name(folder.name)
    if named is not None and named != (manifest.step, manifest.attempt):
        raise CheckpointError(
            f"manifest says step {manifest.step} attempt {manifest.attempt}, the folder's name differs"
        )
    return manifest


def _check(manifest: Manifest) -> None:
    """Refuse values of the wrong type or range, and file names that could lead out of the folder."""
    for name in ("step", "attempt", "token", "world_size"):
        value = getattr(manifest, name)
        if type(value) is not int or value < 0:
            raise CheckpointError(f"manifest field {name} is {value!r}, not a count")
    mappings = [manifest.values, manifest.versions]
    mappings += [getattr(manifest.meta, f.name) for f in fields(CheckpointMeta) if f.default_factory is dict]
    if type(manifest.best) is not bool or not all(isinstance(value, dict) for value in mappings):
        raise CheckpointError("manifest has a field of the wrong type")
    if type(manifest.meta.step) is not int or manifest.meta.step != manifest.step:
        raise CheckpointError(f"manifest step {manifest.step} and its meta's step {manifest.meta.step!r} differ")
    if not manifest.files:
        raise CheckpointError("manifest lists no files")
    for entry in manifest.files:
        _check_entry(entry)
    if len({entry.name for entry in manifest.files}) != len(manifest.files):
        raise CheckpointError("manifest lists a file twice")


def _check_entry(entry: FileEntry) -> None:
    name = entry.name
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name) or name in {".", "..", MANIFEST}:
        raise CheckpointError(f"manifest lists {str(name)[:80]!r}, not a plain file name inside the folder")
    if type(entry.size) is not int or entry.size < 0:
        raise CheckpointError(f"manifest gives {name} the size {entry.size!r}")
    if not isinstance(entry.sha256, str) or not _SHA256.fullmatch(entry.sha256):
        raise CheckpointError(f"manifest gives {name} no SHA-256")
