"""Every job file of the house is well-formed, fits a two-core machine, and its model takes its data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orchestrator import jobs, plugins
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.spec.load import load_job

FOLDER = Path(jobs.__path__[0])
FILES = sorted(FOLDER.rglob("*.yaml"))
TWO_CORES = Available(num_cpus=2.0, num_gpus=0, memory_bytes=8 << 30)


def test_there_are_jobs() -> None:
    assert {file.stem for file in FILES} >= {"digits_cnn", "digits_mlp", "neuron", "smoke", "table_iris", "xor_mlp"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_job_says_what_it_is_and_how_to_run_it(file: Path) -> None:
    schema, what, *_ = file.read_text().splitlines()
    top = file.parent == FOLDER
    assert schema == f"# yaml-language-server: $schema={'./' if top else '../'}job.schema.json"
    assert what.startswith("# what: ")
    assert "| needs: " in what
    verb = "verify" if file.parent.name == "verify" else "sweep" if load_job(file).spec.sweep else "run"
    assert what.endswith(f"| run: orchestrator {verb} jobs/{file.relative_to(FOLDER)}")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_job_fits_and_its_model_takes_its_data(file: Path) -> None:
    job = load_job(file).spec
    plan = build_plan(job, TWO_CORES)
    model = plugins.build("models", job.model.use, job.model.options)
    data = plugins.load("data", job.data.use)
    dataset = data.load(plugins.build_config(data.Config, job.data.options))
    inputs, targets = dataset.splits["train"].batch(torch.arange(4))
    outputs = model(inputs)
    if dataset.shape.target_kind == "class":
        assert outputs.shape == (*targets.shape, len(dataset.shape.classes))
    else:
        assert outputs.shape == targets.shape
    assert plan.num_params == sum(parameter.numel() for parameter in model.parameters())
