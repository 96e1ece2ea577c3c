"""What docs/models.md teaches under "Bring your own" works as written: bare modules, a plain class, own data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import JobFileError
from orchestrator.parallel.process import Rank
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.spec.load import load_job
from orchestrator.train.engine import build_engine
from orchestrator.train.loop import fit
from orchestrator.train.ports import Ports

from .pages import ROOT, forget, named_blocks

NETS = """model: {use: my_nets, width: 16}
data: {use: digits, flat: true}
train: {steps: 3, batch_size: 32}
"""
DATA = """model: {use: mlp, inputs: 3, hidden: [4], outputs: 1}
data: {use: my_data, size: 200}
train: {steps: 3, batch_size: 20, loss: {use: mse}}
"""
PLAIN = """from torch import nn

class Net(nn.Sequential):
    def __init__(self, width):
        super().__init__(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    found = named_blocks(ROOT / "docs" / "models.md")
    assert set(found) == {"my_nets.py", "my_data.py"}
    for name, text in {**found, "nets.yaml": NETS, "data.yaml": DATA, "plain.py": PLAIN}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    forget("my_nets", "my_data", "plain")


@pytest.mark.parametrize("job", ["nets.yaml", "data.yaml"])
def test_a_job_with_a_bare_module_is_counted_and_trains(folder: Path, job: str) -> None:
    spec = load_job(job).spec
    plan = build_plan(spec, Available(num_cpus=1, num_gpus=0, memory_bytes=1 << 30))
    assert plan.num_params == (65 * 16 + 10 * 17 if job == "nets.yaml" else 4 * 4 + 5)
    assert plan.data.num_samples["train"] == (1259 if job == "nets.yaml" else 200)
    assert fit(build_engine(spec, Rank(0, 1, 0)), Ports()).status == "finished"


def test_its_keys_are_checked_like_those_of_a_built_in(folder: Path) -> None:
    with pytest.raises(JobFileError) as caught:
        load_job("nets.yaml", ["model.widht=8"])
    assert caught.value.problems[0].path == "model.widht"
    with pytest.raises(JobFileError) as caught:
        load_job("nets.yaml", ["model.use=mlpp"])
    assert "did you mean `mlp`?" in caught.value.problems[0].hint


def test_a_plain_class_trains_as_it_is(folder: Path) -> None:
    spec = load_job("nets.yaml", ["model.use=plain:Net", "model.width=16"]).spec
    assert fit(build_engine(spec, Rank(0, 1, 0)), Ports()).status == "finished"


def test_the_model_passes_the_suite_of_the_page(folder: Path) -> None:
    (block,) = [each for each in python_blocks() if "ModelConformance" in each]
    scope: dict[str, object] = {}
    exec(block, scope)  # the page's own example
    suite = scope["TestMyNet"]
    assert isinstance(suite, type)
    for name in dir(suite):
        if name.startswith("test_"):
            getattr(suite(), name)()


def test_the_command_finds_a_module_in_the_working_folder(folder: Path) -> None:
    said = [sys.executable, "-m", "orchestrator", "check", "nets.yaml", "--json"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(said, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["resolved"]["model"]["width"] == 16


def python_blocks() -> list[str]:
    from .pages import blocks

    return [block.text for block in blocks(ROOT / "docs" / "models.md", "python")]
