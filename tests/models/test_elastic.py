"""Nets that share weights: a net cut out of a wide one computes what the wide one does with the rest switched off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator.models import cnn
from orchestrator.plan.cut import source_name
from orchestrator.train.cut import cut_weights

WIDE = cnn.Config(channels=(8, 12), kernel_size=5, hidden=10)


def part_of(plugin: Any, whole: nn.Module, whole_config: Any, config: Any) -> nn.Module:
    """Return the net of `config` with weights cut from `whole`, which has no exits: the part ends as it does."""
    part: nn.Module = plugin.build(config).double()
    found = plugin.cuts(whole_config, config)
    assert set(found) == {name for name, _ in part.named_parameters()}
    weights = cut_weights(dict(whole.named_parameters()), found)
    part.load_state_dict({**part.state_dict(), **{name: each.detach() for name, each in weights.items()}})
    return part.eval()


def wide(plugin: Any, config: Any) -> nn.Module:
    """Return a net in float64 whose biases and norms are no zeros and ones."""
    torch.manual_seed(0)
    module: nn.Module = plugin.build(config).double().eval()
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            if parameter.ndim == 1:
                parameter.add_(torch.linspace(-0.5, 0.5, len(parameter), dtype=torch.float64) * (number + 1) / 10)
    return module


def images(size: int = 8) -> Tensor:
    return torch.rand(3, 1, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_a_narrower_cnn_is_the_wide_one_with_its_last_channels_at_zero() -> None:
    whole, config = wide(cnn, WIDE), replace(WIDE, channels=(4, 6), hidden=7)
    part = part_of(cnn, whole, WIDE, config)
    with torch.no_grad():
        for path, kept in (("block1.conv", 4), ("block2.conv", 6), ("hidden.linear", 7)):
            layer = whole.get_submodule(f"layers.{path}")
            layer.weight[kept:], layer.bias[kept:] = 0.0, 0.0
        torch.testing.assert_close(part(images()), whole(images()), rtol=0, atol=1e-12)


def test_a_cnn_with_a_smaller_kernel_is_the_one_with_the_rim_of_its_kernels_at_zero() -> None:
    whole = wide(cnn, WIDE)
    part = part_of(cnn, whole, WIDE, replace(WIDE, kernel_size=3))
    with torch.no_grad():
        for number in (1, 2):
            weight = whole.get_submodule(f"layers.block{number}.conv").weight
            rim = torch.ones_like(weight, dtype=torch.bool)
            rim[:, :, 1:-1, 1:-1] = False
            weight.masked_fill_(rim, 0.0)
        torch.testing.assert_close(part(images()), whole(images()), rtol=0, atol=1e-12)


def test_a_shorter_cnn_has_the_first_blocks_and_a_classifier_of_its_own() -> None:
    config = replace(WIDE, channels=(6,), hidden=0)
    found = cnn.cuts(WIDE, config)
    own = {source_name(cut) for name, cut in found.items() if "head" in name}
    assert all(name.startswith("exits.") for name in own)
    assert source_name(found["layers.block1.conv.weight"]) == "layers.block1.conv.weight"
    assert found["layers.head.weight"].net == replace(WIDE, channels=(8,), hidden=0)
    assert found["layers.head.weight"].places == (range(10), range(6 * 4 * 4))
    other = cnn.cuts(WIDE, replace(WIDE, channels=(4,), hidden=0))
    assert source_name(other["layers.head.weight"]) in own


def test_the_widest_cnn_holds_all() -> None:
    nets = [cnn.Config(channels=(16, 4)), cnn.Config(channels=(8,), kernel_size=5), cnn.Config(channels=(4, 8, 2))]
    whole = cnn.widest(nets)
    assert (whole.channels, whole.kernel_size) == ((16, 8, 2), 5)
    for net in nets:
        cnn.cuts(whole, net)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channels": (8, 16)}, "channels.1 16 is more than the 12"),
        ({"channels": (8, 12, 4)}, "blocks 3 is more than the 2"),
        ({"kernel_size": 7}, "kernel_size 7 is more than the 5"),
        ({"pool": "avg"}, "pool is avg and max: nets that share weights differ only in channels, hidden, kernel_size"),
    ],
)
def test_what_is_no_part_is_refused_with_the_reason(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cnn.cuts(WIDE, replace(WIDE, **change))


def test_gradients_of_a_part_reach_the_wide_net_where_it_was_cut() -> None:
    whole, config = wide(cnn, WIDE), replace(WIDE, channels=(4, 6), kernel_size=3)
    weights = cut_weights(dict(whole.named_parameters()), cnn.cuts(WIDE, config))
    outputs = torch.func.functional_call(cnn.build(config).double(), weights, (images(),))
    outputs.square().sum().backward()
    gradient = whole.get_parameter("layers.block2.conv.weight").grad
    assert gradient is not None
    inside = gradient[:6, :4, 1:-1, 1:-1]
    assert inside.count_nonzero() > 0
    assert inside.count_nonzero() == gradient.count_nonzero()
