"""Starts the processes that judge an artifact: the check, the timing, the footprints. Called by the pipeline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from orchestrator.compress.manifest import read_page
from orchestrator.compress.runtimes.base import reference_files
from orchestrator.environment import rank_environment
from orchestrator.errors import ExportError

TIMEOUT_S = 600.0
_STARTS = 2


def check_artifact(folder: Path) -> dict[str, Any]:
    """Return what a fresh process without torch measured. Raises ExportError when the artifact does not hold."""
    answer: dict[str, Any] = _ask("check", [str(folder)])
    if "error" in answer:
        raise ExportError(answer["error"], hint=answer["hint"])
    return answer


def time_artifact(folder: Path) -> list[dict[str, Any]]:
    """Return figures per batch size and threads. Raises ExportError when timing itself failed."""
    rows: list[dict[str, Any]] = _ask("timing", [str(folder)])
    return rows


def weigh_processes(folder: Path) -> dict[str, dict[str, float]]:
    """Return seconds to the first answer (the better of two starts) and peak memory, for each kind of process."""
    found: dict[str, dict[str, float]] = {}
    page = read_page(folder)
    compared = any(name in page.beside for name in reference_files(page.format))
    kinds = ["eager", *(["runtime"] if compared else []), "candidate"]
    for kind in kinds:
        asked = [kind, str(folder), page.format, page.target]
        starts = [_ask("footprint", [*asked, str(time.monotonic())]) for _ in range(_STARTS)]
        found[kind] = {name: min(start[name] for start in starts) for name in starts[0]}
    return found


def _ask(module: str, arguments: list[str]) -> Any:
    """Run one of our modules and return the last line it prints, as JSON."""
    environment = rank_environment() | {"OMP_NUM_THREADS": str(os.cpu_count() or 1) if module == "timing" else "1"}
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    try:
        done = subprocess.run(
            [sys.executable, "-m", f"orchestrator.compress.{module}", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ExportError(
            f"the process of orchestrator.compress.{module} did not end within {TIMEOUT_S:g} s and was stopped",
            hint="compress where the processor has nothing else to do, or with a smaller model or test split",
        ) from None
    lines = done.stdout.strip().splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, ValueError):
        why = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
        raise ExportError(f"the process that should {module} the artifact failed: {why}") from None
