"""The sampler records the machine's use and never disturbs a run."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import pytest

from orchestrator.runs import system
from orchestrator.runs.system import SystemSampler


class Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple[int, dict[str, float]]] = []
        self.enough = threading.Event()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.calls.append((step, dict(values)))
        if len(self.calls) == 3:
            self.enough.set()


def test_it_records_cpu_and_memory_at_the_current_step_until_closed() -> None:
    recorder = Recorder()
    sampler = SystemSampler(recorder, 0.02, lambda: 7)
    assert recorder.enough.wait(20)
    sampler.close()
    sampler.close()
    number = len(recorder.calls)
    step, values = recorder.calls[-1]
    assert step == 7
    assert 0 <= values["system/cpu_percent"] <= 100
    assert values["system/memory_mb"] > 100
    assert values["system/process_memory_mb"] > 10
    time.sleep(0.1)
    assert len(recorder.calls) == number


def test_a_source_that_fails_is_left_out_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, float]:
        raise RuntimeError("driver gone")

    monkeypatch.setattr(system, "_host_source", lambda: broken)
    monkeypatch.setattr(system, "_gpu_source", lambda: lambda: {"system/gpu_0_percent": 50.0})
    recorder = Recorder()
    sampler = SystemSampler(recorder, 0.01, lambda: 1)
    assert recorder.enough.wait(20)
    sampler.close()
    assert all(values == {"system/gpu_0_percent": 50.0} for _, values in recorder.calls)
