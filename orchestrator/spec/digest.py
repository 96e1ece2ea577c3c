"""What of a job decides its result: a digest of it, and the keys in which two jobs differ. A resumed run must agree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from orchestrator.spec.job import JobSpec

_SECTIONS = ("model", "data", "optim", "train")
# Keys of these sections that change speed or what is looked at, never the weights.
_FREE = {"profile", "activation_checkpoint", "activation_checkpoint_every", "eval_batch_size"}


def deciding_parts(job: JobSpec) -> dict[str, Any]:
    """Return model, data, optimiser and training as plain values, without keys that cannot change the result."""
    parts = job.model_dump(mode="json", include=set(_SECTIONS))
    parts["train"] = {key: value for key, value in parts["train"].items() if key not in _FREE}
    init = parts["train"].pop("init")
    if init is not None:  # a job without it keeps the digest it had before there was this key
        parts["train"]["init"] = {key: value for key, value in init.items() if key != "file" or not init["sha256"]}
    return parts


def job_digest(job: JobSpec) -> str:
    """Return a digest (16 hex digits) of what decides the result: not where it runs, nor over how many ranks."""
    return hashlib.sha256(json.dumps(deciding_parts(job), sort_keys=True).encode()).hexdigest()[:16]


def differing_keys(one: JobSpec, other: JobSpec) -> list[tuple[str, Any, Any]]:
    """Return (dotted key, value in `one`, value in `other`) of every deciding key in which two jobs differ."""
    mine, theirs = _flat(deciding_parts(one)), _flat(deciding_parts(other))
    keys = [*mine, *(key for key in theirs if key not in mine)]
    return [(key, mine.get(key), theirs.get(key)) for key in keys if mine.get(key) != theirs.get(key)]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found
