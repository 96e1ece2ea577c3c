"""Quantisation-aware training: a model learns on the grids of the file it will become. Called by `quantise`.

Weights come out on their grids, so the quantiser of the file finds them there; ranges of activations that were trained
are handed to it by the names that their tensors have in the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from orchestrator.compress.fakequant import Grid, Momentary, Range, take_off, wear
from orchestrator.compress.finetune import lessons_of, training_layout
from orchestrator.compress.fold import fold_norms
from orchestrator.compress.recover import Recovered, recover
from orchestrator.errors import ExportError
from orchestrator.export.weights import plain_copy

if TYPE_CHECKING:
    from orchestrator.compress.base import Context, State
    from orchestrator.compress.quantise import Config, Qat

_SAME_RANGE = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
"""Operators that hand integers on as they are: what comes out of them has the range of what went in."""


@dataclass(frozen=True)
class Learnt:
    """The model with its weights on their grids, the trained ranges by layer, and how the training went."""

    model: nn.Module
    ranges: Mapping[str, Range]
    done: Recovered
    ranks: int


def grid_of(config: Config) -> Grid:
    """Return the grid that a scheme lays over the weights of linear layers and convolutions."""
    if config.scheme in ("int8-static", "int8-dynamic"):
        return Grid(8)
    return Grid(4 if config.scheme == "int4-weight" else 8, config.group)


def learn(state: State, context: Context, config: Config, asked: Qat) -> Learnt:
    """Train the model of a state on the grids of `config`. Raises what `recover` raises."""
    model = plain_copy(state.model)
    if config.scheme == "int8-static":
        fold_norms(model, context.calibration()[0][:2])  # as the quantiser will: scales are of the merged weights
    put_on_grids(model, config, context)
    layout = training_layout(asked, context.layout)
    done = recover(
        model,
        context,
        epochs=asked.epochs,
        steps=asked.steps,
        lr=asked.lr,
        batch_size=asked.batch_size,
        lessons=lessons_of(asked.distill, context),
        masks=state.masks,
        layout=layout,
    )
    ranges = take_off(model)
    return Learnt(plain_copy(model), ranges, done, layout.world_size)


def put_on_grids(model: nn.Module, config: Config, context: Context) -> None:
    """Let every layer that the file will hold in integers compute on their grids, in place."""
    kinds = (nn.Linear, nn.Conv2d, *((nn.Embedding,) if config.scheme == "int4-weight" else ()))
    layers = {name: part for name, part in model.named_modules() if type(part) in kinds}
    if not layers:
        raise ExportError("no linear layer or convolution is there to be trained on a grid", hint="leave `qat` out")
    inputs: Mapping[str, nn.Module] = {}
    if config.scheme == "int8-static":
        inputs = observed(model, layers, context.calibration()[0])
    elif config.scheme == "int8-dynamic":
        inputs = {name: Momentary() for name in layers}
    for name, layer in layers.items():
        wear(layer, grid_of(config), inputs.get(name))


def observed(model: nn.Module, layers: Mapping[str, nn.Module], inputs_B: Tensor, rows: int = 64) -> dict[str, Range]:
    """Return the range of every layer's inputs over the calibration samples; layers that read one tensor share it."""
    first: dict[str, str] = {}
    ends: dict[str, tuple[float, float]] = {}
    seen: dict[int, tuple[str, Tensor]] = {}

    def look(name: str) -> Any:
        def hook(_: nn.Module, given: Any) -> None:
            owner, _tensor = seen.setdefault(id(given[0]), (name, given[0]))  # held, so that its id stays its own
            first.setdefault(name, owner)
            low, high = (float(end) for end in given[0].aminmax())
            known = ends.get(owner, (low, high))
            ends[owner] = min(low, known[0]), max(high, known[1])

        return hook

    handles = [layer.register_forward_pre_hook(look(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for at in range(0, len(inputs_B), rows):
                seen.clear()
                model(inputs_B[at : at + rows])
    finally:
        for handle in handles:
            handle.remove()
    dtype = next(model.parameters()).dtype
    ranges = {owner: Range(*found).to(dtype) for owner, found in ends.items()}
    return {name: ranges[owner] for name, owner in first.items() if owner in ranges}


def overrides(path: Path, learnt: Learnt) -> dict[str, list[dict[str, Any]]]:
    """Return trained scales by tensor of a prepared graph, as ONNX Runtime's quantiser takes them.

    Raises ExportError when a layer is not found in the graph by its weights.
    """
    import numpy as np
    import onnx
    from onnxruntime.quantization import QuantType

    readers = readers_of(path, {name: learnt.model.get_submodule(name) for name in learnt.ranges})
    makers = {output: node for node in onnx.load(str(path)).graph.node for output in node.output}
    found: dict[str, list[dict[str, Any]]] = {}
    for name, span in learnt.ranges.items():
        if name not in readers:
            raise ExportError(f"layer '{name}' is not found in the exported graph by its weights", hint="leave qat out")
        scale, zero = span.scale_and_zero()
        entry = {
            "quant_type": QuantType.QUInt8,
            "scale": np.array(scale, dtype=np.float32),
            "zero_point": np.array(zero, dtype=np.uint8),
        }
        for node in readers[name]:
            for tensor in _handed_on(node.input[0], makers):
                found.setdefault(tensor, [entry])
    return found


def readers_of(path: Path, layers: Mapping[str, nn.Module]) -> dict[str, list[Any]]:
    """Return the nodes of a graph that read each layer's weight: several where the layer stands in several places.

    Layers whose weight none reads as it is are left out.
    """
    import onnx

    graph = onnx.load(str(path)).graph
    stored = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input[:2]:
            if name in stored:
                readers.setdefault(name, []).append(node)
    found: dict[str, list[Any]] = {}
    for name, layer in layers.items():
        weight: Any = layer.weight
        table = isinstance(layer, nn.Embedding)  # a tied head has the same numbers
        mine = [nodes for each, nodes in readers.items() if _same(stored[each], weight.detach().numpy())]
        fitting = ([node for node in nodes if (node.op_type == "Gather") == table] for nodes in mine)
        nodes = next((nodes for nodes in fitting if nodes), None)
        if nodes is not None:
            found[name] = nodes
    return found


def _handed_on(tensor: str, makers: Mapping[str, Any]) -> list[str]:
    """Return a tensor and those before it that it has its numbers from: which of them is rounded, the tool chooses."""
    chain = [tensor]
    while chain[-1] in makers and makers[chain[-1]].op_type in _SAME_RANGE:
        chain.append(makers[chain[-1]].input[0])
    return chain


def _same(stored: Any, weight: Any) -> bool:
    """Say whether an initializer is a layer's weight, as it is or transposed (bits may differ by a rounding)."""
    import numpy as np

    turned = weight.T if weight.ndim == 2 else weight
    return any(stored.shape == each.shape and np.allclose(stored, each, rtol=1e-6) for each in (weight, turned))
