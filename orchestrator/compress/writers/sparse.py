"""A model as a program whose pruned linear layers keep two of every four weights. Called by `writers.program`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.compress.runtimes.two_of_four import COLUMNS, ROWS, is_taken
from orchestrator.compress.sparse import Halves, Product, keep_two
from orchestrator.compress.writers.program import lean
from orchestrator.compress.writers.rewriting import Rewriting, place_of
from orchestrator.errors import ExportError
from orchestrator.export.trace import traces

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

    from orchestrator.compress.base import Context


def to_sparse(model: Any, context: Context) -> tuple[ExportedProgram, int]:
    """Return a model as a lean program that keeps two of four, and how many layers do. Raises ExportError at none."""
    inputs, _ = context.calibration()
    graph = traces.trace(model, inputs[:2]).module()
    taken = _Rewriting(graph).run()
    if not taken:
        raise ExportError(
            "no linear layer has zeros in two of every four weights and sizes that the kernels take (outputs a "
            f"multiple of {ROWS}, inputs of {COLUMNS})",
            hint="put `prune` with kind: 2:4 before export, and choose such widths",
        )
    return lean(traces.trace(graph, inputs[:2])), taken


class _Rewriting(Rewriting):
    """Puts layers that keep two of four in place of those that have no more."""

    prefix = "sparse"

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self._weights: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        self._rows: dict[Node, Node] = {}

    def product(self, x: Node, weight_OI: Tensor, bias_O: Tensor | None) -> Node | None:
        """Return the product with what is kept, its input rounded once for all layers that read it."""
        if not is_taken(weight_OI):
            return None
        if x not in self._rows:
            self._rows[x] = self.call(Halves(), x)
        key = place_of(weight_OI)
        if key not in self._weights:
            self._weights[key] = keep_two(weight_OI)
        return self.call(Product(*self._weights[key], bias_O), self._rows[x], x)
