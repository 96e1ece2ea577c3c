"""Integers for linear layers: dynamic and weight-only, on a transformer; what a scheme cannot do is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.compress.pipeline import Outcome, Trained, compress
from orchestrator.compress.quantise import Config
from orchestrator.errors import PlanError
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.spec.job import JobSpec
from orchestrator.spec.load import load_spec
from tests.tiers import sample_of

from .making import MEASURE, make_trained

TEXT = {"use": "transformer", "vocab": 256, "seq_len": 16, "dim": 64, "layers": 2, "heads": 4}


def job(scheme: str, model: dict[str, Any] = TEXT, **options: Any) -> JobSpec:
    is_text = model["use"] == "transformer"
    text = {"use": "text", "corpus": "python", "seq_len": 16, "max_bytes": 60_000}
    steps = [{"use": "export"}, {"use": "quantise", "scheme": scheme, **options}]
    return load_spec(
        {
            "name": "tiny",
            "model": model,
            "data": text if is_text else {"use": "digits"},
            "optim": {"lr": 3e-3},
            "train": {"epochs": 1, "batch_size": 64},
            "cluster": {"gpus_per_worker": 0},
            "compress": {"steps": steps, "measure": MEASURE},
        }
    )


@pytest.fixture(scope="module")
def trained() -> Trained:
    return make_trained(job("int8-dynamic"), epochs=2)


@pytest.mark.parametrize(
    ("scheme", "smaller", "lost"),
    sample_of([("int8-dynamic", 3.0, 0.01), ("int8-weight", 2.5, 0.005)], 1, seed=1),
)
def test_linear_layers_become_integers(
    trained: Trained, scheme: str, smaller: float, lost: float, tmp_path: Path
) -> None:
    outcome: Outcome = compress(replace(trained, job=job(scheme)), tmp_path / "compress")
    assert outcome.ok, outcome.error
    assert outcome.checked["size_ratio"] > smaller
    assert outcome.checked["integer_operators"] >= 2 * 7
    assert outcome.checked["loss_delta"] < lost


@pytest.mark.slow
def test_four_bits_hold_embeddings_too(trained: Trained, tmp_path: Path) -> None:
    outcome = compress(replace(trained, job=job("int4-weight")), tmp_path / "compress")
    assert outcome.ok, outcome.error
    assert outcome.checked["size_ratio"] > 4
    assert outcome.checked["coverage"] > 0.95


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int8-weight", "int4-weight"])
def test_convolutions_have_no_such_integers(scheme: str) -> None:
    with pytest.raises(PlanError) as caught:
        build_plan(job(scheme, {"use": "cnn"}), Available(num_cpus=2.0, num_gpus=0, memory_bytes=8 << 30))
    assert f"{scheme} changes linear layers only" in caught.value.problems[0].message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scheme": "int8-dynamic", "group": 64}, "group means nothing for int8-dynamic"),
        ({"scheme": "int4-weight", "algorithm": "entropy"}, "algorithm entropy means nothing for int4-weight"),
        ({"scheme": "int4-weight", "group": 20}, "group must be"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Config(**options)
