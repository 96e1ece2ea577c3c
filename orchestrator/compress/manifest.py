"""`Page`: what an artifact is, whence it comes and what was measured of it. Read by the checking process; no torch.

A folder without a page that carries a passed check is no compressed model. The page has a SHA-256 over itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import ExportError
from orchestrator.export.manifest import FileEntry, file_digest, json_digest
from orchestrator.runs.record import write_json

PAGE_FILE = "manifest.json"
CHECK_FILE = "check.npz"
"""Held-out inputs, and what the newest model in memory answered to them."""
EVAL_FILE = "evaluation.npz"
"""Inputs and targets of the whole final split."""


@dataclass(frozen=True)
class Link:
    """One step of the lineage. `digest` names the state it gave, `parent` the one it took.

    `read`: digests, by option, of what it read from elsewhere, such as the weights of a teacher.
    """

    step: str
    options: Mapping[str, Any]
    code: str
    data: str
    parent: str
    digest: str
    read: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """Everything known of one compressed model. `needed` are the files that running it takes."""

    format: str
    scheme: str
    needed: Mapping[str, FileEntry]
    beside: Mapping[str, FileEntry]
    """Files that only checking takes, relative to the folder above: inputs, answers, the model before."""
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    target_kind: str
    split: str
    baseline_bytes: int
    """Size of the fp32 safetensors file of the model before."""
    lineage: tuple[Link, ...]
    job: Mapping[str, Any]
    job_digest: str
    checkpoint: str
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    measure: Mapping[str, Any]
    limits: Mapping[str, Any]
    checked: Mapping[str, Any] | None = None
    version: int = 1
    restored: Mapping[str, Any] = field(default_factory=dict)
    """Of an archive: `sha256` and `num_bytes` of the graph it was made of."""
    weights: Mapping[str, int] = field(default_factory=dict)
    """Of mixed precision: bits -> how many weights the report says are kept in them."""
    loss: Mapping[str, Any] = field(default_factory=dict)
    """The job's: `use` and `options`, or `use` and `custom` where only its own code can compute it.

    A page of before has none: cross-entropy without options, or what else fits the kind of target.
    """
    target: str = "cpu"
    """What the file is run on to be judged, and the model before beside it: `cpu` or `cuda`."""
    eager: Mapping[str, float] = field(default_factory=dict)
    """Quality of the model before in eager PyTorch, where it has no form in the runtime to be compared with."""


def write_page(folder: Path, page: Page) -> None:
    """Write the page atomically."""
    payload = json.loads(json.dumps(asdict(page)))
    write_json(folder / PAGE_FILE, payload | {"sha256": json_digest(payload)})


def read_page(folder: Path) -> Page:
    """Return the page of an artifact folder. Raises ExportError when there is none or it was altered."""
    path = folder / PAGE_FILE
    try:
        payload = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read: {error}", hint=_AGAIN) from error
    if not isinstance(payload, dict) or payload.pop("sha256", None) != json_digest(payload):
        raise ExportError(f"{path} was altered after it was written: its own digest differs", hint=_AGAIN)
    try:
        for name in ("needed", "beside"):
            payload[name] = {key: FileEntry(**entry) for key, entry in payload[name].items()}
        payload["lineage"] = tuple(Link(**link) for link in payload["lineage"])
        payload.pop("notes", None)  # of pages of before, always empty
        return Page(**payload)
    except (TypeError, KeyError, AttributeError) as error:
        raise ExportError(f"{path} is no page of a compressed model: {error}", hint=_AGAIN) from error


def entry_of(path: Path) -> FileEntry:
    """Return size and SHA-256 of a file."""
    return FileEntry(path.stat().st_size, file_digest(path))


def check_files(folder: Path, page: Page) -> int:
    """Return the bytes of all files that running takes. Raises ExportError when one is missing or was altered."""
    for root, entries in ((folder, page.needed), (folder.parent, page.beside)):
        for name, entry in entries.items():
            path = root / name
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ExportError(f"{folder}: the page names a file outside: {name}", hint=_AGAIN)
            if not path.is_file():
                raise ExportError(f"{path} is missing", hint=_AGAIN)
            if entry_of(path) != entry:
                raise ExportError(f"{path} was altered: its size or SHA-256 differs from the page's", hint=_AGAIN)
    extra = sorted(item.name for item in folder.iterdir() if item.name not in {*page.needed, PAGE_FILE})
    if extra:
        raise ExportError(f"{folder} holds files that the page does not count: {', '.join(extra)}", hint=_AGAIN)
    return sum(entry.num_bytes for entry in page.needed.values())


_AGAIN = "compress again: `orchestrator compress RUN`"
