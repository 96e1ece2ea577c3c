"""What makes the CNN a CNN: how far an output sees, weights shared over places, and tolerance of a small shift."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from orchestrator.data import digits
from orchestrator.data.order import SampleOrder
from orchestrator.models import cnn, mlp
from orchestrator.testing.models import seeded


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("num_blocks", [1, 2, 3])
@pytest.mark.parametrize("pooled", [True, False])
def test_the_receptive_field_is_what_gradients_show(kernel_size: int, num_blocks: int, pooled: bool) -> None:
    config = cnn.Config(image_size=64, channels=(2, 2, 2), kernel_size=kernel_size, pool="avg")
    module = cnn.build(config).double()
    image_BCHW = torch.zeros(1, 1, 64, 64, dtype=torch.float64, requires_grad=True)
    x_BCHW: torch.Tensor = image_BCHW
    for number in range(1, num_blocks + 1):
        block = module.get_submodule(f"layers.block{number}")
        last = number == num_blocks
        for name, part in block.named_children():
            if isinstance(part, nn.Conv2d):
                nn.init.ones_(part.weight)  # all weights alike, so that no path cancels another
            if isinstance(part, nn.ReLU) or (last and not pooled and name == "pool"):
                continue  # a bend may hide a path, it never widens the view
            x_BCHW = part(x_BCHW)
    middle = x_BCHW.shape[-1] // 2
    x_BCHW[0, 0, middle, middle].backward()
    assert image_BCHW.grad is not None
    seen = image_BCHW.grad[0, 0].nonzero()
    sides = (seen.max(dim=0).values - seen.min(dim=0).values + 1).tolist()
    assert sides == [cnn.receptive_field(config, num_blocks, pooled=pooled)] * 2


def test_the_documented_receptive_fields() -> None:
    config = cnn.Config(channels=(32, 64))
    views = [(cnn.receptive_field(config, n, pooled=False), cnn.receptive_field(config, n)) for n in (1, 2)]
    assert views == [(3, 4), (8, 10)]
    assert cnn.features(config) == 64 * 2 * 2


def test_the_same_weights_serve_every_place() -> None:
    small, large = cnn.Config(image_size=8), cnn.Config(image_size=64)
    name = "layers.block1.conv.weight"
    assert cnn.build(small).get_parameter(name).numel() == cnn.build(large).get_parameter(name).numel() == 16 * 9
    conv = cnn.build(large).get_submodule("layers.block1.conv")
    image_BCHW = torch.rand(1, 1, 64, 64, generator=seeded("image"))
    moved = conv(image_BCHW.roll(5, dims=-1))[..., 10:54]  # away from the border
    torch.testing.assert_close(moved, conv(image_BCHW)[..., 5:49])


def trained(plugin: object, config: object, flat: bool, epochs: int = 6) -> nn.Module:
    train = digits.load(digits.Config(flat=flat)).splits["train"]
    module: nn.Module = plugin.build(config)  # type: ignore[attr-defined]
    for name, parameter in module.named_parameters():
        cnn.init_parameter(name, parameter, seeded(name))
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    order = SampleOrder(len(train), 64, seed=0)
    for step in range(epochs * len(train) // 64):
        inputs, targets = train.batch(torch.from_numpy(order.indices(step)))
        optimizer.zero_grad()
        cross_entropy(module(inputs), targets).backward()
        optimizer.step()
    return module.eval()


def test_a_digit_moved_by_a_pixel_disturbs_the_cnn_less_than_the_mlp() -> None:
    """Both are trained alike and are nearly as good on digits where they were; then the test digits are moved."""
    test = digits.load(digits.Config()).splits["test"]
    images_BCHW, targets = test.batch(torch.arange(len(test)))
    nets = {
        "cnn": trained(cnn, cnn.Config(channels=(32, 64)), flat=False),
        "mlp": trained(mlp, mlp.Config(inputs=64, hidden=(128, 64), outputs=10), flat=True),
    }
    right: dict[str, list[float]] = {}
    change: dict[str, float] = {}
    for name, net in nets.items():
        views = [images_BCHW] + [
            _shifted(images_BCHW, down, across) for down, across in ((0, 1), (0, -1), (1, 0), (-1, 0))
        ]
        with torch.no_grad():
            shares = [net(view if name == "cnn" else view.flatten(1)).softmax(-1) for view in views]
        right[name] = [float((share.argmax(-1) == targets).double().mean()) for share in shares]
        change[name] = float(sum((share - shares[0]).abs().sum(-1).mean() for share in shares[1:]) / 8)
    moved = {name: sum(values[1:]) / 4 for name, values in right.items()}
    assert min(right["cnn"][0], right["mlp"][0]) > 0.95, right
    assert change["cnn"] < 0.85 * change["mlp"], change
    assert moved["cnn"] > moved["mlp"] + 0.05, moved


def _shifted(images_BCHW: torch.Tensor, down: int, across: int) -> torch.Tensor:
    """Move by a pixel; what enters is empty, what leaves is lost."""
    moved = torch.zeros_like(images_BCHW)
    height, width = images_BCHW.shape[-2:]
    to_rows, from_rows = slice(max(0, down), height + min(0, down)), slice(max(0, -down), height + min(0, -down))
    to_cols, from_cols = slice(max(0, across), width + min(0, across)), slice(max(0, -across), width + min(0, -across))
    moved[..., to_rows, to_cols] = images_BCHW[..., from_rows, from_cols]
    return moved
