"""What this machine has, asked without torch: GPUs by the folder of their driver, what they can by its tool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.plan import available
from orchestrator.plan.available import Available

Driver = Callable[..., Path]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """Put a driver in place: GPUs in its folder, and a tool that says their capabilities and notes every call."""

    def put(folder: int | None, capabilities: str, *, wsl: bool = False) -> Path:
        if folder is not None:
            for number in range(folder):
                (tmp_path / "gpus" / str(number)).mkdir(parents=True)
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\necho call >> {tmp_path}/calls\nprintf '{capabilities}'\n")
        tool.chmod(0o755)
        if wsl:
            (tmp_path / "dxg").touch()
        return tmp_path / "calls"

    monkeypatch.setattr(available, "_NVIDIA", tmp_path / "gpus")
    monkeypatch.setattr(available, "_WSL", tmp_path / "dxg")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    available._local_capabilities.cache_clear()
    yield put
    available._local_capabilities.cache_clear()


def test_the_weakest_gpu_decides_for_all_and_the_strongest_for_one_and_both_are_asked_once(driver: Driver) -> None:
    calls = driver(2, "8.0\\n7.5\\n")
    here = Available.local()
    assert here.num_gpus == 2
    assert not calls.exists()  # nobody has asked yet
    assert (here.compute_capability(), here.best_capability()) == ((7, 5), (8, 0))
    assert Available.local().best_capability() == (8, 0)
    assert calls.read_text() == "call\n"


def test_hidden_gpus_are_not_there(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(2, "8.0\\n7.5\\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert (Available.local().num_gpus, Available.local().compute_capability()) == (0, None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert Available.local().num_gpus == 1


def test_under_windows_the_drivers_tool_counts_them(driver: Driver) -> None:
    driver(None, "8.9\\n", wsl=True)
    assert (Available.local().num_gpus, Available.local().compute_capability()) == (1, (8, 9))


def test_without_a_driver_there_are_none(driver: Driver) -> None:
    calls = driver(None, "8.9\\n")
    assert (Available.local().num_gpus, Available.local().best_capability()) == (0, None)
    assert not calls.exists()


@pytest.mark.parametrize("said", ["", "[N/A]\\n", "No devices were found"])
def test_a_tool_that_does_not_say_leaves_it_open(driver: Driver, said: str) -> None:
    driver(1, said)
    assert (Available.local().num_gpus, Available.local().compute_capability()) == (1, None)


def test_a_cluster_that_was_not_asked_says_nothing() -> None:
    assert Available.unknown().compute_capability() is None
    assert Available(2.0, 1, 0, capability=(9, 0)).best_capability() == (9, 0)
