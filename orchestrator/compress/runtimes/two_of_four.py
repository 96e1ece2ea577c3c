"""Has a `torch.export` program multiply only two of every four weights of the layers that keep no more of them.

Needs torch and nothing else: it is stored beside a model in the tracking store, which serves it without this package.
A program keeps such a layer as values and their places, and puts the zeros back at every call; here that is done once,
when the program is opened, and on a GPU the weight then becomes one of `torch.sparse`, whose products skip the zeros:
by cuSPARSELt, or by CUTLASS, which takes compute capability 8 alone.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

Pack = Callable[[Tensor], Tensor]
"""Makes of a weight with its zeros one that is multiplied with them or without them."""
KEPT = torch.bfloat16
ROWS, COLUMNS = 32, 64
"""Outputs and inputs must be multiples of these for either library to take a weight in bfloat16."""
LEAST_BYTES, MOST_BYTES = 1.0, 1.25
"""A weight kept as two of four takes 1.125 bytes a weight of the layer; with zeros among the others it takes 2 or more,
and of fewer bytes something else was blown up to it."""
_LINEAR = torch.ops.aten.linear.default


class Layer(NamedTuple):
    """A product whose weight is kept as two of four."""

    node: Node
    formula: str
    """How the weight is made of stored tensors; the same for all products that read it."""
    sources: tuple[str, ...]
    shape: tuple[int, int]


def is_two_of_four(weight_OI: Tensor) -> bool:
    """Say whether of every four weights in a row at most two are not zero."""
    if weight_OI.dim() != 2 or weight_OI.shape[1] % 4:
        return False
    return bool(((weight_OI != 0).reshape(len(weight_OI), -1, 4).sum(-1) <= 2).all())


def is_taken(weight_OI: Tensor) -> bool:
    """Say whether a weight has its zeros where the libraries want them, and sizes that they take."""
    if not is_two_of_four(weight_OI):
        return False
    outputs, inputs = weight_OI.shape
    return outputs % ROWS == 0 and inputs % COLUMNS == 0


def with_zeros(weight_OI: Tensor) -> Tensor:
    """Return the weight as it is: every zero is multiplied, which is what a processor can do."""
    return weight_OI


def packs(device: torch.device) -> dict[str, Pack]:
    """Return what may make weights that are multiplied without their zeros on a device, by name, the faster first."""
    if device.type != "cuda":
        return {}
    from torch import sparse

    found: dict[str, Pack] = {}
    if torch.backends.cusparselt.is_available():
        found["cuSPARSELt"] = sparse.SparseSemiStructuredTensorCUSPARSELT.from_dense
    return found | {"CUTLASS": sparse.SparseSemiStructuredTensorCUTLASS.from_dense}


@cache
def trials(device: torch.device) -> dict[str, str]:
    """Return for each of `packs` why it does not multiply rightly on a device; empty where it does."""
    return {name: _complaint(pack, device) for name, pack in packs(device).items()}


def pack_of(device: torch.device) -> Pack:
    """Return the first of `packs` that multiplies rightly on a device; `with_zeros` where none does."""
    tried = trials(device)
    return next((pack for name, pack in packs(device).items() if not tried[name]), with_zeros)


def sparse_layers(graph: GraphModule) -> Iterator[Layer]:
    """Yield the products of a program whose weight is kept as two of four. No weight is held beyond its turn."""
    known: dict[str, tuple[int, int] | None] = {}
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target is not _LINEAR or node.args[1].op != "call_function":
            continue
        sources = _sources(node.args[1])
        if not sources:
            continue
        formula = _formula(node.args[1])
        if formula not in known:
            known[formula] = _kept_shape(graph, node.args[1], sources)
        shape = known[formula]
        if shape is not None:
            yield Layer(node, formula, sources, shape)


def skip_zeros(graph: GraphModule, device: torch.device, pack: Pack | None = None) -> int:
    """Change a program so that weights kept as two of four are ready to be multiplied, and return how many layers are.

    `pack` makes them ready; None: what skips their zeros on the device. What they were made of is freed one by one.
    """
    ready: dict[str, str] = {}
    reads = Counter(str(node.target) for node in graph.graph.nodes if node.op == "get_attr")
    count = 0
    for layer in sparse_layers(graph):
        node: Any = layer.node
        before = node.args[1]
        if layer.formula not in ready:
            pack = pack or pack_of(device)
            ready[layer.formula] = f"two_of_four_{len(ready)}"
            graph.register_buffer(ready[layer.formula], pack(_computed(graph, before).contiguous()))
        with graph.graph.inserting_before(node):
            node.args = (node.args[0], graph.graph.get_attr(ready[layer.formula]), *node.args[2:])
        _erase(graph, before, reads)
        count += 1
    if count:
        graph.recompile()
    return count


def _complaint(pack: Pack, device: torch.device) -> str:
    """Try a product of small whole numbers, which is exact in bfloat16; no two rows or groups of weights are alike."""
    places = torch.arange(ROWS * COLUMNS // 4).reshape(ROWS, -1)
    weight_OG4 = torch.zeros(ROWS, COLUMNS // 4, 4)
    for first, (one, other) in enumerate([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]):
        chosen = places % 6 == first
        weight_OG4[..., one][chosen], weight_OG4[..., other][chosen] = (
            (places % 5 - 2.0)[chosen],
            (places % 7 - 3.0)[chosen],
        )
    weight_OI, rows_RI = weight_OG4.reshape(ROWS, COLUMNS), (torch.arange(3 * COLUMNS).reshape(3, -1) % 3 - 1.0)
    wanted = rows_RI @ weight_OI.t()
    try:
        with torch.inference_mode():
            packed = pack(weight_OI.to(device, KEPT))
            found = torch.nn.functional.linear(rows_RI.to(device, KEPT), packed).float().cpu()
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        return str(error).partition("\n")[0] or type(error).__name__
    return "" if torch.equal(found, wanted) else "a product of it is wrong"


def _kept_shape(graph: GraphModule, node: Any, sources: tuple[str, ...]) -> tuple[int, int] | None:
    """Return the sizes of a weight that is kept as two of four; None for any other."""
    weight = _computed(graph, node)
    stored = [_attribute(graph, name) for name in sources]
    num_bytes = sum(each.numel() * each.element_size() for each in stored)
    if not LEAST_BYTES * weight.numel() <= num_bytes <= MOST_BYTES * weight.numel():
        return None
    if weight.dtype != KEPT or not is_taken(weight):
        return None
    return len(weight), weight.shape[1]


def _erase(graph: GraphModule, node: Any, reads: Counter[str]) -> None:
    """Take out a node that nothing reads, what it alone was made of, and the stored tensors that are then unread."""
    if node.users or node.op == "placeholder":
        return
    before = list(node.all_input_nodes)
    graph.graph.erase_node(node)
    if node.op == "get_attr":
        name = str(node.target)
        reads[name] -= 1
        if not reads[name]:
            parent, _, own = name.rpartition(".")
            delattr(graph.get_submodule(parent), own)
    for each in before:
        _erase(graph, each, reads)


def _attribute(graph: GraphModule, name: str) -> Tensor:
    stored: Tensor = operator.attrgetter(name)(graph)
    return stored


def _sources(node: Any) -> tuple[str, ...]:
    """Return the names of the stored tensors that a node is made of; () when anything else goes into it."""
    found: dict[str, None] = {}
    seen, open_ = {node}, [node]
    while open_:
        each = open_.pop()
        if each.op == "get_attr":
            found[str(each.target)] = None
        elif each.op != "call_function":
            return ()
        new = [other for other in each.all_input_nodes if other not in seen]
        seen.update(new)
        open_ += new
    return tuple(sorted(found))


def _formula(node: Any) -> str:
    """Return in one line how a node is made of stored tensors."""
    known: dict[Any, str] = {}

    def told(each: Any) -> str:
        if each not in known:
            arguments = torch.fx.node.map_arg((each.args, each.kwargs), told)
            known[each] = str(each.target) if each.op == "get_attr" else f"{each.target}{arguments}"
        return known[each]

    return told(node)


def _computed(graph: GraphModule, node: Any) -> Tensor:
    """Return what a node made of stored tensors alone is."""
    known: dict[Any, Any] = {}

    def value(each: Any) -> Any:
        if each not in known:
            if each.op == "get_attr":
                known[each] = _attribute(graph, str(each.target))
            else:
                args, kwargs = torch.fx.node.map_arg((each.args, each.kwargs), value)
                known[each] = each.target(*args, **kwargs)
        return known[each]

    with torch.no_grad():
        weight: Tensor = value(node)
    return weight
