"""A finished run looked at as its owner does: `orchestrator ui`, then the MLflow pages in headless Chromium."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import RunRecord, read_record
from orchestrator.tracking.request import TRAINING_VIEW

from .chromium import Tab, browser, find_chromium

ROOT = Path(__file__).parents[2]
CHROMIUM = find_chromium() or ""
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed (apt-get install chromium)"),
]
OVERRIDES = (
    "track.register_as=smoke",
    "track.description=Looked at by a browser.",
    "parallel.replicate=1",
    "cluster.gpus_per_worker=0",
    "export=[{use: program}]",
)


@dataclass(frozen=True)
class Shown:
    """A finished run and the server that shows it."""

    record: RunRecord
    server: str

    @property
    def url(self) -> str:
        """Link of the run's page."""
        return f"{self.server}/#/experiments/{self.record.mlflow['experiment_id']}/runs/{self.record.mlflow['run_id']}"


def _start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if "ui" not in words else subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("browser")
    run = _start(folder, "run", str(ROOT / "jobs" / "smoke.yaml"), *OVERRIDES)
    said, _ = run.communicate(timeout=180)
    assert run.returncode == 0, said
    record = read_record(RunDir(folder / "runs" / "smoke-1"))
    ui = _start(folder, "ui", "--port", "5200", "--json")
    try:
        assert ui.stdout is not None
        told = json.loads(ui.stdout.readline())
        link = f"/runs/{record.mlflow['run_id']}{TRAINING_VIEW}"
        assert told["url"].endswith(link), "the link printed is that of the last run"
        yield Shown(record, told["server"])
    finally:
        ui.send_signal(signal.SIGINT)
        ui.communicate(timeout=30)
    assert ui.returncode == 0


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with browser(CHROMIUM) as found:
        yield found


def test_the_run_page_shows_verdict_parameters_metrics_and_the_registered_model(shown: Shown, tab: Tab) -> None:
    page = tab.open_until(
        shown.url,
        "Finished",
        shown.record.verdict,
        "Looked at by a browser.",
        "orchestrator run",
        "model.use mlp",
        "optim.lr 0.01",
        "train.steps 20",
        "test/accuracy",
        "val/loss",
        "Registered models smoke v1",
    )
    assert page.words.index(shown.record.verdict) < page.words.index("Looked at by a browser.")


def test_the_printed_link_opens_the_pages_for_model_training(shown: Shown, tab: Tab) -> None:
    page = tab.open_until(shown.url + TRAINING_VIEW, "Model registry", shown.record.verdict)
    assert "Judges" not in page.words


def test_the_metrics_page_draws_charts(shown: Shown, tab: Tab) -> None:
    page = tab.open_until(f"{shown.url}/model-metrics", "train (4)", "val (2)", "test (2)", charts=4)
    assert "No charts" not in page.words.split("Model metrics (0)")[0]


def test_the_registry_shows_version_alias_and_source(shown: Shown, tab: Tab) -> None:
    tab.open_until(
        f"{shown.server}/#/models/smoke/versions/1",
        "Version 1",
        "newest",
        "on 359 test samples",
        f"Source Run : {shown.record.run_id}",
    )
