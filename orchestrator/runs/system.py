"""`SystemSampler`: use of CPU, memory and GPUs every few seconds, as metrics. Started by the engine on rank 0."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Protocol

from orchestrator.log import get_logger

MB = 1_000_000
_log = get_logger("system")


class _Recorder(Protocol):
    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...


class SystemSampler:
    """A daemon thread that records `system/...` metrics until `close`. A source that fails is left out, said once."""

    def __init__(self, recorder: _Recorder, every_s: float, current_step: Callable[[], int]) -> None:
        """Start sampling; the first sample is taken after `every_s` seconds."""
        self._recorder = recorder
        self._every_s = every_s
        self._current_step = current_step
        self._done = threading.Event()
        self._sources: list[Callable[[], dict[str, float]]] = []
        self._thread = threading.Thread(target=self._loop, name="system-sampler", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; calling it again does nothing."""
        self._done.set()
        self._thread.join()

    def _loop(self) -> None:
        self._sources = [source for source in (_host_source(), _gpu_source()) if source is not None]
        while not self._done.wait(self._every_s):
            values: dict[str, float] = {}
            for source in list(self._sources):
                try:
                    values |= source()
                except Exception as error:  # psutil's and the GPU driver's own errors; a sampler must never end a run
                    _log.warning("system metrics stop: %s", error)
                    self._sources.remove(source)
            if values:
                self._recorder.metrics(self._current_step(), values)


def _host_source() -> Callable[[], dict[str, float]] | None:
    try:
        import psutil
    except ImportError:
        return None
    process = psutil.Process()
    psutil.cpu_percent()

    def sample() -> dict[str, float]:
        memory = psutil.virtual_memory()
        return {
            "system/cpu_percent": float(psutil.cpu_percent()),
            "system/memory_mb": (memory.total - memory.available) / MB,
            "system/process_memory_mb": process.memory_info().rss / MB,
        }

    return sample


def _gpu_source() -> Callable[[], dict[str, float]] | None:
    """Return a source for NVIDIA GPUs; None where there are none or `nvidia-ml-py` is not installed."""
    try:
        nvml: Any = import_module("pynvml")
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    except Exception:  # no package, no driver, no device: the kinds belong to a package that may not be there
        return None

    def sample() -> dict[str, float]:
        values: dict[str, float] = {}
        for index, handle in enumerate(handles):
            values[f"system/gpu_{index}_percent"] = float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
            values[f"system/gpu_{index}_memory_mb"] = nvml.nvmlDeviceGetMemoryInfo(handle).used / MB
            values[f"system/gpu_{index}_power_w"] = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
        return values

    return sample if handles else None
