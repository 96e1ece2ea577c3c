"""How long does an answer take? `python -m orchestrator.compress.timing FOLDER` prints one JSON object.

In one process the fp32 model in eager PyTorch, the same in the target's runtime, and the candidate (twice: an A/A pair)
take turns. One thread: processor time, median over rounds of the ratio within a round. More threads: wall time, the
best of all rounds. Where the A/A pair differs by more than 3 %, no figure is given: it is tried again a few times, for
another load on the machine may pass, and the A/A pair alone decides, never the ratio. Nor is there a figure where eager
PyTorch is far slower with more threads than with one: its threads wait for one another, and a core taken away by
another process would pass for a speed-up.

With target cuda all of them run on the GPU, from the batch in memory to the answer in memory: wall time, median over
rounds, whatever the number of threads. A file that skips zeros is also compared with itself, zeros multiplied.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from orchestrator.compress.manifest import EVAL_FILE, Page, read_page
from orchestrator.compress.runtimes.base import REFERENCE, open_folder, open_reference, read_files

if TYPE_CHECKING:
    from orchestrator.compress.runtimes.base import Array, Run

NOISY = "too noisy, no figure"
DISTURBED = "no figure: eager PyTorch is far slower than with one thread, so another process takes its cores"
MAX_NOISE = 0.03
ATTEMPTS = 5
BUDGET_S = 8.0
"""No attempt for a figure begins later than this after the first: where cores are taken away, one may take long."""
MAX_SLOWDOWN = 1.5
_BLOCK_S = 0.004
_MAX_CALLS = 400


def time_all(folder: Path) -> list[dict[str, Any]]:
    """Return a row of figures for every batch size and number of threads that the page asks for."""
    import torch

    from orchestrator.plan.available import Available

    page = read_page(folder)
    eager = open_eager(folder, page)
    cores = int(Available.local().num_cpus)
    rows: list[dict[str, Any]] = []
    for threads in page.measure["threads"] if page.target == "cpu" else [1]:
        if threads > max(1, cores):
            continue
        torch.set_num_threads(threads)
        runs: dict[str, Run] = {"eager": eager}
        before = open_reference(folder, page, threads)
        if before is not None:
            runs["runtime"] = before
        for name in ("candidate", "again"):
            runs[name] = open_folder(folder, page.format, page.needed, threads, page.target)
        if page.scheme == "2:4":
            runs["dense"] = _with_zeros(folder, page)
        clock = time.process_time if page.target == "cpu" and threads == 1 else time.perf_counter
        for batch in page.measure["batch"]:
            inputs = _inputs(folder, batch)
            limit_s = MAX_SLOWDOWN * _alone(eager, inputs, threads) if threads > 1 else None
            found = settle(partial(_compare, runs, inputs, threads, clock, page.measure["rounds"], limit_s))
            rows.append({"batch": batch, "threads": threads, "target": page.target, **found})
    return rows


def _with_zeros(folder: Path, page: Page) -> Run:
    from orchestrator.compress.runtimes.program import WITH_ZEROS

    return WITH_ZEROS.open(read_files(folder, page.needed))


def settle(measure: Callable[[], dict[str, Any]], attempts: int = ATTEMPTS) -> dict[str, Any]:
    """Return the first measurement that is quiet enough to give a figure, else the last; `attempts` says how many."""
    found: dict[str, Any] = {}
    begun = time.monotonic()
    for number in range(1, attempts + 1):
        found = measure() | {"attempts": number}
        if found["verdict"] == "ok" or time.monotonic() - begun > BUDGET_S:
            break
    return found


def open_eager(folder: Path, page: Page) -> Run:
    """Return the fp32 model as it was in eager PyTorch on the page's target, as a function of a batch."""
    from safetensors.torch import load_file

    from orchestrator.compress.runtimes.device import device_of
    from orchestrator.compress.runtimes.program import run_of
    from orchestrator.export.restore import restore_model
    from orchestrator.spec.base import Use

    weights = load_file(str(folder.parent / REFERENCE / "model.safetensors"))
    device = device_of(page.target)
    return run_of(restore_model(Use.model_validate(page.job["model"]), weights).to(device), device)


def _inputs(folder: Path, batch: int) -> Array:
    import numpy as np

    with np.load(folder.parent / EVAL_FILE, allow_pickle=False) as file:
        inputs = file["inputs"]
    return np.ascontiguousarray(inputs[np.arange(batch) % len(inputs)])


def _alone(eager: Run, inputs: Array, threads: int) -> float:
    """Return the wall seconds that eager PyTorch takes with one thread, the best of several."""
    import torch

    torch.set_num_threads(1)
    calls = _calls(eager, inputs)
    best = min(_block(eager, inputs, calls, time.perf_counter) for _ in range(9))
    torch.set_num_threads(threads)
    return best


def _compare(
    runs: dict[str, Run],
    inputs: Array,
    threads: int,
    clock: Callable[[], float],
    rounds: int,
    limit_s: float | None = None,
) -> dict[str, Any]:
    calls = {name: _calls(run, inputs) for name, run in runs.items()}
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        order = list(runs)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            spent[name].append(_block(runs[name], inputs, calls[name], clock))
    return summarise(spent, one_thread=threads == 1, limit_s=limit_s)


def summarise(spent: dict[str, list[float]], *, one_thread: bool, limit_s: float | None = None) -> dict[str, Any]:
    """Return ratios to the candidate and its milliseconds, or what the noise was that forbids a figure.

    `limit_s`: slower than this at its best, the eager baseline was disturbed.
    """
    mine = spent["candidate"]
    if one_thread:
        ratios = {name: median(a / b for a, b in zip(times, mine, strict=True)) for name, times in spent.items()}
        typical = median(mine)
    else:
        ratios = {name: min(times) / min(mine) for name, times in spent.items()}
        typical = min(mine)
    noise = abs(ratios.pop("again") - 1)
    if noise > MAX_NOISE:
        return {"noise": noise, "verdict": NOISY}
    if limit_s is not None and min(spent["eager"]) > limit_s:
        return {"noise": noise, "verdict": DISTURBED}
    found: dict[str, Any] = {"noise": noise, "verdict": "ok", "ms": 1000 * typical, "speedup": ratios["eager"]}
    return found | {f"speedup_{name}": ratios[name] for name in ("runtime", "dense") if name in ratios}


def _calls(run: Run, inputs: Array) -> int:
    """Return how many calls make a block long enough for the clock; the first calls warm the model up."""
    for _ in range(3):
        run(inputs)
    once = min(_block(run, inputs, 1, time.perf_counter) for _ in range(5))
    return max(1, min(_MAX_CALLS, int(_BLOCK_S / max(once, 1e-7))))


def _block(run: Run, inputs: Array, calls: int, clock: Callable[[], float]) -> float:
    begun = clock()
    for _ in range(calls):
        run(inputs)
    return (clock() - begun) / calls


def main(arguments: list[str]) -> int:
    """Time the artifact in the folder given."""
    logging.captureWarnings(True)
    sys.stdout.write(json.dumps(time_all(Path(arguments[0]))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
