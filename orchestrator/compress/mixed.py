"""Mixed precision: each layer in the fewest bits that it bears, until the file is as small as `quantise` is asked for.

How much a layer bears is measured, layer by layer: the loss on validation samples when it alone computes on integers.
Bits then go where each byte saved costs least (greedily, as HAWQ and its like do: Dong et al. 2019). What the runtime
has no kernel for is no choice: convolutions and layers with a bias on flat inputs know 8 bits, other linear layers and
embeddings also 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from orchestrator.compress import integers
from orchestrator.compress.fakequant import Grid, Range, take_off, wear
from orchestrator.compress.qat import observed, readers_of
from orchestrator.compress.writers.onnx import slim
from orchestrator.errors import ExportError
from orchestrator.export.score import score
from orchestrator.export.weights import plain_copy

if TYPE_CHECKING:
    from orchestrator.compress.base import Context
    from orchestrator.compress.quantise import Budget, Config

FULL = 32
_CHOICES = {"Conv": (8,), "Gemm": (8,), "MatMul": (8, 4), "Gather": (8, 4)}
_STATIC = ("Conv", "Gemm")


@dataclass
class Layer:
    """A layer as the budget sees it: `losses` is what it alone at so many bits adds to the loss, `bits` the choice.

    `nodes` of the graph read its weight: several where blocks have become one. `tensor` is its name there:
    a head and an embedding may read one, which takes its fp32 bytes once while any of them is as it was.
    """

    name: str
    nodes: tuple[str, ...]
    operator: str
    outputs: int
    inputs: int
    losses: dict[int, float] = field(default_factory=dict)
    bits: int = FULL
    tensor: str = ""

    @property
    def weights(self) -> int:
        """Numbers in its weight."""
        return self.outputs * self.inputs

    def num_bytes(self, bits: int, group: int) -> float:
        """Return what the weight takes in the file, scales and zero points included."""
        if bits == FULL:
            return 4.0 * self.weights
        grid = grid_in_file(self.operator, bits, group)
        if grid.group is None:
            return self.weights + 5.0 * (1 if grid.whole else self.outputs)
        groups = self.outputs * ceil(self.inputs / group)
        return groups * (group * bits / 8 + 4 + bits / 8)


def quantise_mixed(
    source: Path, target: Path, model: nn.Module, context: Context, config: Config, baseline_bytes: int
) -> list[dict[str, Any]]:
    """Write the graph `source` within the budget as `target`; return a row for every layer.

    Raises ExportError when even the fewest bits everywhere are too many.
    """
    if config.budget is None:
        raise ExportError("mixed precision needs a budget", hint="write `budget: {size_ratio: 5}`")
    wanted = wanted_bytes(config.budget, baseline_bytes)
    layers = _layers(source, model)
    _measure(layers, model, context, config.group, _ranges(source, layers, context, config.algorithm))
    full = _lean_bytes(source, target) - taken_bytes(layers, dict.fromkeys(_names(layers), FULL), config.group)
    allowed: float = wanted - full
    while True:
        estimate = allocate(layers, allowed, config.group)
        _write(source, target, layers, context, config)
        slim(target)  # what is handed on, and what the budget is for
        over = target.stat().st_size - wanted
        if over <= 0:
            return [_row(layer) for layer in layers]
        if estimate > allowed:
            break
        allowed = estimate - over  # what the estimate left out: nodes, and tensors that the graph no longer shares
    raise ExportError(
        f"the budget of {wanted:,} bytes is missed by {over:,}, with as few bits as the runtime has kernels for",
        hint="raise the budget, or take parts out first (`prune`)",
    )


def _lean_bytes(source: Path, scratch: Path) -> int:
    """Return what the graph takes without what no runtime reads; quantisers are given it with inferred shapes."""
    scratch.write_bytes(source.read_bytes())
    slim(scratch)
    return scratch.stat().st_size


def _row(layer: Layer) -> dict[str, Any]:
    row = asdict(layer) | {"weights": layer.weights}
    del row["tensor"]
    return row


def _names(layers: list[Layer]) -> list[str]:
    return [layer.name for layer in layers]


def taken_bytes(layers: list[Layer], bits: Mapping[str, int], group: int) -> float:
    """Return what the layers' weights take in the file with so many bits each, by name."""
    whole = {layer.tensor or layer.name: layer.num_bytes(FULL, group) for layer in layers if bits[layer.name] == FULL}
    return sum(whole.values()) + sum(
        layer.num_bytes(bits[layer.name], group) for layer in layers if bits[layer.name] != FULL
    )


