"""What the tracking store is told about a run besides its metrics: flat parameters, tags, the code's commit."""

from __future__ import annotations

import getpass
import platform
import socket
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from orchestrator.log import redact_value
from orchestrator.plan.plan import Plan
from orchestrator.spec.job import JobSpec

_LONGEST = 500


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings and lists of mappings as dotted keys; other lists stay one value."""
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for key, inner in value.items():
            found |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        return found
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        return {key: item for n, inner in enumerate(value) for key, item in flatten(inner, f"{prefix}.{n}").items()}
    return {prefix: value}


def params(spec: JobSpec, plan: Plan) -> dict[str, str]:
    """Return the job as flat text parameters, secrets masked, with what the plan made of `auto`."""
    flat = {key: value for key, value in flatten(spec.model_dump(mode="json")).items() if value is not None}
    flat |= {"plan.world_size": plan.layout.world_size, "plan.total_steps": plan.batch.total_steps}
    flat |= {"plan.backend": plan.resources.backend, "plan.device": plan.resources.device}
    if plan.num_params is not None:
        flat["plan.num_params"] = plan.num_params
    return {key: redact_value(key, value)[:_LONGEST] for key, value in flat.items()}


def tags(spec: JobSpec, plan: Plan, run_id: str, command: str) -> dict[str, str]:
    """Return who ran what, where, with which code."""
    found = {
        "orchestrator.run_id": run_id,
        "orchestrator.job": spec.name,
        "layout": plan.layout.describe(),
        "cluster": spec.cluster.address or ("local Ray cluster" if plan.uses_ray else "one process"),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "command": command,
        **(code := git_tags()),
        **_page_tags(command, code.get("git.commit", "")),
        **spec.track.tags,
    }
    for package in ("torch", "ray", "mlflow", "orchestrator"):
        try:
            found[f"version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return {key: redact_value(key, value) for key, value in found.items() if value}


def _page_tags(command: str, commit: str) -> dict[str, str]:
    """Return the tags from which MLflow's page takes "Created by" and "Source"."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        user = ""
    return {
        "mlflow.user": user,
        "mlflow.source.name": command,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit,
    }


def git_tags() -> dict[str, str]:
    """Return commit, branch and whether files were changed, of the current folder; {} outside a repository."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return {}
    dirty = "true" if _git("status", "--porcelain", "--untracked-files=no") else "false"
    return {"git.commit": commit, "git.branch": _git("rev-parse", "--abbrev-ref", "HEAD"), "git.dirty": dirty}


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
