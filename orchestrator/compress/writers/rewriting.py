"""Puts other parts in place of the linear layers and embeddings of a traced graph. Called by `float8` and `sparse`.

Layers are found in the graph, not among modules, so that a tied head and the experts of a mixture are found.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

ATEN = torch.ops.aten
_TURNED = (ATEN.numpy_T.default, ATEN.t.default, ATEN.transpose.int, ATEN.permute.default, ATEN.select.int)
"""What may lie between a stored weight and the product that reads it."""


class Rewriting:
    """A walk over a graph. A subclass says what takes the place of a product, and of an embedding, if anything does."""

    prefix = "part"

    def __init__(self, graph: GraphModule) -> None:
        self._graph = graph
        self._count = 0

    def run(self) -> int:
        """Change the graph in place; return how many layers were put in place of others."""
        changed = sum(self._replace(node) for node in list(self._graph.graph.nodes) if node.op == "call_function")
        self._graph.graph.eliminate_dead_code()
        self._graph.recompile()
        return changed

    def product(self, x: Node, weight_OI: Tensor, bias_O: Tensor | None) -> Node | None:
        """Return the node that takes a linear layer's place, None where it stays. New nodes go before the old one."""
        raise NotImplementedError

    def lookup(self, numbers: Any, table: Tensor) -> Node | None:
        """Return the node that takes an embedding's place, None where it stays."""
        return None

    def call(self, part: torch.nn.Module, *arguments: Any) -> Node:
        """Return a node that calls a part, which the graph then owns."""
        name, self._count = f"{self.prefix}_{self._count}", self._count + 1
        self._graph.add_submodule(name, part)
        return self._graph.graph.call_module(name, arguments)

    def item(self, node: Node, at: int) -> Node:
        """Return a node that is one of the several outputs of another."""
        return self._graph.graph.call_function(operator.getitem, (node, at))

    def _replace(self, node: Node) -> bool:
        """Replace one node where something takes its place; say whether it did."""
        with self._graph.graph.inserting_before(node):
            other = self._other(node)
        if other is None:
            return False
        if "val" in node.meta:
            other.meta["val"] = node.meta["val"]  # same sizes and type: what reads it next is judged by them
        node.replace_all_uses_with(other)
        return True

    def _other(self, node: Node) -> Node | None:
        x: Any = node.args[0] if node.args else None
        if node.target is ATEN.embedding.default:
            table = self._value(x)
            return None if table is None else self.lookup(node.args[1], table)
        if node.target not in (ATEN.linear.default, ATEN.matmul.default, ATEN.mm.default):
            return None
        weight, given = self._value(node.args[1]), None
        if node.target is ATEN.linear.default:
            given = node.args[2] if len(node.args) > 2 else None
        elif weight is not None:
            weight = weight.t() if weight.dim() == 2 else None
        bias = self._value(given)
        # A bias that is computed is none that could be stored beside the weight.
        if weight is None or (given is not None and bias is None):
            return None
        if x.meta["val"].dtype != torch.float32 or x.meta["val"].dim() < 2:
            return None
        return self.product(x, weight, bias)

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


def place_of(tensor: Tensor) -> tuple[Any, ...]:
    """Return what tells tensors apart that lie elsewhere or are laid out otherwise: one read twice is kept once."""
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
