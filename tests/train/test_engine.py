"""The engine asks the model, not the data alone, how images lie in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from orchestrator import plugins
from orchestrator.errors import PlanError
from orchestrator.parallel.process import Rank
from orchestrator.spec.load import load_spec
from orchestrator.train.engine import Engine, build_engine

CL, PLAIN = torch.channels_last, torch.contiguous_format


def engine(**train: Any) -> Engine:
    model = {"use": "cnn", "channels": [4]}
    return build_engine(
        load_spec({"model": model, "data": {"use": "digits"}, "train": {"steps": 1, **train}}), Rank(0, 1, 0)
    )


@pytest.mark.parametrize(
    ("says", "wanted", "found"),
    [
        (True, "auto", CL),
        (None, "auto", CL),
        (False, "auto", PLAIN),
        (False, "channels_last", CL),
        (True, "contiguous", PLAIN),
    ],
)
def test_auto_follows_what_the_model_says_of_images(
    says: bool | None, wanted: str, found: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = plugins.load("models", "cnn")
    if says is None:
        monkeypatch.delattr(plugin, "image_input")
    else:
        monkeypatch.setattr(plugin, "image_input", says)
    assert engine(memory_format=wanted).memory_format is found


def test_data_that_is_no_image_stays_as_it_is() -> None:
    job = {"model": {"use": "mlp", "inputs": 64, "outputs": 10}, "data": {"use": "digits", "flat": True}}
    assert build_engine(load_spec({**job, "train": {"steps": 1}}), Rank(0, 1, 0)).memory_format is PLAIN


def resnet(channels: list[int], **train: Any) -> Engine:
    model = {"use": "resnet", "channels": channels, "depths": [1, 1]}
    return build_engine(
        load_spec({"model": model, "data": {"use": "digits"}, "train": {"steps": 1, **train}}), Rank(0, 1, 0)
    )


def test_strided_convolutions_of_few_channels_do_not_train_channels_last_on_a_cpu() -> None:
    """OneDNN writes past its workspace for those, which killed a process or gave wrong gradients on AVX2 machines."""
    assert resnet([4, 6]).memory_format is PLAIN
    assert resnet([16, 32]).memory_format is CL
    with pytest.raises(PlanError, match="can give wrong gradients on a CPU"):
        resnet([4, 6], memory_format="channels_last")
