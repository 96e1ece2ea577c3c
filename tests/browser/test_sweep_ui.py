"""A sweep of a hundred trials looked at as its owner does: the links it prints, in headless Chromium."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.sweep.jobs import tiny_sweep

from .chromium import Tab, browser, find_chromium

ROOT = Path(__file__).parents[2]
CHROMIUM = find_chromium() or ""
TRIALS = 100
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed (apt-get install chromium)"),
]


@dataclass(frozen=True)
class Shown:
    """A finished sweep as `--json` told it, the server that shows it, and its folder."""

    page: dict[str, Any]
    server: str
    folder: Path

    def link(self, name: str) -> str:
        """Return a link that was printed, on the server that is up."""
        return str(self.page["mlflow"][name]).replace("http://127.0.0.1:5000", self.server)


def _start(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "orchestrator", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, start_new_session=True, **pipes)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("sweep")
    space = {
        "optim.lr": {"min": 0.001, "max": 0.3, "log": True},
        "model.hidden": [[4], [8], [16], [8, 8]],
        "train.batch_size": [8, 16, 32],
    }
    objectives = {"val/accuracy": "max", "model/params": "min"}
    sweep = {"space": space, "objectives": objectives, "trials": TRIALS, "scheduler": {"use": "asha"}}
    data = tiny_sweep(folder / "runs", sweep, data={"classes": 2, "num_samples": 512})
    (folder / "job.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    run = _start(folder, "sweep", "job.yaml", "--json")
    said, _ = run.communicate(timeout=1200)
    assert run.returncode == 0, said
    ui = _start(folder, "ui", "--port", "5210", "--json")
    try:
        assert ui.stdout is not None
        yield Shown(json.loads(said), json.loads(ui.stdout.readline())["server"], folder)
    finally:
        ui.send_signal(signal.SIGINT)
        ui.communicate(timeout=30)


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with browser(CHROMIUM) as found:
        yield found


def test_the_page_of_the_sweep_begins_with_its_verdict(shown: Shown, tab: Tab) -> None:
    page = tab.open_until(shown.link("url"), "Finished", shown.page["verdict"], "search", "space.optim.lr")
    tab.picture(shown.folder / "sweep_page.png")
    assert page.words.index(shown.page["verdict"]) < page.words.index("space.optim.lr")


def test_the_figures_are_artifacts_of_the_sweep(shown: Shown, tab: Tab) -> None:
    names = ("budget.png", "front.html", "front.png", "history.png", "importance.png", "parallel.png")
    tab.open_until(f"{shown.link('url').partition('?')[0]}/artifacts/figures", *names)


def test_the_table_link_shows_all_hundred_trials_best_first(shown: Shown, tab: Tab) -> None:
    tab.open_until(shown.link("table"), f"{TRIALS} matching runs", "Sort: objective/val/accuracy", within_s=180)
    tab.picture(shown.folder / "sweep_table.png")


def test_the_charts_link_draws_charts_of_the_trials(shown: Shown, tab: Tab) -> None:
    tab.open_until(shown.link("charts"), "objective/val/accuracy", charts=2, within_s=180)
    tab.picture(shown.folder / "sweep_charts.png")


def test_the_interactive_front_marks_and_lists_every_trial(shown: Shown, tab: Tab) -> None:
    path = shown.folder / "runs" / "tiny-1" / "artifacts" / "figures" / "front.html"
    best = shown.page["best"]
    page = tab.open_until(f"file://{path}", f"{TRIALS} points", f"best {best}", "optim.lr", "model.hidden")
    tab.picture(shown.folder / "sweep_front.png")
    assert all(trial["name"] in page.words for trial in shown.page["trials"])
