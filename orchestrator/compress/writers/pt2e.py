"""A model as a program on integers, by torchao's PT2E: observed on calibration samples, converted, traced again.

Used by the formats whose tools take such programs: `aoti` and `executorch`, each with a quantiser of its own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from orchestrator.compress.writers.program import lean
from orchestrator.errors import ExportError, NotAbleError

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from orchestrator.compress.base import Context

_ROWS = 32


def to_integers(model: nn.Module, context: Context, quantiser: Any, extra: str) -> ExportedProgram:
    """Return the model as a program of `quantize` and `dequantize` around its layers, weights in int8.

    Raises ExportError when torchao cannot, NotAbleError when it is not installed.
    """
    import torch

    from orchestrator.export.trace import first_lines, traces

    tools = tools_of("torchao.quantization.pt2e.quantize_pt2e", extra)
    inputs, _ = context.calibration()
    graph = traces.trace(folded(model, context), inputs[:2]).module()
    name_layers(graph)
    try:
        with torch.no_grad():
            observed = tools.prepare_pt2e(graph, quantiser)
            for at in range(0, len(inputs), _ROWS):
                observed(inputs[at : at + _ROWS])
            converted = tools.convert_pt2e(observed)
    except Exception as error:  # its passes raise whatever a graph they do not know leads them to
        raise ExportError(f"torchao cannot make integers of this graph: {first_lines(error)}") from error
    return lean(traces.trace(converted, inputs[:2]))


def folded(model: nn.Module, context: Context) -> nn.Module:
    """Return a copy of a model, its batch norms merged into the convolutions before them."""
    from torch import nn

    from orchestrator.compress.fold import fold_norms
    from orchestrator.export.weights import plain_copy

    twin = plain_copy(model)
    if any(isinstance(part, nn.BatchNorm2d) for part in twin.modules()):
        fold_norms(twin, context.calibration()[0][:2])
    return twin


def name_layers(graph: Any) -> None:
    """Say of every operator which layer it is, each by itself, in place.

    Quantisers look layers up by module; one module that is called twice (an activation) would count as one layer of two
    outputs, which they refuse, and a sum of residuals, which is none, would stay in floats.
    """
    import torch
    from torch import nn

    aten = torch.ops.aten
    known: dict[Any, Any] = {
        aten.conv2d.default: nn.Conv2d,
        aten.linear.default: nn.Linear,
        aten.relu.default: nn.ReLU,
        aten.add.Tensor: operator.add,
    }
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        stack = dict(node.meta.get("nn_module_stack") or {})
        if node.target in known:
            node.meta["source_fn_stack"] = [(node.name, known[node.target])]
        elif stack:
            last = list(stack)[-1]
            stack[last] = (f"{stack[last][0]}@{node.name}", stack[last][1])
            node.meta["nn_module_stack"] = stack


def tools_of(name: str, extra: str) -> Any:
    """Return a module of an extra. Raises NotAbleError when it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise NotAbleError(
            f"{name} cannot be imported: {error}", hint=f'pip install "orchestrator[{extra}]"'
        ) from error


def without(base: type, refused: Callable[[Any], bool]) -> type:
    """Return a quantiser class that leaves the operators in floats of which `refused(node)` says so."""

    class Leaving(base):  # type: ignore[misc]
        def annotate(self, model: Any) -> Any:
            """Mark what shall be integers."""
            super().annotate(model)
            for node in model.graph.nodes:
                if refused(node):
                    node.meta.pop("quantization_annotation", None)
            return model

    return Leaving
