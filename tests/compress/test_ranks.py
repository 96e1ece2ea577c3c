"""Finetuning on data ranks: the same weights as from one process, exact masks on every rank, other axes refused."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.compress.base import MODULE, Context, State
from orchestrator.compress.crew import Crew
from orchestrator.compress.finetune import Config, Finetune, training_layout
from orchestrator.compress.prune import Config as PruneConfig
from orchestrator.compress.prune import Prune
from orchestrator.compress.pulse import Watch
from orchestrator.compress.ranks import context_for, pack, unpack, whole_state
from orchestrator.compress.recover import Course, Lessons, recover, train
from orchestrator.errors import PlanError, TrainError
from orchestrator.export.weights import plain_copy, state_tensors
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.plan.layout import Layout
from orchestrator.spec.job import JobSpec
from orchestrator.spec.load import load_spec
from orchestrator.testing.ranks import run_ranks

from .making import RESNET, context_of, in_memory, make_job, make_trained

HERE = Available(num_cpus=2.0, num_gpus=0, memory_bytes=8 << 30)
STEPS = ({"use": "prune"}, {"use": "finetune"}, {"use": "export"})
TEXT = {"use": "transformer", "vocab": 256, "seq_len": 8, "dim": 16, "layers": 2, "heads": 4}
MASKED, SHARED = "layers.block2.conv1.weight", "layers.block2.conv2.weight"


def pruned(tmp_path: Path, *, mixup: bool = False) -> tuple[nn.Module, Context, Course]:
    """Return a pruned network in float64, with a teacher, a mask and a codebook."""
    trained = make_trained(make_job(RESNET, STEPS), epochs=0)
    narrow = Prune(PruneConfig(multiple_of=4)).apply(in_memory(trained), context_of(trained, tmp_path)).state.model
    chance = torch.Generator().manual_seed(0)
    masks = {MASKED: torch.rand(narrow.get_parameter(MASKED).shape, generator=chance) > 0.7}
    codes = {SHARED: torch.randint(-1, 5, narrow.get_parameter(SHARED).shape, generator=chance)}
    with torch.no_grad():
        narrow.get_parameter(MASKED).masked_fill_(~masks[MASKED], 0.0)
        narrow.get_parameter(SHARED).copy_(codes[SHARED] / 50)
    lessons = Lessons(plain_copy(trained.model).double(), weight=1.0 if mixup else 0.7, mixup=mixup, features="auto")
    context = replace(context_of(trained, tmp_path), dtype="float64")
    return narrow.double(), context, Course(0.15, lessons=lessons, masks=masks, codes=codes)


def each_rank(rank: int, world_size: int, job: dict[str, Any], layout: dict[str, int], packed: bytes) -> Any:
    """Return the whole weights as every rank has them."""
    model, course = unpack(packed)
    context = context_for(JobSpec.model_validate(job), "float64", model)
    module, _ = train(model, context, course, Crew(Layout(**layout), rank))
    return whole_state(module)


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        difference = float((found[name].double() - tensor.double()).norm() / tensor.double().norm().clamp(min=1e-6))
        assert difference < tolerance, f"{name}: {difference:.3g}"


def test_a_net_pruned_to_few_channels_trains_contiguous_on_a_cpu(tmp_path: Path) -> None:
    """Channels last, oneDNN would write past its workspace in the strided 1x1 convolution (see train/build.py)."""
    model, context, _ = pruned(tmp_path)
    whole = context.teacher
    for each in (whole, model):
        Crew().apply(each, context)
    assert not whole.get_parameter(MASKED).is_contiguous()
    assert model.get_parameter(MASKED).is_contiguous()


@pytest.mark.parametrize("layout", [Layout(replicate=2), Layout(shard=2)], ids=["replicate", "shard"])
def test_every_rank_ends_with_the_weights_of_one_process_and_exact_masks(layout: Layout, tmp_path: Path) -> None:
    model, context, course = pruned(tmp_path, mixup=layout.shard > 1)
    job, packed = context.job.model_dump(mode="json"), pack(model, course)
    train(model, context, course, Crew())
    wanted = state_tensors(model)
    for found in run_ranks(each_rank, 2, job, asdict(layout), packed):
        assert_equal(found, wanted, 1e-9)
        assert torch.equal(found[MASKED] != 0, course.masks[MASKED])
        for code in range(5):
            assert len(found[SHARED][course.codes[SHARED] == code].unique()) == 1


@pytest.mark.slow
def test_a_step_trains_on_the_ranks_of_the_job_or_on_its_own(tmp_path: Path) -> None:
    trained = make_trained(make_job(RESNET, STEPS), epochs=0)
    trained = replace(trained, model=trained.model.double())  # where a batch norm over 16 images hides nothing
    alone = replace(context_of(trained, tmp_path), dtype="float64")
    step = Finetune(Config(epochs=0.15))
    weights = []
    for context in (alone, replace(alone, layout=Layout(replicate=2))):
        change = step.apply(in_memory(trained), context)
        weights.append(state_tensors(change.state.model))
        assert change.facts["ranks"] == context.layout.world_size
    assert_equal(weights[1], weights[0], 1e-9)
    assert any(not torch.equal(weights[0][name], tensor) for name, tensor in state_tensors(trained.model).items())


@pytest.mark.slow
@pytest.mark.parametrize("taught", [False, True])
def test_a_narrower_language_model_is_sharded_block_by_block(tmp_path: Path, taught: bool) -> None:
    """With a teacher, too, whose answers where `ignore_index` stands (here blanks) count on no rank."""
    job = load_spec(
        {
            "model": TEXT,
            "data": {"use": "text", "corpus": "python", "seq_len": 8, "max_bytes": 20_000},
            "optim": {"lr": 3e-3},
            "train": {"epochs": 1, "batch_size": 64, "loss": {"use": "cross_entropy", "ignore_index": 32}},
            "compress": {"steps": [{"use": "prune", "kind": "mlp"}, {"use": "finetune"}, {"use": "export"}]},
        }
    )
    trained = make_trained(job, epochs=0)
    context = replace(context_of(trained, tmp_path), dtype="float64")
    state = Prune(PruneConfig(kind="mlp")).apply(in_memory(trained), context_of(trained, tmp_path)).state
    models = [plain_copy(state.model).double() for _ in range(2)]
    for model, layout in zip(models, (Layout(), Layout(shard=2)), strict=True):
        lessons = Lessons(plain_copy(trained.model).double(), features="auto") if taught else None
        recover(model, context, epochs=0.3, layout=layout, lessons=lessons)
    assert_equal(state_tensors(models[1]), state_tensors(models[0]), 1e-9)


def test_other_axes_are_refused_with_the_reason_until_the_step_names_its_ranks() -> None:
    def job(finetune: dict[str, Any], **parallel: int) -> JobSpec:
        steps = [{"use": "prune", "kind": "mlp"}, {"use": "finetune", **finetune}, {"use": "export"}]
        data = {"use": "text", "corpus": "python", "seq_len": 8}
        return load_spec({"model": TEXT, "data": data, "parallel": parallel, "compress": {"steps": steps}})

    with pytest.raises(PlanError) as caught:
        build_plan(job({}, replicate=1, tensor=2), HERE)
    (problem,) = caught.value.problems
    assert problem.path == "compress.steps.1.replicate"
    assert "the job has tensor=2, which cuts the model by shapes that it no longer has" in problem.message
    assert "`replicate: 1`" in problem.hint
    build_plan(job({"replicate": 1}, replicate=1, tensor=2), HERE)
    build_plan(job({"shard": 2}, replicate=1, pipeline=2), HERE)
    with pytest.raises(PlanError) as caught:
        build_plan(job({"replicate": 3}, replicate=1), HERE)
    assert "does not divide over 3 data ranks" in caught.value.problems[0].message


def test_the_ranks_of_a_step_are_its_own_else_the_jobs() -> None:
    jobs = Layout(replicate=2, shard=2)
    assert training_layout(Config(), jobs) == jobs
    assert training_layout(Config(shard=4), jobs) == Layout(shard=4)
    assert training_layout(Config(replicate=1), replace(jobs, pipeline=2)) == Layout()
    with pytest.raises(PlanError, match="expert=2"):
        training_layout(Config(), replace(jobs, expert=2))


def test_a_rank_may_be_silent_for_so_long_as_is_usual(tmp_path: Path) -> None:
    paths, now = [tmp_path / "0", tmp_path / "1"], time.time()
    assert Watch(paths, now - 5, start_s=10, step_s=1)() == ""
    assert Watch(paths, now - 11, start_s=10, step_s=1)().startswith("no sign of ranks 0, 1 of 2 for 11 s")
    for path, (age_s, longest_s) in zip(paths, ((5.0, 0.1), (5.0, 0.6)), strict=True):
        path.write_text(f"{longest_s}\n")
        os.utime(path, (now - age_s, now - age_s))
    assert Watch(paths, now - 99, start_s=10, step_s=6)() == ""
    paths[1].write_text("")  # past its last step: it sends what it has
    os.utime(paths[1], (now - 9.0, now - 9.0))
    said = Watch(paths, now - 99, start_s=10, step_s=1)()
    assert said.startswith("no sign of rank 0 of 2 for 5 s, longer than the 1 s it may be"), "ten usual steps are 6 s"


class Freezes(nn.Linear):
    """A layer that stops for good on the second rank, once it has been called a few times."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 4 and dist.is_initialized() and dist.get_rank() == 1:
            time.sleep(300)
        return super().forward(x)


