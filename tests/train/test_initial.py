"""Training begins with the weights of a file (`train.init`), whole or cut from a wider net's, under any layout."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from orchestrator.errors import CheckpointError, PlanError
from orchestrator.models import cnn
from orchestrator.parallel.process import Rank
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.plan.cut import EXITS, exit_name
from orchestrator.spec.digest import job_digest
from orchestrator.spec.job import JobSpec
from orchestrator.testing.ranks import run_ranks
from orchestrator.train.engine import build_engine

WIDE = {"use": "cnn", "channels": [8, 12], "kernel_size": 5}


def job(init: dict[str, Any] | None, model: dict[str, Any] | None = None, **parallel: int) -> dict[str, Any]:
    return {
        "model": model or {"use": "cnn", "channels": [4], "kernel_size": 3},
        "data": {"use": "digits"},
        "optim": {"lr": 0.01},
        "train": {"steps": 3, "batch_size": 16, "precision": "fp64", "init": init},
        "cluster": {"gpus_per_worker": 0},
        "parallel": parallel,
    }


def wide_file(folder: Path) -> dict[str, Any]:
    """Write the weights of the wide net with a classifier behind its first block; return what `train.init` takes."""
    generator = torch.Generator().manual_seed(3)
    exit_net = cnn.Config(channels=(8,), kernel_size=5)
    whole = cnn.build(cnn.Config(channels=(8, 12), kernel_size=5))
    shapes = {name: each.shape for name, each in whole.named_parameters()}
    for name, each in cnn.build(exit_net).named_parameters():
        if "head" in name:
            shapes[f"{EXITS}.{exit_name(exit_net)}.{name}"] = each.shape
    path = folder / "wide.safetensors"
    save_file({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, path)
    return {"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "cut_from": WIDE}


def weights_of(data: dict[str, Any]) -> dict[str, torch.Tensor]:
    engine = build_engine(JobSpec.model_validate(data), Rank())
    return {name: each.detach() for name, each in engine.model.module.named_parameters()}


def test_a_net_begins_with_its_part_of_a_wider_nets_weights(tmp_path: Path) -> None:
    init = wide_file(tmp_path)
    whole, found = load_file(init["file"]), weights_of(job(init))
    kernel = whole["layers.block1.conv.weight"][:4, :, 1:-1, 1:-1]
    assert torch.equal(found["layers.block1.conv.weight"].float(), kernel)
    own = next(name for name in whole if name.startswith(EXITS) and name.endswith("head.weight"))
    assert torch.equal(found["layers.head.weight"].float(), whole[own][:, : 4 * 16])


def test_a_net_begins_with_all_weights_of_its_own_file(tmp_path: Path) -> None:
    drawn = weights_of(job(None))
    path = tmp_path / "own.safetensors"
    save_file({name: (each + 1).contiguous() for name, each in drawn.items()}, path)
    for name, each in weights_of(job({"file": str(path)})).items():
        assert torch.equal(each, drawn[name] + 1)


def begin(rank: int, world_size: int, data: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the full weights of this rank's layers, before any step."""
    engine = build_engine(JobSpec.model_validate(data), Rank(rank, world_size, rank))
    named = engine.model.module.named_parameters()
    return {name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for name, p in named}


@pytest.mark.parametrize("parallel", [{"shard": 2}, {"tensor": 2}, {"pipeline": 2}], ids=str)
def test_every_layout_begins_with_the_same_weights(tmp_path: Path, parallel: dict[str, int]) -> None:
    init, model = wide_file(tmp_path), {"use": "cnn", "channels": [4, 8], "kernel_size": 3}
    alone = weights_of(job(init, model))
    ranks = run_ranks(begin, 2, job(init, model, **parallel))
    assert set().union(*ranks) == set(alone)
    for name, each in [pair for rank in ranks for pair in rank.items()]:
        assert torch.equal(each, alone[name]), name


def test_another_file_and_one_that_does_not_fit_are_refused(tmp_path: Path) -> None:
    init = wide_file(tmp_path)
    with pytest.raises(CheckpointError, match="is not the file that"):
        weights_of(job({**init, "sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match=r"'layers.block2.conv.bias' is unknown"):
        weights_of(job({"file": init["file"]}))
    with pytest.raises(CheckpointError, match="does not hold the weights of cnn"):
        weights_of(job({**init, "cut_from": {**WIDE, "kernel_size": 7}}))


def test_planning_tells_a_missing_file_and_a_net_that_is_no_part(tmp_path: Path) -> None:
    init = wide_file(tmp_path)
    data = job({**init, "file": str(tmp_path / "none"), "cut_from": {**WIDE, "channels": [2, 12]}})
    with pytest.raises(PlanError) as caught:
        build_plan(JobSpec.model_validate(data), Available.unknown())
    said = {problem.path: problem.message for problem in caught.value.problems}
    assert said["train.init.file"].endswith("does not exist")
    assert said["train.init.cut_from"].endswith("channels.0 4 is more than the 2 of the net it should be a part of")


def test_the_digest_of_a_job_knows_the_file_by_its_content(tmp_path: Path) -> None:
    init = wide_file(tmp_path)
    plain, given, moved = (
        job_digest(JobSpec.model_validate(job(each))) for each in (None, init, {**init, "file": "elsewhere"})
    )
    assert given == moved != plain