def wanted_bytes(budget: Budget, baseline_bytes: int) -> int:
    """Return how large the file may be; ratios are of the fp32 weights as they were trained."""
    return int(budget.bytes if budget.bytes is not None else baseline_bytes / (budget.size_ratio or 1.0))


def allocate(layers: list[Layer], allowed_bytes: float, group: int) -> float:
    """Choose every layer's bits anew: lower them where it adds least to the loss for each byte, until all fit.

    Return the bytes they take; above what is allowed only with nothing left to lower.
    """
    for layer in layers:
        layer.bits = FULL
    while (taken := taken_bytes(layers, _bits(layers), group)) > allowed_bytes:
        moves = []
        for layer in layers:
            for bits in layer.losses:
                lowered = _lowered(layers, layer, bits)
                saved = taken - taken_bytes(layers, _bits(layers) | lowered, group)
                if saved > 0:
                    moves.append((_price(layers, lowered, saved, bits), layer.name, lowered))
        if not moves:
            break
        _, _, lowered = min(moves, key=lambda move: move[:2])
        for layer in layers:
            layer.bits = lowered.get(layer.name, layer.bits)
    return taken


def _bits(layers: list[Layer]) -> dict[str, int]:
    return {layer.name: layer.bits for layer in layers}


def _lowered(layers: list[Layer], layer: Layer, bits: int) -> dict[str, int]:
    """Return the bits by name if a layer is given so many: those that read its tensor as it was are lowered with it,
    since else nothing is saved; each to as many, or the nearest that it has kernels for.
    """
    beside = [
        each for each in layers if each.tensor and each.tensor == layer.tensor and layer.bits == each.bits == FULL
    ]
    found = {
        each.name: max((can for can in each.losses if can <= bits), default=min(each.losses)) for each in beside
    }  # fmt: skip
    return found | {layer.name: bits}


def _price(layers: list[Layer], lowered: Mapping[str, int], saved: float, bits: int) -> float:
    """Return what a byte costs; what seems to cost nothing is taken in the order of its weights' number of bits."""
    added = sum(
        max(layer.losses[lowered[layer.name]], 0.0) - max(layer.losses.get(layer.bits, 0.0), 0.0)
        for layer in layers
        if layer.name in lowered
    )
    return max(added, 1e-9 / bits) / saved


def grid_in_file(operator: str, bits: int, group: int) -> Grid:
    """Return the grid that the tool for an operator lays over its weight (see `_write`)."""
    if operator in _STATIC:
        return Grid(bits)
    return Grid(bits, whole=True) if (operator, bits) == ("Gather", 8) else Grid(bits, group)


def _layers(source: Path, model: nn.Module) -> list[Layer]:
    """Return the model's layers that the graph has as operators with kernels for fewer bits."""
    kinds = (nn.Linear, nn.Conv2d, nn.Embedding)
    named = {name: part for name, part in model.named_modules() if type(part) in kinds}
    found: list[Layer] = []
    for name, nodes in readers_of(source, named).items():
        kinds_of_node = {node.op_type for node in nodes}
        if len(kinds_of_node) == 1 and (kind := kinds_of_node.pop()) in _CHOICES:
            weight: Any = named[name].weight
            names, tensor = tuple(node.name for node in nodes), nodes[0].input[0 if kind == "Gather" else 1]
            found.append(Layer(name, names, kind, len(weight), weight[0].numel(), tensor=tensor))
    if not found:
        raise ExportError("the graph has no layer that could have fewer bits", hint="leave `budget` out")
    return found


