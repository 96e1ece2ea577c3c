"""`Layered`: a network that is an ordered dict of named layers. Imports torch; loaded by a model's `build` only."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class Layered(nn.Module):
    """Runs its layers one after the other, each tensor in, tensor out.

    So any run of neighbouring layers is a network of its own, and a parameter keeps its name (`layers.head.weight`)
    however the network is cut.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch of inputs to a batch of outputs (batch dim first)."""
        for layer in self.layers.values():
            x = layer(x)
        return x


def layers_with_parameters(module: nn.Module) -> list[str]:
    """Return the names of the top-level layers that own parameters (`layers.block1`, ...), in order."""
    layers = module.get_submodule("layers")
    return [f"layers.{name}" for name, layer in layers.named_children() if next(layer.parameters(), None) is not None]


def layers_with_own_parameters(module: nn.Module) -> list[str]:
    """Return the top-level layers whose parameters no other layer has; those in common belong to the whole model."""
    names = layers_with_parameters(module)
    owners: dict[int, int] = {}
    for name in names:
        for parameter in module.get_submodule(name).parameters():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    shared = {number for number, count in owners.items() if count > 1}
    return [name for name in names if shared.isdisjoint(map(id, module.get_submodule(name).parameters()))]
