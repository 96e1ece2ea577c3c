"""`RunResult`: how a run ended, as the command line prints it and the Python API returns it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.runs.paths import RunDir


@dataclass(frozen=True)
class RunResult:
    """How a run ended. `state` is finished, stopped, or failed (trained, but not exported or not compressed)."""

    run: RunDir
    state: str
    verdict: str
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    model_version: Mapping[str, str] | None = None
    mlflow: Mapping[str, str] = field(default_factory=dict)
    attempts: int = 1
    seconds: float = 0.0
    unsent: int = 0
    notes: tuple[str, ...] = ()
    compressed_version: Mapping[str, str] | None = None
    compression: tuple[str, ...] = ()
    """The report of the compression, as lines for people; () without one."""

    @property
    def run_id(self) -> str:
        """Name of the run."""
        return self.run.run_id

    @property
    def path(self) -> Path:
        """Folder of the run."""
        return self.run.path

    @property
    def exit_code(self) -> int:
        """What the command line ends with: 0 finished, 130 stopped, 1 failed."""
        return {"finished": 0, "stopped": 130}.get(self.state, 1)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready values."""
        content = asdict(self)
        del content["run"]
        return {"run_id": self.run_id, "path": str(self.path), **content}
