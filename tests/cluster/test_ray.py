"""Two workers on a local Ray cluster: trained, killed, frozen and resumed to the same bits; nothing is left behind."""

from __future__ import annotations

import re
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from torch import Tensor

from orchestrator.cluster.attempt import Attempt, Order
from orchestrator.cluster.fit import RayAttempt
from orchestrator.cluster.session import RaySession, own_token_file
from orchestrator.errors import NotAbleError, TrainError
from orchestrator.plan.plan import Resources
from orchestrator.runs.heartbeat import read_heartbeats
from orchestrator.runs.record import is_same_process
from tests.cluster.jobs import execute, fault, final_weights, plan_of, same_bits, tiny

pytestmark = pytest.mark.ray


def use_token_of_another_cluster(folder: Path) -> None:
    """Leave this process as it is after another cluster: Ray remembers the token of that one."""
    from ray._raylet import AuthenticationTokenLoader

    token = folder / "token"
    token.write_text("4" * 64)
    token.chmod(0o600)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_AUTH_TOKEN", raising=False)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        loader = AuthenticationTokenLoader.instance()
        loader.reset_cache()
        assert loader.get_raw_token(ignore_auth_mode=True) == "4" * 64


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RaySession]:
    use_token_of_another_cluster(tmp_path_factory.mktemp("another"))
    with RaySession(None, num_cpus=2, log_file=tmp_path_factory.mktemp("session") / "ray.log") as opened:
        opened.start()
        yield opened
        started = opened._processes()
        folder = opened._folder
    assert len(started) > 3
    time.sleep(0.5)
    assert not [pid for pid, since in started if is_same_process(pid, since)]
    assert folder is not None
    assert not folder.exists()
    assert not [child for child in psutil.Process().children(recursive=True) if "ray" in " ".join(child.cmdline())]


@pytest.fixture(scope="module")
def undisturbed(session: RaySession, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Tensor]:
    job = tiny(tmp_path_factory.mktemp("undisturbed"), ranks=2)

    def launch(order: Order) -> Attempt:
        return RayAttempt(order, session, plan_of(job).resources, job.cluster)

    run, events = execute(job, launch)
    assert [event.kind for event in events] == ["attempt"]
    beats = read_heartbeats(run)
    assert [(beat.rank, beat.step, beat.section) for beat in beats] == [(0, 30, "done"), (1, 30, "done")]
    for rank in (0, 1):
        log = (run.logs / f"rank-{rank}.log").read_text()
        (blocked,) = re.findall(r"step 30 reported to Ray in ([\d.]+) s", log)
        assert float(blocked) < 1.0
    return final_weights(run)


@pytest.mark.parametrize("what", ["kill", pytest.param("freeze", marks=pytest.mark.slow)])
def test_a_lost_worker_is_replaced_and_the_run_resumed_to_the_same_bits(
    what: str, session: RaySession, tmp_path: Path, undisturbed: Mapping[str, Tensor]
) -> None:
    job = tiny(tmp_path, ranks=2, callbacks=[fault(what, 17, rank=1, marker=str(tmp_path / "once"))])

    def launch(order: Order) -> Attempt:
        return RayAttempt(order, session, plan_of(job).resources, job.cluster)

    run, events = execute(job, launch)
    assert [event.kind for event in events if event.kind != "hang"] == ["attempt", "failure", "retry", "attempt"]
    failure = next(event for event in events if event.kind == "failure")
    assert failure.data["kind"] == ("infra" if what == "kill" else "hang")
    assert same_bits(final_weights(run), undisturbed)


def test_the_first_real_exception_is_shown_not_rays_wrapping_of_it(session: RaySession, tmp_path: Path) -> None:
    job = tiny(tmp_path, ranks=2, callbacks=[fault("memory", 12, rank=1)])

    def launch(order: Order) -> Attempt:
        return RayAttempt(order, session, plan_of(job).resources, job.cluster)

    with pytest.raises(TrainError) as caught:
        execute(job, launch)
    assert caught.value.message.startswith("rank 1, step 1")
    assert "MemoryError" in caught.value.message
    assert "train.batch_size" in caught.value.hint
    assert "rank-1.log" in caught.value.hint


def test_waiting_for_resources_ends_with_what_is_asked_and_what_is_there(session: RaySession) -> None:
    need = Resources(num_workers=64, cpus_per_worker=1.0, gpus_per_worker=0.0, backend="gloo", device="cpu")
    waited = session.submit(lambda: session.wait_for(need, 0.5))
    with pytest.raises(NotAbleError, match=r"64 CPU asked, .* of 2"):
        waited.result(10.0)


def test_the_token_of_our_clusters_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    path = own_token_file()
    assert path is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    token = path.read_text()
    assert len(token) == 64
    assert own_token_file() == path
    assert path.read_text() == token
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    assert own_token_file() is None
