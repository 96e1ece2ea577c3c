"""A model as a program with its linear layers and embeddings in float8. Called by `writers.program`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.compress.float8 import Lookup, Product, Rows, is_worth, round_rows
from orchestrator.compress.writers.program import lean
from orchestrator.compress.writers.rewriting import Rewriting, place_of
from orchestrator.errors import ExportError
from orchestrator.export.trace import traces

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

    from orchestrator.compress.base import Context


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


class _Rewriting(Rewriting):
    """Puts layers in float8 in place of those large enough."""

    prefix = "float8"

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self._weights: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        self._rows: dict[Node, tuple[Node, Node]] = {}

    def product(self, x: Node, weight_OI: Tensor, bias_O: Tensor | None) -> Node | None:
        """Return the product in float8, its input rounded once for all layers that read it."""
        if not is_worth(*weight_OI.shape):
            return None
        if x not in self._rows:
            made = self.call(Rows(weight_OI.shape[1]), x)
            self._rows[x] = self.item(made, 0), self.item(made, 1)
        return self.call(Product(*self._rounded(weight_OI), bias_O, len(weight_OI)), *self._rows[x], x)

    def lookup(self, numbers: Any, table: Tensor) -> Node | None:
        """Return the rows of a table in float8."""
        return self.call(Lookup(*self._rounded(table), table.shape[1]), numbers) if is_worth(*table.shape) else None

    def _rounded(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return a weight in float8 and its scales; one that several layers read is kept once."""
        key = place_of(weight)
        if key not in self._weights:
            self._weights[key] = round_rows(weight.detach())
        return self._weights[key]
