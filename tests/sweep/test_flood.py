"""Floods: trials of mixed gang sizes on a joined cluster of 4 CPUs, with stops, failures and lost memory at random.

Every trial is accounted for, nothing hangs, and nothing is left: no placement group, no actor, no CPU, no RUNNING run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
        train={"batch_size": 24},
        cluster={"address": address},
    )
    job = folder / "job.yaml"
    job.write_text(yaml.safe_dump(data))
    words = [sys.executable, "-m", "orchestrator", "sweep", str(job), "--json"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode in (0, 3), done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def check(page: dict[str, Any], address: str, environment: dict[str, str], folder: Path, trials: int) -> None:
    states = [trial["state"] for trial in page["trials"]]
    assert len(states) == trials
    assert set(states) <= {"finished", "stopped", "failed", "oom"}
    left = subprocess.run(
        [sys.executable, "-c", LEFT, address], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert json.loads(left.stdout.splitlines()[-1]) == {"groups": [], "free": 4.0, "total": 4.0}
    runs = mlflow_runs(folder / "runs")
    assert len(runs) == 1 + trials
    assert "RUNNING" not in {run["status"] for run in runs}


@pytest.mark.slow
def test_a_small_flood_leaves_nothing(address: str, environment: dict[str, str], tmp_path: Path) -> None:
    page = flood(address, environment, tmp_path, seed=0, trials=8)
    check(page, address, environment, tmp_path, 8)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_forty_trials_twenty_times(seed: int, address: str, environment: dict[str, str], tmp_path: Path) -> None:
    page = flood(address, environment, tmp_path, seed, trials=40)
    check(page, address, environment, tmp_path, 40)
    print(f"flood {seed}: {page['counts']} in {page['elapsed_s']:.0f} s")
