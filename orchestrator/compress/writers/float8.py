"""Format `program` with linear layers and embeddings in float8, written by `quantise` with scheme `float8`.

Layers are found in the traced graph, not among modules, so that a tied head and the experts of a mixture are found.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from orchestrator.compress.base import ARTIFACT, Change, Context, State
from orchestrator.compress.float8 import Lookup, Product, Rows, is_worth, round_rows
from orchestrator.compress.writers.program import lean
from orchestrator.errors import ExportError
from orchestrator.export.program import PROGRAM_FILE, save_program
from orchestrator.export.trace import traces

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

    from orchestrator.compress.quantise import Config

_ATEN = torch.ops.aten
_TURNED = (_ATEN.numpy_T.default, _ATEN.t.default, _ATEN.transpose.int, _ATEN.permute.default, _ATEN.select.int)
"""What may lie between a stored weight and the product that reads it."""


def quantise(state: State, context: Context, config: Config) -> Change:
    """Return the program of the model in float8. Raises ExportError."""
    program, taken = to_float8(state.model, context)
    save_program(program, context.folder / PROGRAM_FILE)
    files = (PROGRAM_FILE,)
    after = State(ARTIFACT, state.model, folder=context.folder, files=files, format="program", scheme=config.scheme)
    return Change(after, {"scheme": config.scheme, "float8_layers": taken})


def to_float8(model: Any, context: Context) -> tuple[ExportedProgram, int]:
    """Return a model as a lean program in float8, and how many layers are. Raises ExportError when none can be."""
    inputs, _ = context.calibration()
    graph = traces.trace(model, inputs[:2]).module()
    taken = _Rewriting(graph).run()
    if not taken:
        raise ExportError(
            "no linear layer is large enough for float8: filled up to multiples of 16, with its scales, it would take "
            "more than half of its fp32 bytes",
            hint="write int8-static as onnx",
        )
    return lean(traces.trace(graph, inputs[:2])), taken


class _Rewriting:
    """Puts layers in float8 in place of those of a traced graph."""

    def __init__(self, graph: GraphModule) -> None:
        self._graph = graph
        self._weights: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        self._rows: dict[Node, tuple[Node, Node]] = {}
        self._count = 0

    def run(self) -> int:
        """Change the graph in place; return how many layers were put in place of others."""
        changed = sum(self._replace(node) for node in list(self._graph.graph.nodes) if node.op == "call_function")
        self._graph.graph.eliminate_dead_code()
        self._graph.recompile()
        return changed

    def _replace(self, node: Node) -> bool:
        """Replace one node where it is a layer large enough; say whether it was."""
        if node.target is _ATEN.linear.default:
            weight, given = self._value(node.args[1]), node.args[2] if len(node.args) > 2 else None
            bias = self._value(given)
            if given is not None and bias is None:  # it is computed: `Product` only adds one that is stored
                return False
            return self._product(node, weight, bias)
        if node.target in (_ATEN.matmul.default, _ATEN.mm.default):
            weight = self._value(node.args[1])
            return weight is not None and weight.dim() == 2 and self._product(node, weight.t(), None)
        return node.target is _ATEN.embedding.default and self._lookup(node, self._value(node.args[0]))

    def _product(self, node: Node, weight: Tensor | None, bias: Tensor | None) -> bool:
        x: Any = node.args[0]
        if weight is None or not is_worth(*weight.shape) or x.meta["val"].dtype != torch.float32:
            return False
        product = Product(*self._rounded(weight), bias, len(weight))
        with self._graph.graph.inserting_before(node):
            if x not in self._rows:
                made = self._call(Rows(weight.shape[1]), x)
                parts = [self._graph.graph.call_function(operator.getitem, (made, at)) for at in (0, 1)]
                self._rows[x] = parts[0], parts[1]
            node.replace_all_uses_with(self._call(product, *self._rows[x], x))
        return True

    def _lookup(self, node: Node, table: Tensor | None) -> bool:
        if table is None or not is_worth(*table.shape):
            return False
        with self._graph.graph.inserting_before(node):
            node.replace_all_uses_with(self._call(Lookup(*self._rounded(table), table.shape[1]), node.args[1]))
        return True

    def _call(self, part: torch.nn.Module, *arguments: Any) -> Node:
        name, self._count = f"float8_{self._count}", self._count + 1
        self._graph.add_submodule(name, part)
        return self._graph.graph.call_module(name, arguments)

    def _rounded(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return a weight in float8 and its scales; one that several layers read is kept once."""
        key = (weight.data_ptr(), tuple(weight.shape), weight.stride())
        if key not in self._weights:
            self._weights[key] = round_rows(weight.detach())
        return self._weights[key]

    def _value(self, node: Any) -> Tensor | None:
        """Return the stored tensor that a node is, turned as the graph turns it; None where it is computed."""
        if not isinstance(node, torch.fx.Node):
            return None
        if node.op == "get_attr":
            found: Any = operator.attrgetter(str(node.target))(self._graph)
            return found if isinstance(found, Tensor) else None
        if node.op == "call_function" and node.target in _TURNED:
            value = self._value(node.args[0])
            turned: Tensor | None = None if value is None else node.target(value, *node.args[1:])
            return turned
        return None
