"""A real MLflow server that is absent, dies and comes back: nothing waits for it, and every point arrives once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.runs.paths import RunDir
from orchestrator.runs.spool import SpoolWriter
from orchestrator.tracking import store
from orchestrator.tracking.cursor import count_remaining
from orchestrator.tracking.handle import SenderHandle, sync
from orchestrator.tracking.request import read_state, resolve_uri, write_request
from orchestrator.tracking.server import LocalServer, free_port
from tests.tracking.conftest import assert_each_step_once, end_run, history, write_steps


@pytest.fixture
def serve(run: RunDir) -> Iterator[Callable[[int], LocalServer]]:
    """Start servers on the run's SQLite store; they end with the test."""
    servers: list[LocalServer] = []

    def begin(port: int) -> LocalServer:
        artifacts = (run.storage / "mlartifacts").as_uri()
        servers.append(LocalServer(resolve_uri(None, run.storage), artifacts, run.storage / "server.log", port=port))
        servers[-1].wait_ready()
        return servers[-1]

    yield begin
    for server in servers:
        server.stop(kill=True)


@pytest.mark.soak
@pytest.mark.timeout(180)
def test_absent_then_there_then_killed_then_back(
    run: RunDir,
    serve: Callable[[int], LocalServer],
    start: Callable[..., SenderHandle],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"

    # Absent from the start, offline allowed: nothing waits, the end is bounded, everything stays in the spool.
    begin = time.monotonic()
    handle = start(run, write_request(run, uri=uri, offline=True, experiment="digits"))
    handle.wait_ready()
    assert time.monotonic() - begin < 0.5
    write_steps(run, "rank0-a1", range(1, 501))
    end_run(run, "KILLED")
    begin = time.monotonic()
    assert handle.finish(2.0) == 501
    assert time.monotonic() - begin < 12
    assert read_state(run).state == "offline"

    # There: `runs sync` ships it all, and a second time nothing.
    server = serve(port)
    counts = sync(run)
    assert (counts.shipped, counts.remaining, counts.state.state) == (501, 0, "ready")
    assert sync(run).shipped == 0
    client = store.open_client(uri, run.storage)
    run_id = read_state(run).run_id
    assert client.get_run(run_id).info.status == "KILLED"
    assert_each_step_once(history(client, run_id), range(1, 501))
    assert read_state(run).url.startswith(f"{uri}/#/experiments/")

    # Killed in the middle of a resumed run and back: the writer never waits, all points arrive once.
    handle = start(run, write_request(run, uri=uri, offline=True, experiment="digits", resume=True))
    slowest_s = 0.0
    figure = tmp_path / "loss.png"
    figure.write_bytes(b"png")
    with SpoolWriter(run.spool / "rank0-a2.jsonl") as spool:
        for step in range(401, 4001):
            begin = time.perf_counter()
            spool.metrics(step, {"train/loss": step / 8})
            slowest_s = max(slowest_s, time.perf_counter() - begin)
            if step == 1500:
                _wait_until(lambda: count_remaining(run) < 600)
                server.stop(kill=True)
            time.sleep(0.0005)
        spool.metrics(4001, {"train/odd": math.nan, "train/huge": math.inf, "no # name": 1.0})
        spool.record("artifact", path=str(figure), artifact_path="figures")
    time.sleep(2)
    assert count_remaining(run) > 2000
    serve(port)
    end_run(run)
    assert handle.finish(20) == 0
    assert client.get_run(run_id).info.status == "FINISHED"
    assert_each_step_once(history(client, run_id), range(1, 4001))
    assert [item.path for item in client.list_artifacts(run_id, "figures")] == ["figures/loss.png"]
    stored = client.get_run(run_id).data.metrics
    assert math.isnan(stored["train/odd"])
    assert stored["train/huge"] > 1e308
    assert len((run.spool / "rejected.jsonl").read_text().splitlines()) == 1
    with capsys.disabled():
        print(f"\noutage: slowest metrics() call while the server was dead: {slowest_s * 1e3:.2f} ms")


def _wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