def _ranges(source: Path, layers: list[Layer], context: Context, algorithm: str) -> dict[str, Range]:
    """Return the range that the file will have for every static layer's inputs; {} where it is that of min and max.

    Where a layer stands in several places, the first one's.
    """
    import onnx

    static = {layer.nodes[0]: layer.name for layer in layers if layer.operator in _STATIC}
    if algorithm == "minmax" or not static:
        return {}
    ends = integers.measured_ranges(source, context, algorithm)
    nodes = onnx.load(str(source), load_external_data=False).graph.node
    return {static[node.name]: Range(*ends[node.input[0]]) for node in nodes if node.name in static}


def _measure(
    layers: list[Layer], model: nn.Module, context: Context, group: int, ranges: Mapping[str, Range] | None = None
) -> None:
    """Fill every layer's losses, each measured with all others as they are. `ranges`: of inputs, else min and max."""
    twin = plain_copy(model)
    parts = {layer.name: twin.get_submodule(layer.name) for layer in layers}
    static = {layer.name: parts[layer.name] for layer in layers if layer.operator in _STATIC}
    dtype = next(twin.parameters()).dtype
    spans = {name: each.to(dtype) for name, each in (ranges or {}).items()}
    if static and not spans:
        spans = observed(twin, static, context.calibration()[0])
    before = _loss(twin, context)
    for layer in layers:
        part: Any = parts[layer.name]
        for bits in _CHOICES[layer.operator]:
            kept = part.weight.data.clone()
            wear(part, grid_in_file(layer.operator, bits, group), spans.get(layer.name))
            layer.losses[bits] = _loss(twin, context) - before
            take_off(twin)
            part.weight.data = kept


def _loss(model: nn.Module, context: Context) -> float:
    """Return the loss on the validation split, or on the training split where nothing else is held out: never test."""
    splits = context.data.splits
    split = "val" if splits.get("val") else "train"

    def forward(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            outputs: Tensor = model(inputs)
        return outputs

    return float(score(forward, context.job, context.data, split, context.dtype).metrics["loss"])


def _write(source: Path, target: Path, layers: list[Layer], context: Context, config: Config) -> None:
    """Apply one tool after the other to what it is for, each leaving the others' layers out."""
    at = source
    nodes = _operator_nodes(source)

    def others(operator: str, bits: int) -> list[str]:
        mine = {node for layer in layers if (layer.operator, layer.bits) == (operator, bits) for node in layer.nodes}
        return [name for name, kind in nodes if kind == operator and name not in mine]

    used: Mapping[tuple[str, int], Any] = {(layer.operator, layer.bits): layer for layer in layers}
    for bits in (4, 8):
        kinds = [kind for kind in ("MatMul", "Gather") if (kind, bits) in used and (kind, bits) != ("Gather", 8)]
        if kinds:
            left_out = [name for kind in kinds for name in others(kind, bits)]
            integers.to_weights(at, target, bits, config.group, kinds, left_out)
            at = target
    if ("Gather", 8) in used:
        integers.to_dynamic(at, target, ["Gather"], others("Gather", 8))
        at = target
    if ("Conv", 8) in used or ("Gemm", 8) in used:
        left_out = [
            *others("Conv", 8),
            *others("Gemm", 8),
            *(name for name, kind in nodes if kind in ("MatMul", "Gather")),
        ]
        integers.to_static(at, target, context, algorithm=config.algorithm, left_out=left_out)
        at = target
    if at == source:
        target.write_bytes(source.read_bytes())


def _operator_nodes(source: Path) -> list[tuple[str, str]]:
    import onnx

    return [(node.name, node.op_type) for node in onnx.load(str(source), load_external_data=False).graph.node]
