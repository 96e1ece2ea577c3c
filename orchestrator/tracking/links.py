"""Which run was tracked last in a storage folder, and where MLflow shows it. Standard library only."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, urlencode

from orchestrator.runs.paths import RunDir
from orchestrator.tracking.request import TrackingState, read_state, url_of


def last_run_link(storage: Path, base: str) -> str:
    """Return the link, under the page at `base`, of the run started last in `storage`; "" when there is none."""
    requests = sorted(storage.glob("*/tracking.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in requests:
        run = RunDir(path.parent)
        state = read_state(run)
        if state.run_id:
            return url_of(state, base)
    return ""


def sweep_links(state: TrackingState, sweep_id: str, objective: str, *, largest_first: bool) -> dict[str, str]:
    """Return the links of a sweep's trials in MLflow, best first: as a table and as charts; {} before a run exists."""
    page, found, _ = url_of(state).partition("/runs/")
    if not found:
        return {}
    asked = {
        "workflowType": "machine_learning",
        "searchFilter": f"tags.`orchestrator.sweep` = '{sweep_id}'",
        "orderByKey": f"metrics.`objective/{objective}`",
        "orderByAsc": str(not largest_first).lower(),
    }
    return {
        name: f"{page}/runs?{urlencode({**asked, 'compareRunsMode': mode}, quote_via=quote)}"
        for name, mode in (("table", "TABLE"), ("charts", "CHART"))
    }
