"""`SweepResult`: how a sweep ended, as the command line prints it and the Python API returns it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.runs.paths import RunDir
from orchestrator.sweep.summary import Summary, as_data


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended. `state` is finished, stopped, or failed (no trial has a result)."""

    run: RunDir
    state: str
    verdict: str
    summary: Summary
    mlflow: Mapping[str, str] = field(default_factory=dict)
    model_version: Mapping[str, str] | None = None
    unsent: int = 0
    notes: tuple[str, ...] = ()

    @property
    def run_id(self) -> str:
        """Name of the sweep."""
        return self.run.run_id

    @property
    def path(self) -> Path:
        """Folder of the sweep."""
        return self.run.path

    @property
    def exit_code(self) -> int:
        """What the command line ends with: 0 finished, 3 some trials failed, 1 no trial has a result, 130 stopped.

        Infeasible, diverged and out-of-memory points are answers, not failures.
        """
        if self.state == "stopped":
            return 130
        if self.state != "finished":
            return 1
        return 3 if self.summary.counts.get("failed") else 0

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready values."""
        return {
            "run_id": self.run_id,
            "path": str(self.path),
            "state": self.state,
            "verdict": self.verdict,
            **as_data(self.summary),
            "mlflow": dict(self.mlflow),
            "model_version": self.model_version,
            "unsent": self.unsent,
            "notes": list(self.notes),
        }
