"""How long a job's model takes for one sample on this device, alone. Called between trials of a sweep."""

from __future__ import annotations

import time
from statistics import median

import torch

from orchestrator.data.dataset import Dataset
from orchestrator.spec.job import JobSpec
from orchestrator.train.build import build_plain_model

_WARM_UP, _TIMED, _MOST_S = 5, 40, 5.0


def measure_latency(job: JobSpec, data: Dataset) -> dict[str, float]:
    """Return `time/latency_ms`: the median of up to 40 forward passes on one sample, in milliseconds.

    Fresh weights do as well as trained ones: dense arithmetic takes the same time whatever the numbers. fp32, with the
    job's number of threads, on the GPU where the job trains on one.
    """
    torch.set_num_threads(max(1, int(job.cluster.cpus_per_worker)))
    device = torch.device("cuda" if job.cluster.gpus_per_worker else "cpu")
    model = build_plain_model(job).to(device).eval()
    inputs, _ = data.splits["train"].batch(torch.tensor([0]))
    inputs = inputs.to(device, torch.float32 if inputs.is_floating_point() else None)
    took: list[float] = []
    began = time.perf_counter()
    with torch.no_grad():
        for number in range(_WARM_UP + _TIMED):
            if number > _WARM_UP and time.perf_counter() - began > _MOST_S:
                break
            start = time.perf_counter()
            model(inputs)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number >= _WARM_UP:
                took.append(time.perf_counter() - start)
    return {"time/latency_ms": 1000 * median(took)}
