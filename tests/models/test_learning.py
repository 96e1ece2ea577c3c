"""Each family learns: a few steps on a tiny task bring the loss well down, from first weights by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from orchestrator.models import moe, resnet, rnn, transformer, vit
from orchestrator.testing.models import seeded

TEXT = {"vocab": 16, "seq_len": 12, "dim": 16}
CASES: dict[str, tuple[Any, Any]] = {
    "resnet-batch": (resnet, resnet.Config(channels=(8,), depths=(1,), classes=4)),
    "resnet-group": (resnet, resnet.Config(channels=(8,), depths=(1,), classes=4, norm="group")),
    "vit": (vit, vit.Config(dim=16, layers=1, classes=4)),
    "gru": (rnn, rnn.Config(**TEXT, hidden=24)),
    "lstm": (rnn, rnn.Config(**TEXT, kind="lstm", hidden=24)),
    "transformer": (transformer, transformer.Config(**TEXT, layers=1, heads=2, kv_heads=1)),
    "transformer-tied": (transformer, transformer.Config(**TEXT, layers=1, heads=2, kv_heads=2, tied_embeddings=True)),
    "transformer-repeated": (transformer, transformer.Config(**TEXT, layers=1, heads=2, kv_heads=2, repeat=2)),
    "moe": (moe, moe.Config(**TEXT, layers=1, heads=2, kv_heads=2, experts=4, capacity_factor=1.5)),
}


def task(shape: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return counting sequences (the next is one more), or images whose bright row is the class."""
    generator = seeded("task")
    if shape.input_dtype == "int64":
        first_B1 = torch.randint(16, (32, 1), generator=generator)
        window_BL = (first_B1 + torch.arange(shape.inputs[0] + 1)) % 16
        return window_BL[:, :-1], window_BL[:, 1:]
    targets_B = torch.arange(32) % 4
    images_BCHW = 0.1 * torch.randn(32, *shape.inputs, generator=generator)
    images_BCHW[torch.arange(32), :, 2 * targets_B] += 1.0
    return images_BCHW, targets_B


@pytest.mark.parametrize("name", CASES)
def test_the_loss_falls(name: str) -> None:
    plugin, config = CASES[name]
    module = plugin.build(config)
    for path, parameter in module.named_parameters():
        plugin.init_parameter(path, parameter, seeded(path))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    inputs, targets = task(plugin.shape(config))
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = cross_entropy(module(inputs).flatten(0, -2), targets.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 4.0, "first scores are not wild"
    assert losses[-1] < 0.4 * losses[0], losses[::8]
