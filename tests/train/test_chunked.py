"""The last layer and the loss in pieces: the same loss and gradients, and far less memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.errors import PlanError
from orchestrator.parallel.process import Rank
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.spec.job import JobSpec
from orchestrator.train.chunked import ChunkedHead, cut
from orchestrator.train.engine import Engine, build_engine
from orchestrator.train.evaluate import evaluate
from orchestrator.train.loss import CrossEntropy
from orchestrator.train.step import Stepper
from orchestrator.verify.run import verify_job

TEXT = {"use": "text", "corpus": "python", "seq_len": 16, "max_bytes": 50_000}
MODEL = {
    "use": "transformer",
    "seq_len": 16,
    "dim": 16,
    "layers": 4,
    "heads": 4,
    "kv_heads": 4,
    "hidden": 16,
    "tied_embeddings": True,
}


def job(chunks: int = 3, parallel: dict[str, Any] | None = None, **train: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "model": MODEL,
            "data": TEXT,
            "optim": {"use": "adamw", "lr": 0.003, "clip_norm": 0.5},
            "train": {"steps": 10, "batch_size": 16, "precision": "fp64", "loss_chunks": chunks, **train},
            "parallel": {"replicate": 1, **(parallel or {})},
        }
    )


def gradients(engine: Engine) -> dict[str, torch.Tensor]:
    Stepper(engine).backward(0)
    return {name: p.grad.clone() for name, p in engine.model.module.named_parameters() if p.grad is not None}


def test_pieces_give_the_gradients_and_the_evaluation_of_the_whole() -> None:
    whole, chunked = (build_engine(job(chunks), Rank(0, 1, 0)) for chunks in (1, 5))
    assert whole.chunked is None
    want, got = gradients(whole), gradients(chunked)
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-10, atol=1e-14)
    assert evaluate(chunked, "val") == evaluate(whole, "val")


@pytest.mark.parametrize(
    "parallel",
    [
        {"replicate": 2},
        {"tensor": 2},
        {"pipeline": 2, "schedule": "interleaved_zero_bubble"},
        pytest.param({"shard": 2, "context": 2}, marks=pytest.mark.slow),
        pytest.param({"tensor": 2, "sequence": False}, marks=pytest.mark.slow),
        pytest.param({"pipeline": 2, "shard": 2, "tensor": 2}, marks=pytest.mark.slow),
    ],
    ids=lambda parallel: " ".join(parallel),
)
def test_pieces_agree_with_the_whole_loss_on_one_process_under_every_axis(parallel: dict[str, Any]) -> None:
    report = verify_job(job(parallel=parallel), num_steps=2)
    assert report.agrees, [(found.first, found.error) for found in report.comparisons]


def test_targets_follow_the_stretches_that_are_gathered_over_ranks() -> None:
    x_BLD, targets_BL = torch.arange(8.0).reshape(1, 8, 1), torch.arange(8).reshape(1, 8)
    for rank, piece in enumerate(x_BLD.chunk(2, 1)):
        parts, targets = cut(piece, targets_BL, 3, pieces=2)
        assert [part.flatten().tolist() for part in parts] == [
            [0.0 + 4 * rank, 1.0 + 4 * rank],
            [2.0 + 4 * rank, 3.0 + 4 * rank],
        ]
        assert [part.flatten().tolist() for part in targets] == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_without_a_sequence_the_batch_is_cut() -> None:
    parts, targets = cut(torch.zeros(7, 3), torch.arange(7), 3, pieces=1)
    assert [len(part) for part in parts] == [len(part) for part in targets] == [3, 3, 1]


def test_a_last_layer_that_is_not_linear_is_refused() -> None:
    with pytest.raises(PlanError, match="ends with Conv2d"):
        ChunkedHead(nn.Conv2d(1, 1, 1), CrossEntropy(CrossEntropy.Config()), 2, 1)


def test_a_model_that_does_not_name_its_layers_is_refused_before_anything_starts() -> None:
    own = job().model_copy(update={"model": type(job().model)(use="torch.nn:Linear")})
    with pytest.raises(PlanError) as caught:
        build_plan(own, Available.unknown())
    assert "train.loss_chunks" in {problem.path for problem in caught.value.problems}


_MEMORY = """
import json, re, sys, torch
from pathlib import Path
from torch import nn
from orchestrator.train.chunked import ChunkedHead
from orchestrator.train.loss import CrossEntropy

torch.set_num_threads(1)


def peak_mib():
    # Not getrusage: its peak begins with that of the process that started this one.
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024


loss = CrossEntropy(CrossEntropy.Config())


def step(classes, length, chunks):
    head = nn.Linear(32, classes, bias=False)
    x, targets = torch.randn(4, length, 32, requires_grad=True), torch.randint(classes, (4, length))
    if chunks > 1:
        chunked = ChunkedHead(head, loss, chunks, 1)
        chunked.targets = targets
        total = head(x)
    else:
        total = loss.sum(head(x), targets)
    total.backward()
    return float(total.detach())


step(8, 8, 2)  # what is loaded at a first backward pass is not what is measured
before = peak_mib()
total = step(16384, 512, int(sys.argv[1]))
print(json.dumps({"loss": total, "mib": peak_mib() - before}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_pieces_take_a_fraction_of_the_memory() -> None:
    found = []
    for chunks in (1, 16):
        done = subprocess.run(
            [sys.executable, "-c", f"import torch; torch.manual_seed(0)\n{_MEMORY}", str(chunks)],
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(json.loads(done.stdout))
    whole, chunked = found
    assert chunked["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert whole["mib"] > 250  # scores of 128 MiB, their softmax and their gradient
    assert chunked["mib"] < whole["mib"] / 2
