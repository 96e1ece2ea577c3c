"""The seven parts of docs/plugins.md train, evaluate, save and export: in one process at once, and as a whole run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from orchestrator.parallel.process import Rank
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import read_record
from orchestrator.spec.job import JobSpec
from orchestrator.spec.load import load_job
from orchestrator.train.engine import build_engine
from orchestrator.train.loop import fit
from orchestrator.train.ports import Ports

from .pages import ROOT, forget, named_blocks

PARTS = {"model", "data", "loss", "metric", "callback", "optimizer", "export"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    found = named_blocks(ROOT / "docs" / "plugins.md")
    assert set(found) == {f"mine/{part}.py" for part in PARTS} | {"my_job.yaml"}
    (tmp_path / "mine").mkdir()
    for name, text in found.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    forget("mine")


def job(**train: object) -> JobSpec:
    return load_job("my_job.yaml", [f"train.{key}={value}" for key, value in train.items()]).spec


def test_they_train_together(folder: Path) -> None:
    engine = build_engine(job(), Rank(0, 1, 0))
    result = fit(engine, Ports())
    assert result.status == "finished"
    assert result.best_metrics["val/macrorecall"] > 0.85
    assert set(result.metrics) == {"val/loss", "val/accuracy", "val/macrorecall"}
    rows = (folder / "norms.csv").read_text().splitlines()
    assert len(rows) == 16
    assert rows[-1].startswith("200,")
    assert all("mean" in state for state in engine.optimizer.state.values())


def test_the_model_and_the_data_pass_the_suites(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import import_module

    from orchestrator.testing.datasets import DataConformance
    from orchestrator.testing.models import ModelConformance

    monkeypatch.setenv("PYTHONPATH", str(folder))
    suites = [
        type("Model", (ModelConformance,), {"plugin": import_module("mine.model")})(),
        type("Data", (DataConformance,), {"plugin": import_module("mine.data")})(),
    ]
    for suite in suites:
        for name in dir(suite):
            if name.startswith("test_"):
                getattr(suite, name)()


def test_the_exported_file_computes_the_same_without_torch_in_it(folder: Path) -> None:
    from importlib import import_module

    model = build_engine(job(), Rank(0, 1, 0)).model.module.eval().requires_grad_(False)
    exporter = import_module("mine.export").build(None)
    inputs = torch.randn(7, 2)
    files = exporter.write(model, inputs[:2], folder)
    assert [path.name for path in files] == ["matrices.npz"]
    torch.testing.assert_close(exporter.load(folder)(inputs), model(inputs))


@pytest.mark.slow
def test_the_whole_run(folder: Path) -> None:
    said = [sys.executable, "-m", "orchestrator", "run", "my_job.yaml", "train.steps=40", "cluster.gpus_per_worker=0"]
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}
    done = subprocess.run(said, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunDir(folder / "runs" / "mine-1")
    assert read_record(run).state == "finished"
    assert {path.name for path in run.exports.iterdir()} == {"program", "export"}
    assert (run.exports / "export" / "matrices.npz").is_file()
