"""Has a `torch.export` program multiply only two of every four weights of the layers that keep no more of them.

Needs torch and nothing else: it is stored beside a model in the tracking store, which serves it without this package.
A program keeps such a layer as values and their places, and puts the zeros back at every call; here that is done once,
when the program is opened, and on a GPU the weight is then given to the kernels of `torch.sparse` that skip the zeros:
cuSPARSELt where torch has it, else CUTLASS, which takes compute capability 8 alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

KEPT = torch.bfloat16
ROWS, COLUMNS = 32, 64
"""Outputs and inputs must be multiples of these for either library to take a weight in bfloat16."""
MOST_BYTES = 1.25
"""A weight kept as two of four takes 1.125 bytes a weight of the layer; one with zeros among the others 2 or more."""
_LINEAR = torch.ops.aten.linear.default
_ELSEWHERE = ""


def is_two_of_four(weight_OI: Tensor) -> bool:
    """Say whether of every four weights in a row at most two are not zero."""
    if weight_OI.dim() != 2 or weight_OI.shape[1] % 4:
        return False
    return bool(((weight_OI != 0).reshape(len(weight_OI), -1, 4).sum(-1) <= 2).all())


def is_taken(weight_OI: Tensor) -> bool:
    """Say whether a weight has its zeros where the kernels want them, and sizes that they take."""
    if not is_two_of_four(weight_OI):
        return False
    outputs, inputs = weight_OI.shape
    return outputs % ROWS == 0 and inputs % COLUMNS == 0


def kernel_of(device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """Return what makes of a dense weight one that is multiplied without its zeros; None where nothing does."""
    if device.type != "cuda":
        return None
    from torch import sparse

    able = torch.backends.cusparselt.is_available()
    kind = sparse.SparseSemiStructuredTensorCUSPARSELT if able else sparse.SparseSemiStructuredTensorCUTLASS
    made: Callable[[Tensor], Tensor] = kind.from_dense
    return made


def sparse_layers(graph: GraphModule) -> Iterator[tuple[Node, Tensor, tuple[str, ...]]]:
    """Yield products whose weight is kept as two of four: the node, the weight with its zeros, what it is made of."""
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target is not _LINEAR or node.args[1].op != "call_function":
            continue
        sources = tuple(dict.fromkeys(_sources(node.args[1])))
        if not sources or _ELSEWHERE in sources:
            continue
        stored = [_attribute(graph, name) for name in sources]
        weight = _computed(graph, node.args[1])
        small = sum(each.numel() * each.element_size() for each in stored) <= MOST_BYTES * weight.numel()
        if small and weight.dtype == KEPT and is_taken(weight):
            yield node, weight, sources


def skip_zeros(graph: GraphModule, kernel: Callable[[Tensor], Tensor] | None) -> int:
    """Change a program so that weights kept as two of four are ready to be multiplied, and return how many there are.

    `kernel` makes a weight that is multiplied without its zeros; None: with them, which is what a processor can do.
    """
    ready: dict[str, str] = {}
    found = list(sparse_layers(graph))
    for node, weight, _ in found:
        formula = _formula(node.args[1])  # a weight that several products read is made once
        if formula not in ready:
            ready[formula] = f"two_of_four_{len(ready)}"
            made = weight.contiguous()
            graph.register_buffer(ready[formula], made if kernel is None else kernel(made))
        with graph.graph.inserting_before(node):
            node.args = (node.args[0], graph.graph.get_attr(ready[formula]), *node.args[2:])
    if found:
        graph.graph.eliminate_dead_code()
        graph.recompile()
        _forget(graph, {name for _, _, sources in found for name in sources})
    return len(found)


def _forget(graph: GraphModule, names: set[str]) -> None:
    """Free stored tensors that no node reads any more."""
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for name in names - read:
        parent, _, own = name.rpartition(".")
        delattr(graph.get_submodule(parent), own)


def _attribute(graph: GraphModule, name: str) -> Tensor:
    stored: Tensor = operator.attrgetter(name)(graph)
    return stored


def _sources(node: Any) -> Iterator[str]:
    """Yield the names of the stored tensors that a node is made of; `_ELSEWHERE` for what depends on the input."""
    if node.op == "get_attr":
        yield str(node.target)
    elif node.op == "call_function":
        for each in node.all_input_nodes:
            yield from _sources(each)
    else:
        yield _ELSEWHERE


def _formula(node: Any) -> str:
    """Return in one line how a node is made of stored tensors."""
    if node.op == "get_attr":
        return str(node.target)
    arguments = torch.fx.node.map_arg((node.args, node.kwargs), _formula)
    return f"{node.target}{arguments}"


def _computed(graph: GraphModule, node: Any) -> Tensor:
    """Return what a node made of stored tensors alone is."""
    if node.op == "get_attr":
        return _attribute(graph, str(node.target))
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda each: _computed(graph, each))
    with torch.no_grad():
        made: Tensor = node.target(*args, **kwargs)
    return made
