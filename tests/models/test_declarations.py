"""What models say of themselves for planning and for parallel axes is true of the networks they build."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from orchestrator import plugins
from orchestrator.models import cnn, mlp, moe, resnet, rnn, transformer, vit
from orchestrator.models.declare import Split, column_row_pairs
from tests.models.pretend import run_split

SMALL_TEXT = {"vocab": 32, "seq_len": 8, "dim": 16, "heads": 4, "kv_heads": 2, "hidden": 24}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "mlp": (mlp, {"inputs": 6, "hidden": [8, 4, 6], "outputs": 3}),
    "mlp-even": (mlp, {"inputs": 6, "hidden": [8, 5], "outputs": 3}),
    "cnn": (cnn, {"channels": [8, 12], "norm": "group"}),
    "cnn-hidden": (cnn, {"channels": [8, 6, 4], "hidden": 10}),
    "cnn-odd": (cnn, {"channels": [8]}),
    "resnet-batch": (resnet, {"channels": [8, 12], "depths": [2, 1]}),
    "resnet-group": (resnet, {"channels": [8, 16], "depths": [1, 1], "norm": "group"}),
    "gru": (rnn, {"vocab": 32, "seq_len": 8, "dim": 6, "hidden": 10, "layers": 2}),
    "lstm-rows": (rnn, {"kind": "lstm", "vocab": 0, "features": 3, "classes": 4, "seq_len": 5, "hidden": 6}),
    "transformer": (transformer, {**SMALL_TEXT, "layers": 2}),
    "transformer-shared": (transformer, {**SMALL_TEXT, "layers": 2, "repeat": 2, "tied_embeddings": True}),
    "transformer-narrow-heads": (transformer, {**SMALL_TEXT, "layers": 1, "head_dim": 2}),
    "moe-wide-heads": (moe, {**SMALL_TEXT, "layers": 1, "experts": 4, "head_dim": 6}),
    "moe": (moe, {**SMALL_TEXT, "layers": 2, "experts": 4}),
    "moe-shared": (moe, {**SMALL_TEXT, "layers": 2, "experts": 4, "dense_layers": 1, "shared_experts": 1}),
    "vit": (vit, {"dim": 16, "layers": 2, "hidden": 20}),
}
each = pytest.mark.parametrize("name", CASES)


def made(name: str) -> tuple[Any, Any, nn.Module]:
    plugin, options = CASES[name]
    config = plugins.build_config(plugin.Config, options)
    torch.manual_seed(0)
    return plugin, config, plugin.build(config).double().eval()


def inputs(plugin: Any, config: Any, batch: int = 2) -> torch.Tensor:
    shape, generator = plugin.shape(config), torch.Generator().manual_seed(1)
    if shape.input_dtype == "int64":
        return torch.randint(shape.outputs[-1], (batch, *shape.inputs), generator=generator)
    return torch.randn(batch, *shape.inputs, generator=generator, dtype=torch.float64)


@each
def test_layers_are_named_in_order_and_their_weights_counted(name: str) -> None:
    plugin, config, module = made(name)
    layers = module.get_submodule("layers")
    assert isinstance(layers, nn.ModuleDict)
    assert plugin.layer_names(config) == list(layers.keys())
    weights = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers.values()]
    assert [params for _, params in plugin.layer_costs(config)] == weights
    assert sum(flops for flops, _ in plugin.layer_costs(config)) == plugin.shape(config).flops_per_sample


@each
def test_shared_weights_are_those_that_are_shared(name: str) -> None:
    plugin, config, module = made(name)
    first: dict[int, str] = {}
    found = []
    for path, parameter in module.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), path) != path:
            found.append((first[id(parameter)], path))
    declared = plugin.shared_parameters(config) if hasattr(plugin, "shared_parameters") else []
    assert sorted(declared) == sorted(found)


@each
def test_any_cut_gives_two_stages_that_are_the_model(name: str) -> None:
    plugin, config, module = made(name)
    layers = module.get_submodule("layers")
    assert isinstance(layers, nn.ModuleDict)
    x = inputs(plugin, config)
    whole = module(x)
    for cut in range(1, len(layers)):
        stages = nn.Sequential(*list(layers.values())[:cut]), nn.Sequential(*list(layers.values())[cut:])
        assert torch.equal(stages[1](stages[0](x)), whole)


@each
@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["whole-sequence", "split-sequence"])
def test_the_tensor_plan_splits_the_model_without_changing_it(name: str, sequence_parallel: bool) -> None:
    plugin, config, module = made(name)
    plan, x = plugin.tensor_plan(config, sequence_parallel), inputs(plugin, config)
    whole = module(x)
    for degree in (1, 2):
        assert all(limit % degree == 0 for limit in plugin.tensor_limits(config).values())
        split = run_split(module, plan, x, degree)
        torch.testing.assert_close(split, whole, rtol=1e-10, atol=1e-10)


@each
def test_the_plan_names_layers_of_the_right_kind(name: str) -> None:
    plugin, config, module = made(name)
    kinds = {"column": (nn.Linear, nn.Conv2d), "row": (nn.Linear, nn.Conv2d), "vocab": (nn.Embedding,)}
    kinds |= {"norm": (nn.RMSNorm, nn.LayerNorm), "channels": (nn.GroupNorm, nn.BatchNorm2d), "gather": (nn.Module,)}
    for sequence_parallel in (False, True):
        for path, split in plugin.tensor_plan(config, sequence_parallel).items():
            assert isinstance(module.get_submodule(path), kinds[split.kind]), path
            assert sequence_parallel or "sequence" not in (split.input, split.output), path


def test_a_degree_beyond_the_limits_is_named_by_them() -> None:
    limits = transformer.tensor_limits(transformer.Config(heads=8, kv_heads=4, dim=64, hidden=96))
    assert limits == {"heads": 8, "kv_heads": 4, "hidden": 96, "vocab": 256}
    assert cnn.tensor_limits(cnn.Config(channels=(12, 20), norm="group")) == {"groups of channels.0": 4}


def test_a_last_layer_without_a_partner_stays_whole() -> None:
    plan = column_row_pairs(["a", "b", "c"])
    assert plan == {"a": Split("column", "replicate", "split"), "b": Split("row", "split", "replicate")}


def test_layers_that_share_weights_are_not_sharded_by_themselves() -> None:
    module = transformer.build(transformer.Config(tied_embeddings=True, layers=1))
    assert transformer.shard_units(module) == ["layers.block1", "layers.norm"]
    module = transformer.build(transformer.Config(layers=1, repeat=2))
    assert transformer.shard_units(module) == ["layers.embedding", "layers.block1", "layers.norm", "layers.head"]


def test_rotary_positions_start_where_they_are_told() -> None:
    rotary = transformer.build(transformer.Config(layers=1)).get_submodule("layers.block1.attention.rotary")
    x_BHLE = torch.randn(1, 2, 10, 8, dtype=torch.float64)
    whole = rotary(x_BHLE)
    rotary.start = 6  # type: ignore[assignment]
    torch.testing.assert_close(rotary(x_BHLE[:, :, 6:]), whole[:, :, 6:])


def test_a_place_sees_no_later_one() -> None:
    plugin, config, module = made("transformer")
    x_BL = inputs(plugin, config)
    changed_BL = x_BL.clone()
    changed_BL[:, 5] = (changed_BL[:, 5] + 1) % config.vocab
    difference_L = (module(x_BL) - module(changed_BL)).abs().amax((0, 2))
    assert (difference_L[:5] == 0).all()
    assert (difference_L[5:] > 0).all()
