"""Training between the steps of a compression: handed to ranks that Ray places, and brought back the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from torch import Tensor, nn

from orchestrator.cluster.launch import Launcher, _claim, _takes_ray
from orchestrator.cluster.session import RaySession
from orchestrator.compress.base import Context
from orchestrator.compress.handover import hand_over, run_rank, take_back
from orchestrator.compress.ranks import train_here
from orchestrator.compress.recover import Course, Lessons
from orchestrator.errors import ExportError, NotAbleError, TrainError
from orchestrator.export.weights import plain_copy, state_tensors
from orchestrator.plan.available import Available
from orchestrator.plan.build import worker_resources
from orchestrator.plan.layout import Layout
from orchestrator.runs.paths import RunDir
from orchestrator.spec.job import ClusterSection
from tests.compress.making import MEASURE, context_of, make_job, make_trained

MLP = {"use": "mlp", "inputs": 64, "hidden": [32], "outputs": 10}
HERE = Available(num_cpus=2.0, num_gpus=0, memory_bytes=8 << 30)
TWO_GPUS = Available(num_cpus=2.0, num_gpus=2, memory_bytes=8 << 30)


def training(folder: Path) -> tuple[nn.Module, Context, Course]:
    """Return a net, its context and what it shall be taught, in float64."""
    job = make_job(MLP, ({"use": "finetune"}, {"use": "export"})).model_dump(mode="json")
    job["data"] = {"use": "digits", "flat": True}
    trained = make_trained(make_job(MLP).model_validate(job), epochs=0)
    context = replace(context_of(trained, folder), dtype="float64")
    model = plain_copy(trained.model).double()
    mask = torch.rand(32, 64, generator=torch.Generator().manual_seed(0)) > 0.5
    name = next(name for name, tensor in model.named_parameters() if tensor.shape == mask.shape)
    with torch.no_grad():
        model.get_parameter(name).masked_fill_(~mask, 0.0)
    return model, context, Course(0.5, lessons=Lessons(plain_copy(model)), masks={name: mask})


def same(found: nn.Module, wanted: nn.Module, tolerance: float) -> bool:
    pairs = zip(state_tensors(found).values(), state_tensors(wanted).values(), strict=True)
    return all(float((mine - theirs).norm() / theirs.norm()) <= tolerance for mine, theirs in pairs)


def handed_over(tmp_path: Path) -> tuple[nn.Module, RunDir, str, nn.Module]:
    model, context, course = training(tmp_path / "step")
    need = worker_resources(context.cluster, HERE, Layout())
    run = _claim(context.folder)
    seal = hand_over(run, model, context, course, Layout(), need)
    (run.path / "go").touch()
    wanted = plain_copy(model)
    train_here(wanted, context, course, Layout())
    return model, run, seal, wanted


def do(run: RunDir, seal: str) -> Any:
    return run_rank(
        run,
        rank=0,
        world_size=1,
        local_rank=0,
        attempt=1,
        token=1,
        resume=False,
        report=lambda report: None,
        wait_for_go=True,
        seal=seal,
    )


def test_what_is_handed_over_comes_back_trained_as_it_would_have_been_here(tmp_path: Path) -> None:
    model, run, seal, wanted = handed_over(tmp_path)
    told = do(run, seal)
    done = take_back(run, 1, model)
    assert done == told
    assert same(model, wanted, 0.0)
    assert not list(run.path.glob("*.pt")), "the large files are gone"


def test_a_rank_opens_nothing_but_what_it_was_handed(tmp_path: Path) -> None:
    _, run, seal, _ = handed_over(tmp_path)
    file = run.path / "training.pt"
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ExportError, match="is not what was handed to this rank"):
        do(run, seal)


def test_ray_places_ranks_on_a_cluster_that_was_named_and_where_several_take_a_gpu(tmp_path: Path) -> None:
    _, context, _ = training(tmp_path)

    def takes(layout: Layout, available: Available, **cluster: Any) -> bool:
        section = ClusterSection(**cluster)
        return _takes_ray(replace(context, cluster=section), worker_resources(section, available, layout))

    assert not takes(Layout(replicate=2), HERE)
    assert not takes(Layout(), TWO_GPUS)
    assert takes(Layout(replicate=2), TWO_GPUS)
    assert not takes(Layout(replicate=2), TWO_GPUS, gpus_per_worker=0)
    assert takes(Layout(), HERE, address="10.0.0.1:6379")


class Gone(RaySession):
    """A cluster that nobody can join."""

    def start(self) -> None:
        """Fail."""
        self.opened = Future()
        self.opened.set_exception(NotAbleError("the Ray cluster at 10.0.0.1:6379 could not be joined", hint="look"))

    def submit(self, task: Callable[[], Any]) -> Future[Any]:
        """Do it at once."""
        future: Future[Any] = Future()
        try:
            future.set_result(task())
        except NotAbleError as error:
            future.set_exception(error)
        return future


def test_a_cluster_that_is_gone_is_told_with_the_way_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cluster.launch.RaySession", Gone)
    model, context, course = training(tmp_path / "step")
    context = replace(context, cluster=ClusterSection(address="10.0.0.1:6379", gpus_per_worker=0))
    with Launcher() as launch, pytest.raises(TrainError, match="failed: the Ray cluster at") as caught:
        launch(model, context, course, Layout(replicate=2))
    assert "look\n  or train on this machine: `orchestrator compress RUN --here`" in str(caught.value.hint)


class Fatal(nn.Linear):
    """A layer that kills the process of the second rank once, in the middle of training."""

    marker = ""
    calls = 0

    def forward(self, input: Tensor) -> Tensor:
        """Count, and at the fifth call of the first attempt end."""
        self.calls += 1
        if self.calls == 5 and os.environ.get("RANK") == "1" and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), 9)
        return super().forward(input)


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A cluster of two nodes with a place each."""
    token = tmp_path / "token"
    token.write_text("6" * 64)
    token.chmod(0o600)
    for name, value in {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    nodes = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.fake_nodes", "1", "1"],
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


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_job_on_a_cluster_trains_between_its_steps_where_it_trained(tmp_path: Path, address: str) -> None:
    steps = [{"use": "prune", "kind": "mlp", "rounds": 2}, {"use": "finetune", "epochs": 1, "replicate": 1}]
    job = {
        "name": "small",
        "model": MLP | {"hidden": [32, 32]},
        "data": {"use": "digits", "flat": True},
        "train": {"epochs": 1, "batch_size": 64},
        "parallel": {"replicate": 2},
        "cluster": {"address": address, "storage": str(tmp_path / "runs"), "gpus_per_worker": 0, "backend": "gloo"},
        "track": {"system_s": None},
        "compress": {"steps": [*steps, {"use": "export"}], "measure": MEASURE},
    }
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    words = [sys.executable, "-m", "orchestrator", "run", str(file)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=380, check=False)
    place = tmp_path / "runs" / "small-1" / "compress"
    assert done.returncode == 0, done.stderr + (place.parent / "logs" / "compress.log").read_text()
    seats = {step: len(list((place / step / "training-1" / "seats").iterdir())) for step in ("1_prune", "2_finetune")}
    assert seats == {"1_prune": 2, "2_finetune": 1}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_ranks_on_two_nodes_train_as_one_process_does_also_when_one_of_them_is_killed(
    tmp_path: Path, address: str
) -> None:
    model, context, course = training(tmp_path / "step")
    wanted = plain_copy(model)
    train_here(wanted, context, course, Layout())
    fatal = next(part for part in model.modules() if type(part) is nn.Linear)
    fatal.__class__ = Fatal
    fatal.marker, fatal.calls = str(tmp_path / "killed"), 0  # type: ignore[assignment]
    context = replace(context, cluster=ClusterSection(address=address, gpus_per_worker=0, backend="gloo"))
    with Launcher() as launch:
        launch(model, context, course, Layout(replicate=2))
    assert (tmp_path / "killed").exists()
    assert same(model, wanted, 1e-9)
    run = RunDir(tmp_path / "step" / "training-1")
    seats = [json.loads((run.seats / f"a2-rank{rank}.json").read_text())["node"] for rank in range(2)]
    assert len(set(seats)) == 2
