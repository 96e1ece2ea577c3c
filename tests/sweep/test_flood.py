"""Floods: trials of mixed gang sizes on a joined cluster of 4 CPUs, with stops, failures and lost memory at random.

Every trial ends exactly as its planted fault and the scheduler's rule say, nothing hangs, and nothing is left: no
placement group, no actor, no CPU, no RUNNING run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.sweep.jobs import tiny_sweep
from tests.sweep.test_run import mlflow_runs

pytestmark = [pytest.mark.ray, pytest.mark.timeout(3000)]
FAULT = "tests.cluster.faults:Fault"
STEPS, EVERY = 20, 5
LEFT = """
import json, sys, ray, time
from ray.util import placement_group_table
ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)
for _ in range(100):
    groups = [each for each in placement_group_table().values() if each["state"] != "REMOVED"]
    free, total = ray.available_resources().get("CPU", 0), ray.cluster_resources()["CPU"]
    if not groups and free == total:
        break
    time.sleep(0.1)
print(json.dumps({"groups": groups, "free": free, "total": total}))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("7" * 64)
    token.chmod(0o600)
    mine = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    return {**os.environ, **mine, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def address(environment: dict[str, str]) -> Iterator[str]:
    nodes = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.fake_nodes", "4"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert nodes.stdin is not None
    assert nodes.stdout is not None
    yield next(line.strip() for line in iter(nodes.stdout.readline, "") if ":" in line)
    started = psutil.Process(nodes.pid).children(recursive=True)
    nodes.stdin.close()
    nodes.wait(60)
    _, alive = psutil.wait_procs(started, timeout=10)
    for process in alive:
        process.kill()
    assert not alive


def flood(address: str, environment: dict[str, str], folder: Path, seed: int, trials: int) -> dict[str, Any]:
    """Run one flood and return what the sweep printed."""
    data = tiny_sweep(
        folder / "runs",
        {
            "space": {
                "parallel.replicate": [1, 2, 3, 4],
                "optim.lr": {"min": 0.001, "max": 0.1, "log": True},
                "train.callbacks": [
                    [],
                    [],
                    [],
                    [{"use": FAULT, "what": "raise", "step": 7, "rank": -1}],
                    [{"use": FAULT, "what": "memory", "step": 4, "rank": 0}],
                    [{"use": FAULT, "what": "kill", "step": 11, "marker": str(folder / f"kill-{seed}")}],
                ],
            },
            "scheduler": {"use": "asha", "grace": 1, "reduction": 2},
            "seed": seed,
            "trials": trials,
        },
        train={"batch_size": 24, "steps": STEPS, "eval_every_steps": EVERY},
        cluster={"address": address},
    )
    job = folder / "job.yaml"
    job.write_text(yaml.safe_dump(data))
    words = [sys.executable, "-m", "orchestrator", "sweep", str(job), "--json"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode in (0, 3), done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def lines_of(folder: Path) -> list[dict[str, Any]]:
    path = folder / "runs" / "tiny-1" / "sweep" / "ledger.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def stops_of(lines: list[dict[str, Any]]) -> dict[int, int]:
    """Return at which evaluation the rule of successive halving ends a trial, from the scores in their order."""
    scores: dict[int, list[float]] = {}
    stops: dict[int, int] = {}
    for line in lines:
        if line["event"] != "evaluated" or line["number"] not in (1, 2, 4):
            continue
        here = scores.setdefault(line["number"], [])
        here.append(line["metrics"]["val/loss"])
        is_kept = here[-1] <= sorted(here)[max(1, len(here) // 2) - 1]
        if not is_kept and line["step"] < STEPS:
            stops[line["trial"]] = line["number"]
    return stops


def expected(lines: list[dict[str, Any]]) -> dict[int, tuple[str, int]]:
    """Return state and number of evaluations of every trial, by what was planted in it."""
    stops, found = stops_of(lines), {}
    for line in lines:
        if line["event"] != "proposed":
            continue
        faults = line["point"]["train.callbacks"]
        what, stop = faults[0]["what"] if faults else "", stops.get(line["trial"])
        if what == "memory":  # in step 4: before the first evaluation
            found[line["trial"]] = "oom", 0
        elif what == "raise" and stop != 1:  # in step 7: between the first and the second
            found[line["trial"]] = "failed", 1
        else:
            found[line["trial"]] = ("stopped", stop) if stop else ("finished", STEPS // EVERY)
    return found


def check_attempts(lines: list[dict[str, Any]]) -> None:
    """Only the first trial that came to the planted kill was begun again, once; no evaluation counts twice."""
    evaluated = Counter(line["trial"] for line in lines if line["event"] == "evaluated")
    numbers = Counter((line["trial"], line["number"]) for line in lines if line["event"] == "evaluated")
    assert set(numbers.values()) <= {1}
    planted = {
        line["trial"]
        for line in lines
        if line["event"] == "proposed" and [each["what"] for each in line["point"]["train.callbacks"]] == ["kill"]
    }
    begun = Counter(line["trial"] for line in lines if line["event"] == "begun")
    again = [trial for trial, count in begun.items() if count > 1]
    came_to_it = {trial for trial in planted if evaluated[trial] > 2 or trial in again}
    assert set(again) <= planted
    assert len(again) == (1 if came_to_it else 0)
    assert set(begun.values()) <= {1, 2}


def check(page: dict[str, Any], address: str, environment: dict[str, str], folder: Path, trials: int) -> None:
    lines = lines_of(folder)
    assert len(page["trials"]) == trials
    wanted = expected(lines)
    assert {int(trial["name"][1:]): (trial["state"], trial["evaluations"]) for trial in page["trials"]} == wanted
    steps = {"finished": STEPS, "oom": 0}
    for trial in page["trials"]:
        if trial["state"] != "failed":
            assert trial["step"] == steps.get(trial["state"], EVERY * trial["evaluations"]), trial
        reasons = {"failed": "broken on purpose", "oom": "cannot allocate", "stopped": "at step"}
        assert reasons.get(trial["state"], "") in trial["reason"]
    check_attempts(lines)
    left = subprocess.run(
        [sys.executable, "-c", LEFT, address], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert json.loads(left.stdout.splitlines()[-1]) == {"groups": [], "free": 4.0, "total": 4.0}
    runs = mlflow_runs(folder / "runs")
    assert len(runs) == 1 + trials
    told = {run["tags"]["trial"]: (run["tags"]["trial.state"], run["status"]) for run in runs if "trial" in run["tags"]}
    good = ("finished", "stopped")
    assert told == {
        f"t{number:03d}": (state, "FINISHED" if state in good else "FAILED") for number, (state, _) in wanted.items()
    }


@pytest.mark.slow
def test_a_small_flood_leaves_nothing(address: str, environment: dict[str, str], tmp_path: Path) -> None:
    page = flood(address, environment, tmp_path, seed=0, trials=5)
    check(page, address, environment, tmp_path, 5)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_forty_trials_twenty_times(seed: int, address: str, environment: dict[str, str], tmp_path: Path) -> None:
    page = flood(address, environment, tmp_path, seed, trials=40)
    check(page, address, environment, tmp_path, 40)
    print(f"flood {seed}: {page['counts']} in {page['elapsed_s']:.0f} s")
