"""Which layers a step works on: linear layers and convolutions by path, without what the user keeps. Imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.errors import ExportError

Layer = nn.Linear | nn.Conv2d


def weighted_layers(model: nn.Module, keep: tuple[str, ...] = ()) -> dict[str, Layer]:
    """Return linear layers and 2-d convolutions by path, in order, each weight once.

    Those that share their weight with anything (a tied head) are left out: what happens to one would happen to both.
    Raises ExportError when a word of `keep` is in no path, or nothing is left.
    """
    uses: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    all_layers = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    require_known(model, keep)
    found = {
        name: part
        for name, part in all_layers.items()
        if uses[id(part.weight)] == 1 and not any(word in name for word in keep)
    }
    if not found:
        raise ExportError("no linear layer or convolution is left to work on", hint="shorten the step's `keep`")
    return found


def require_known(model: nn.Module, keep: Iterable[str], parts: Iterable[str] = ()) -> None:
    """Raise ExportError when a word of `keep` is in no layer's path nor in a name of `parts`: it would keep nothing."""
    paths = [*parts, *(name for name, _ in model.named_modules(remove_duplicate=False))]
    for word in keep:
        if not any(word in path for path in paths):
            names = [name for name, part in model.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
            raise ExportError(f"keep names '{word}', which is in no layer's path", hint=f"paths: {_some(names)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")


def input_rows(layer: Layer, inputs: Tensor) -> Tensor:
    """Return what a layer multiplies its weight with, as rows [N, inputs per output].

    Raises ExportError for grouped convolutions, whose outputs have different inputs.
    """
    if isinstance(layer, nn.Linear):
        return inputs.flatten(0, -2)
    if layer.groups > 1 or isinstance(layer.padding, str):
        raise ExportError("a grouped convolution has no inputs in common", hint="name it in the step's `keep`")
    patches = functional.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return patches.transpose(1, 2).flatten(0, 1)


def input_moments(model: nn.Module, layers: Mapping[str, Layer], inputs_B: Tensor, rows: int = 64) -> dict[str, Tensor]:
    """Return for each layer the mean of x x^T over its inputs x, float64 [I, I], over the calibration samples."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def look(name: str, layer: Layer, given: Tensor) -> None:
        x_NI = input_rows(layer, given.detach()).double()
        sums[name] = sums.get(name, 0) + x_NI.T @ x_NI
        counts[name] = counts.get(name, 0) + len(x_NI)

    with watched(layers, look), torch.no_grad():
        for at in range(0, len(inputs_B), rows):
            model(inputs_B[at : at + rows])
    return {name: total / counts[name] for name, total in sums.items()}


@contextmanager
def watched(layers: Mapping[str, Layer], look: object) -> Iterator[None]:
    """Call `look(name, layer, inputs)` whenever one of the layers is run."""

    def hook(name: str) -> object:
        return lambda layer, given: look(name, layer, given[0])  # type: ignore[operator]

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
