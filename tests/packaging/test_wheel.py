"""The wheel alone is enough: built, installed into a fresh environment, and run far from the clone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_SOURCES = ("orchestrator", "models", "jobs")


def test_every_package_of_the_clone_is_declared() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(["orchestrator", *folder.parent.relative_to(ROOT).parts]).replace(
            "orchestrator.orchestrator", "orchestrator"
        )
        for source in _SOURCES
        for folder in (ROOT / source).rglob("__init__.py")
    }
    assert found == set(settings["packages"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves folders where it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in _SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, folder / name)
    built = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", "dist"]
    done = subprocess.run(built, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with nothing but the wheel, which finds its dependencies where this one has them."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=100)
    python = folder / "bin" / "python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        "-q",
        str(wheel),
    ]
    subprocess.run(install, check=True, timeout=100)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def orchestrator(installed: Path, *words: str, cwd: Path) -> str:
    command = [str(installed / "bin" / "orchestrator"), *words]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_nothing_generic_lands_in_site_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"orchestrator"}
    assert "orchestrator/py.typed" in names
    shipped = {name.removeprefix("orchestrator/") for name in names}
    data = [path for path in (ROOT / "jobs").rglob("*") if path.suffix in (".yaml", ".json", ".csv")]
    assert {str(path.relative_to(ROOT)) for path in data} <= shipped


@pytest.mark.slow
def test_models_and_jobs_come_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    modules = ("orchestrator", "orchestrator.models", "orchestrator.jobs")
    code = f"import importlib; [print(importlib.import_module(name).__file__) for name in {modules}]"
    python = str(installed / "bin" / "python")
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    files = done.stdout.split()
    assert [Path(file).parent.name for file in files] == ["orchestrator", "models", "jobs"]
    assert all(Path(file).is_relative_to(installed) for file in files)


@pytest.mark.slow
def test_a_job_is_copied_checked_and_trained_to_its_end_without_the_clone(installed: Path, tmp_path: Path) -> None:
    assert "verify" in orchestrator(installed, "--help", cwd=tmp_path)
    orchestrator(installed, "init", "smoke", "-o", "my.yaml", cwd=tmp_path)
    orchestrator(installed, "check", "my.yaml", cwd=tmp_path)
    result = json.loads(orchestrator(installed, "run", "my.yaml", "parallel.replicate=1", "--json", cwd=tmp_path))
    assert (result["state"], result["step"]) == ("finished", result["total_steps"])
    assert Path(result["path"]).parent == (tmp_path / "runs").resolve()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.schema.json", "my.yaml", "runs"]
