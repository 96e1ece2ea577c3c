"""The utilisation benchmark: says so where there is no GPU, and its loops run (a tiny model, on the CPU)."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks import mfu

TINY = {**mfu.MODEL, "seq_len": 16, "dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 32}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_nothing_is_measured() -> None:
    assert mfu.run() == [("model FLOPs utilisation", "not measured: this machine has no CUDA GPU")]


def test_the_model_has_about_a_billion_parameters() -> None:
    plan = mfu.build_plan(mfu.job_of(mfu.MODEL, mfu.BATCH, compile_model=True), mfu.Available.unknown())
    assert plan.num_params is not None
    assert 0.9e9 < plan.num_params < 1.2e9


def test_its_rows_name_the_engine_and_the_bare_loop_and_claim_no_share_of_an_unknown_peak() -> None:
    rows = dict(mfu.rows_of(mfu.job_of(TINY, 4, compile_model=False), torch.device("cpu"), "some processor"))
    assert "peak of this device not known" in rows["the engine (goal: 55 % and ahead of each)"]
    assert "engine faster by" in rows["bare PyTorch loop"]
