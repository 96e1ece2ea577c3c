"""The code in docs/models.md runs and keeps the contract, and its numbers are the code's."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator import plugins
from orchestrator.models import cnn, mlp
from orchestrator.spec.load import load_job
from orchestrator.testing.datasets import DataConformance
from orchestrator.testing.models import ModelConformance

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.fixture
def documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, ModuleType]]:
    names = ("my_nets", "my_data")
    for name in names:
        code = next(
            block for block in re.findall(r"```python\n(.*?)```", TEXT, re.S) if block.startswith(f"# {name}.py")
        )
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield importlib.import_module("my_nets"), importlib.import_module("my_data")
    for name in names:
        sys.modules.pop(name, None)


def test_the_documented_plug_ins_pass_the_suites(documented: tuple[ModuleType, ModuleType]) -> None:
    nets, data = documented
    suites = [
        type("Nets", (ModelConformance,), {"plugin": nets})(),
        type("Data", (DataConformance,), {"plugin": data})(),
    ]
    for suite in suites:
        for name in dir(suite):
            if name.startswith("test_"):
                getattr(suite, name)()


def test_the_documented_numbers_are_the_codes() -> None:
    shape = cnn.shape(cnn.Config(channels=(32, 64), norm="group", dropout=0.5))
    wide = mlp.shape(mlp.Config(inputs=64, hidden=(128, 64), outputs=10))
    for number in (shape.num_params, shape.flops_per_sample, wide.num_params, 64 * 2048 + 2048, 9 * 32 * 64 + 64):
        assert f"{number:,}" in TEXT


def test_the_documented_weights_of_the_jobs_are_theirs() -> None:
    for name, said in re.findall(r"^\| `(\w+)` \([^|]*\| ([\d,]+) \|", TEXT, re.M):
        job = load_job(PAGE.parents[1] / "jobs" / f"{name}.yaml").spec
        plugin = plugins.load("models", job.model.use)
        shape = plugin.shape(plugins.build_config(plugin.Config, job.model.options))
        assert f"{shape.num_params:,}" == said, name
