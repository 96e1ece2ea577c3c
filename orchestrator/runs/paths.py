"""`RunDir`: the folder of one run and the name of everything in it. The only place where these names are written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunDir:
    """`<storage>/<job name>-<number>/`; the folder's name is the run id."""

    path: Path

    @property
    def run_id(self) -> str:
        """Name of the run, for example `digits-cnn-3`."""
        return self.path.name

    @property
    def storage(self) -> Path:
        """The folder that holds all runs and the default tracking store."""
        return self.path.parent

    @property
    def job(self) -> Path:
        """The resolved job (JSON), as every worker reads it."""
        return self.path / "job.json"

    @property
    def resolved_yaml(self) -> Path:
        """The resolved job (YAML), as people read it."""
        return self.path / "resolved.yaml"

    @property
    def record(self) -> Path:
        """State of the run (JSON), replaced atomically."""
        return self.path / "run.json"

    @property
    def result(self) -> Path:
        """What the engine returned (JSON); there once training has ended by itself."""
        return self.path / "result.json"

    @property
    def lease(self) -> Path:
        """Who may write to this run."""
        return self.path / "lease.json"

    @property
    def stop_request(self) -> Path:
        """Exists when somebody asked the run to finish its step, save and leave."""
        return self.path / "stop.json"

    @property
    def record_lock(self) -> Path:
        """Locked while the record is changed."""
        return self.path / "run.lock"

    @property
    def go(self) -> Path:
        """Exists once the ranks may take their first step."""
        return self.path / "go"

    @property
    def failures(self) -> Path:
        """What went wrong: one file per attempt and rank."""
        return self.path / "failures"

    @property
    def ray(self) -> Path:
        """Internal storage of Ray Train; nothing of ours is read back from it."""
        return self.path / "ray"

    @property
    def checkpoints(self) -> Path:
        """One folder per save."""
        return self.path / "checkpoints"

    @property
    def spool(self) -> Path:
        """Append-only records for the tracking sender, one file per writer."""
        return self.path / "spool"

    @property
    def heartbeats(self) -> Path:
        """One file per rank."""
        return self.path / "heartbeats"

    @property
    def seats(self) -> Path:
        """Where each rank runs: one file per attempt and rank."""
        return self.path / "seats"

    @property
    def logs(self) -> Path:
        """Log files: ours per rank, and third parties'."""
        return self.path / "logs"

    @property
    def exports(self) -> Path:
        """Exported models, a folder each with a manifest."""
        return self.path / "export"

    @property
    def finish(self) -> Path:
        """What the finish stage made of the trained model: exports, final evaluation (JSON)."""
        return self.path / "finish.json"

    @property
    def trials(self) -> Path:
        """Of a sweep: a folder per trial, each laid out like a run."""
        return self.path / "trials"

    @property
    def stages(self) -> Path:
        """Of a sweep's trial: a folder per stage, told as a run of its own."""
        return self.path / "stages"

    @property
    def sweep(self) -> Path:
        """Of a sweep: its ledger and what was made of it."""
        return self.path / "sweep"

    @property
    def compress(self) -> Path:
        """What compressing the trained model came to (JSON)."""
        return self.path / "compress.json"

    @property
    def compressed(self) -> Path:
        """The compressed model: `artifact/` with its manifest, what it was made from, and samples to check it with."""
        return self.path / "compress"

    @property
    def artifacts(self) -> Path:
        """Figures and files on their way to the tracking store."""
        return self.path / "artifacts"


def default_tracking_uri(storage: Path) -> str:
    """Return the absolute URI of the SQLite store that a storage folder holds."""
    return f"sqlite:///{storage.resolve() / 'mlflow.db'}"
