"""Which run was tracked last in a storage folder, and where MLflow shows it. Standard library only."""

from __future__ import annotations

from pathlib import Path

from orchestrator.runs.paths import RunDir
from orchestrator.tracking.request import read_state, url_of


def last_run_link(storage: Path, base: str) -> str:
    """Return the link, under the page at `base`, of the run started last in `storage`; "" when there is none."""
    requests = sorted(storage.glob("*/tracking.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in requests:
        run = RunDir(path.parent)
        state = read_state(run)
        if state.run_id:
            return url_of(state, base)
    return ""