@pytest.mark.slow
def test_a_rank_that_is_frozen_ends_the_training_with_its_name(tmp_path: Path) -> None:
    mlp = {"use": "mlp", "inputs": 2, "hidden": [4], "outputs": 1}
    job = make_job(mlp, STEPS[1:]).model_dump(mode="json")
    job |= {"data": {"use": "synthetic", "kind": "regression", "num_samples": 256, "features": 2}}
    job["cluster"]["step_timeout_s"] = 1.0
    trained = make_trained(JobSpec.model_validate(job), epochs=0)
    net = nn.Sequential(Freezes(2, 4), nn.Linear(4, 1))
    began = time.monotonic()
    with pytest.raises(TrainError, match=r"failed: no sign of ranks? [01]") as caught:
        recover(net, context_of(trained, tmp_path), epochs=1, batch_size=32, layout=Layout(replicate=2))
    assert time.monotonic() - began < 60
    assert "cluster.step_timeout_s" in str(caught.value.hint)


@pytest.mark.slow
def test_what_goes_wrong_on_a_rank_is_told(tmp_path: Path) -> None:
    trained = make_trained(make_job(RESNET, STEPS), epochs=0)
    state = State(MODULE, trained.model)
    context = replace(context_of(trained, tmp_path), layout=Layout(replicate=2))
    with pytest.raises(TrainError, match=r"training on 2 ranks = replicate 2 failed: TrainError: the loss became"):
        Finetune(Config(epochs=0.5, lr=1e30)).apply(state, context)
