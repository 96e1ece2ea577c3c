"""The floors hold: import contracts, and what must import without torch, ray and mlflow does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "mlflow", "numpy", "pandas", "sklearn", "pyarrow", "matplotlib")
LIGHT = [
    "orchestrator", "orchestrator.errors", "orchestrator.log", "orchestrator.plugins", "orchestrator.wording",
    "orchestrator.environment", "orchestrator.spec.load", "orchestrator.spec.schema", "orchestrator.spec.reference",
    "orchestrator.spec.resolve", "orchestrator.plan.build", "orchestrator.plan.describe", "orchestrator.plan.available",
    "orchestrator.cli.app", "orchestrator.models", "orchestrator.jobs", "orchestrator.sweep.check",
    "orchestrator.sweep.source", "orchestrator.sweep.schedulers", "orchestrator.sweep.ledger",
]  # fmt: skip
BLOCK = """
import sys
for name in {heavy!r}:
    sys.modules[name] = None
import importlib, pkgutil
for name in {names!r}:
    importlib.import_module(name)
import orchestrator.runs, orchestrator.cli
for package in (orchestrator.runs, orchestrator.cli):
    for each in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(each.name)
from orchestrator import plugins
for group in plugins.GROUPS:
    for name in plugins.names(group):
        config = plugins.light_config(group, name)
        assert config is not None, (group, name)
"""


def test_paper_arithmetic_records_and_options_of_parts_need_no_torch_ray_or_mlflow() -> None:
    code = BLOCK.format(heavy=HEAVY, names=LIGHT)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_import_contracts_hold() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("path", sorted((ROOT / "models").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_models_import_torch_and_the_standard_library_only(path: Path) -> None:
    import ast

    outside = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            outside.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            outside.add(str(node.module).split(".")[0])
    assert outside <= set(sys.stdlib_module_names) | {"torch"}


def loaded_after(*words: str) -> set[str]:
    """Return the top-level modules in `sys.modules` after a command ran in a fresh process."""
    code = (
        "import sys, json, atexit\n"
        "atexit.register(lambda: print('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules}))))\n"
        f"sys.argv = ['orchestrator', *{list(words)!r}]\n"
        "from orchestrator.cli import main\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.strip().splitlines()[-1]))


@pytest.mark.parametrize(
    "words",
    [("check", "jobs/smoke.yaml"), ("check", "jobs/digits_cnn.yaml", "cluster.cpus_per_worker=0.5"),
     ("plan", "jobs/smoke.yaml"), ("ls", "models"), ("schema",), ("init", "--list"),
     ("check", "jobs/sweep_digits.yaml"), ("sweep", "jobs/sweep_digits.yaml", "--dry-run")],
    ids=" ".join,
)  # fmt: skip
def test_a_light_verb_loads_nothing_heavy(words: tuple[str, ...]) -> None:
    assert loaded_after(*words) & set(HEAVY) == set()


def test_help_loads_no_pydantic_or_yaml_either() -> None:
    assert loaded_after("--help") & {*HEAVY, "pydantic", "yaml", "rich"} == set()
