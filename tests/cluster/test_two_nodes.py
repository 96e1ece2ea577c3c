"""A joined Ray cluster of two nodes with room for three ranks each: tensor pairs inside a node, the pipeline across.

The second has two GPUs for Ray's accounts only: how shares of them are given out can be seen without having any.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]
JOB = {
    "name": "two-nodes",
    "model": {"use": "mlp", "inputs": 64, "hidden": [16, 16], "outputs": 10},
    "data": {"use": "digits", "flat": True},
    "optim": {"use": "adamw", "lr": 0.01},
    "train": {"steps": 3, "batch_size": 16, "eval_every_steps": 100, "precision": "fp64"},
    "parallel": {"replicate": 1, "pipeline": 2, "tensor": 2},
    "checkpoint": {"every_steps": 100},
    "track": {"system_s": None, "every_steps": 1},
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Ray with token authentication, as a real cluster should have it."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("5" * 64)
    token.chmod(0o600)
    mine = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    return {**os.environ, **mine, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def address(environment: dict[str, str]) -> Iterator[str]:
    words = [sys.executable, "-m", "tests.cluster.fake_nodes", "3", "3:2"]
    nodes = subprocess.Popen(
        words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert nodes.stdin is not None
    assert nodes.stdout is not None
    lines = iter(nodes.stdout.readline, "")
    yield next(line.strip() for line in lines if ":" in line)
    started = psutil.Process(nodes.pid).children(recursive=True)
    nodes.stdin.close()
    nodes.wait(60)
    _, alive = psutil.wait_procs(started, timeout=10)
    for process in alive:
        process.kill()
    assert not alive


@pytest.mark.soak
def test_tensor_pairs_share_a_node_and_the_pipeline_crosses(
    address: str, environment: dict[str, str], tmp_path: Path
) -> None:
    cluster = {"address": address, "storage": str(tmp_path / "runs"), "gpus_per_worker": 0, "backend": "gloo"}
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({**JOB, "cluster": cluster}))
    words = [sys.executable, "-m", "orchestrator", "run", str(job), "-v"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "two-nodes-1"
    ranks = json.loads((run / "artifacts" / "layout" / "rank_map.json").read_text())["ranks"]
    places = {(row["coordinates"]["pipeline"], row["coordinates"]["tensor"]): row["node"] for row in ranks}
    assert places[0, 0] == places[0, 1] != places[1, 0] == places[1, 1]
    assert "across nodes: pipeline" in done.stderr
    assert "rank 3" in done.stderr
    assert done.stderr.index("rank 3") < done.stderr.index("step ")
    (stored,) = (tmp_path / "runs" / "mlartifacts").glob("**/layout/rank_map.json")
    assert json.loads(stored.read_text())["ranks"] == ranks
    mine = [each for each in psutil.process_iter(["cmdline"]) if str(run) in " ".join(each.info["cmdline"] or [])]
    assert not mine


@pytest.mark.soak
def test_a_sweeps_gangs_sit_on_the_nodes_that_were_chosen(
    address: str, environment: dict[str, str], tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "tests.cluster.pool_on_nodes", address, str(tmp_path)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert [cpus for _, cpus, _ in seen["nodes"]] == [3.0, 3.0]
    assert seen["three_of_two"] is False, "six CPUs in all, and yet no room for three workers of two"
    (pair,) = seen["pair"]
    assert pair[0][0] != pair[1][0]
    (tensor,) = seen["tensor"]
    nodes = [node for node, _ in tensor]
    assert nodes[0] == nodes[1] != nodes[2] == nodes[3]
    assert len(seen["shares"]) == 4, "two halves on each of two GPUs"
    assert sorted(gpus for ((_, gpus),) in seen["shares"]) == [["0"], ["0"], ["1"], ["1"]]
    assert len(seen["large_shares"]) == 2, "three quarters of one GPU each"
    assert sorted(gpus for ((_, gpus),) in seen["large_shares"]) == [["0"], ["1"]]
