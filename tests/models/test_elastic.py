"""Nets that share weights: a net cut out of a wide one computes what the wide one does with the rest switched off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator.models import cnn, resnet, transformer
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


WORDS = transformer.Config(
    vocab=20, seq_len=8, dim=16, layers=3, heads=4, kv_heads=2, hidden=24, norm_eps=1e-12, head_dim=4
)


def tokens() -> Tensor:
    return torch.randint(20, (3, 8), generator=torch.Generator().manual_seed(1))


def part_and_whole(config: transformer.Config) -> tuple[nn.Module, nn.Module]:
    whole = wide(transformer, WORDS)
    return part_of(transformer, whole, WORDS, config), whole


def assert_same(part: nn.Module, whole: nn.Module) -> None:
    with torch.no_grad():
        torch.testing.assert_close(part(tokens()), whole(tokens()), rtol=0, atol=1e-9)


def blocks(module: nn.Module) -> list[Any]:
    return [module.get_submodule(f"layers.block{number}") for number in range(1, WORDS.layers + 1)]


def test_a_transformer_with_a_narrower_feed_forward_is_the_wide_one_with_its_last_numbers_at_zero() -> None:
    part, whole = part_and_whole(replace(WORDS, hidden=10))
    for block in blocks(whole):
        block.feed_forward.down.weight.data[:, 10:] = 0.0
    assert_same(part, whole)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "kept"),
    [(2, 1, [0, 1]), (2, 2, [0, 2]), (1, 1, [0])],
    ids=["first group", "first query of each group", "one"],
)
def test_a_transformer_with_fewer_heads_is_the_wide_one_without_what_the_others_say(
    heads: int, kv_heads: int, kept: list[int]
) -> None:
    part, whole = part_and_whole(replace(WORDS, heads=heads, kv_heads=kv_heads))
    for block in blocks(whole):
        for head in set(range(WORDS.heads)) - set(kept):
            block.attention.output.weight.data[:, head * 4 : (head + 1) * 4] = 0.0
    assert_same(part, whole)


def test_a_shorter_transformer_is_the_wide_one_without_its_last_blocks() -> None:
    part, whole = part_and_whole(replace(WORDS, layers=1))
    for block in blocks(whole)[1:]:
        block.attention.output.weight.data.zero_()
        block.feed_forward.down.weight.data.zero_()
    assert_same(part, whole)


def test_a_transformer_with_a_narrower_stream_is_the_wide_one_with_its_last_numbers_at_zero() -> None:
    part, whole = part_and_whole(replace(WORDS, dim=8))
    with torch.no_grad():
        whole.get_parameter("layers.embedding.weight")[:, 8:] = 0.0
        for block in blocks(whole):
            block.attention.output.weight[8:] = 0.0
            block.feed_forward.down.weight[8:] = 0.0
        for name, parameter in whole.named_parameters():
            if "norm" in name:  # its mean square is over 16 numbers, of which 8 are zero
                parameter.mul_(0.5**0.5)
    assert_same(part, whole)


def test_shared_weights_of_a_transformer_stay_shared_in_its_parts() -> None:
    config = replace(WORDS, layers=2, repeat=2, tied_embeddings=True)
    whole = wide(transformer, config)
    part = part_of(transformer, whole, config, replace(config, layers=1, heads=2, kv_heads=1))
    assert part.get_parameter("layers.head.weight") is part.get_parameter("layers.embedding.weight")


def test_the_widest_transformer_holds_all() -> None:
    nets = [
        replace(WORDS, heads=4, kv_heads=1),
        replace(WORDS, layers=5, heads=2, kv_heads=2),
        replace(WORDS, dim=32, hidden=0),
    ]
    whole = transformer.widest(nets)
    assert (whole.layers, whole.dim, whole.heads, whole.kv_heads, whole.hidden) == (5, 32, 8, 2, 96)
    assert whole.head_width == 4
    for net in nets:
        transformer.cuts(whole, net)


def test_heads_are_never_cut() -> None:
    two = [replace(WORDS, head_dim=0), replace(WORDS, head_dim=0, heads=2)]
    with pytest.raises(ValueError, match="heads are 4 and 8 wide, and a head is never cut"):
        transformer.widest(two)
    grown = [replace(each, dim=each.heads * 4) for each in two]
    assert transformer.widest(grown) == replace(grown[0], hidden=24)
    with pytest.raises(ValueError, match="heads to a head of keys 2 is more than the 1"):
        transformer.cuts(replace(WORDS, kv_heads=4), WORDS)


STAGES = resnet.Config(channels=(8, 12), depths=(2, 3))


@pytest.mark.parametrize("change", [{"channels": (4, 6)}, {"depths": (1, 2)}, {"channels": (8, 6), "depths": (2, 1)}])
def test_a_smaller_resnet_is_the_wide_one_with_channels_silent_and_blocks_passed_by(change: dict[str, Any]) -> None:
    config, whole = replace(STAGES, **change), wide(resnet, STAGES)
    part = part_of(resnet, whole, STAGES, config)
    first = [0, STAGES.depths[0]]
    with torch.no_grad():
        silent(whole.get_submodule("layers.stem.norm"), config.channels[0])
        for stage, (kept, depth) in enumerate(zip(config.channels, config.depths, strict=True)):
            for number in range(1, STAGES.depths[stage] + 1):
                block: Any = whole.get_submodule(f"layers.block{first[stage] + number}")
                silent(block.norm1, kept)
                silent(block.norm2, kept if number <= depth else 0)
                if hasattr(block.shortcut, "norm"):
                    silent(block.shortcut.norm, kept)
        torch.testing.assert_close(part(images()), whole(images()), rtol=0, atol=1e-12)


def silent(norm: Any, kept: int) -> None:
    """Let the channels from `kept` on be zero behind a norm."""
    norm.weight[kept:], norm.bias[kept:] = 0.0, 0.0


def test_resnets_of_other_stages_share_no_weights() -> None:
    nets = [STAGES, resnet.Config(channels=(4,), depths=(1,))]
    with pytest.raises(ValueError, match="nets of 1 and 2 stages"):
        resnet.widest(nets)
    assert resnet.widest([STAGES, replace(STAGES, channels=(16, 4))]).channels == (16, 12)
    with pytest.raises(ValueError, match=r"depths.1 3 is more than the 2"):
        resnet.cuts(replace(STAGES, depths=(2, 2)), STAGES)
