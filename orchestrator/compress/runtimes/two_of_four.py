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
    made: int
    """Names how the weight is made of stored tensors; the same for all products that read it."""
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
    candidates = [node for node in graph.graph.nodes if _may_be_kept(node)]
    numbers = _numbers(graph) if candidates else {}
    known: dict[int, tuple[int, int] | None] = {}
    for node in candidates:
        weight: Any = node.args[1]
        ancestors = _ancestors(weight)
        sources = tuple(sorted({str(each.target) for each in ancestors if each.op == "get_attr"}))
        if not sources:
            continue
        made = numbers[weight]
        if made not in known:
            known[made] = _kept_shape(graph, ancestors, sources)
        shape = known[made]
        if shape is not None:
            yield Layer(node, made, sources, shape)


def skip_zeros(graph: GraphModule, device: torch.device, pack: Pack | None = None) -> int:
    """Change a program so that weights kept as two of four are ready to be multiplied, and return how many layers are.

    `pack` makes them ready; None: what skips their zeros on the device. What a weight was made of leaves the program
    before the next is made, so memory is freed one by one where nothing else holds it.
    """
    ready: dict[int, str] = {}
    reads = Counter(str(node.target) for node in graph.graph.nodes if node.op == "get_attr")
    count = 0
    for layer in sparse_layers(graph):
        node: Any = layer.node
        before = node.args[1]
        if layer.made not in ready:
            pack = pack or pack_of(device)
            ready[layer.made] = f"two_of_four_{len(ready)}"
            graph.register_buffer(ready[layer.made], pack(_computed(graph, _ancestors(before)).contiguous()))
        with graph.graph.inserting_before(node):
            node.args = (node.args[0], graph.graph.get_attr(ready[layer.made]), *node.args[2:])
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


def _may_be_kept(node: Any) -> bool:
    """Say whether a node is a product whose weight is computed, and by type and sizes might be kept as two of four."""
    if node.op != "call_function" or node.target is not _LINEAR or node.args[1].op != "call_function":
        return False
    weight = node.args[1].meta.get("val")
    if weight is None or weight.dtype != KEPT or weight.dim() != 2:
        return False
    return all(
        isinstance(size, int) and size % part == 0 for size, part in zip(weight.shape, (ROWS, COLUMNS), strict=True)
    )


def _kept_shape(graph: GraphModule, ancestors: list[Any], sources: tuple[str, ...]) -> tuple[int, int] | None:
    """Return the sizes of a weight that is kept as two of four; None for any other."""
    weight = _computed(graph, ancestors)
    stored = [_attribute(graph, name) for name in sources]
    num_bytes = sum(each.numel() * each.element_size() for each in stored)
    if not LEAST_BYTES * weight.numel() <= num_bytes <= MOST_BYTES * weight.numel():
        return None
    if weight.dtype != KEPT or not is_taken(weight):
        return None
    return len(weight), weight.shape[1]


def _erase(graph: GraphModule, node: Any, reads: Counter[str]) -> None:
    """Take out a node that nothing reads, what it alone was made of, and the stored tensors that are then unread."""
    open_, erased = [node], set[Any]()
    while open_:
        each = open_.pop()
        if each in erased or each.users or each.op == "placeholder":
            continue
        open_ += each.all_input_nodes
        graph.graph.erase_node(each)
        erased.add(each)
        if each.op != "get_attr":
            continue
        name = str(each.target)
        reads[name] -= 1
        if not reads[name]:
            parent, _, own = name.rpartition(".")
            delattr(graph.get_submodule(parent), own)


def _attribute(graph: GraphModule, name: str) -> Tensor:
    stored: Tensor = operator.attrgetter(name)(graph)
    return stored


def _ancestors(node: Any) -> list[Any]:
    """Return a node and all it is made of, stored tensors first; [] when the input goes into it, or anything is changed
    on the way: what is computed here must be what the program would compute at every call."""
    seen, open_ = {node}, [node]
    while open_:
        each = open_.pop()
        if each.op == "call_function":
            schema = getattr(each.target, "_schema", None)
            if schema is None or schema.is_mutable:
                return []
        elif each.op != "get_attr":
            return []
        new = [other for other in each.all_input_nodes if other not in seen]
        seen.update(new)
        open_ += new
    return [each for each in node.graph.nodes if each in seen]


def _numbers(graph: GraphModule) -> dict[Any, int]:
    """Return a number for every node; nodes that compute the same of the same have the same."""
    known: dict[Any, int] = {}
    found: dict[Any, int] = {}
    for node in graph.graph.nodes:
        if node.op == "call_function":
            arguments = torch.fx.node.map_arg((node.args, node.kwargs), lambda each: f"%{found[each]}")
            key: Any = (str(node.target), str(arguments))
        else:
            key = (node.op, str(node.target)) if node.op == "get_attr" else node
        found[node] = known.setdefault(key, len(known))
    return found


def _computed(graph: GraphModule, ancestors: list[Any]) -> Tensor:
    """Return what the last of some nodes is, the others being all that it is made of."""
    values: dict[Any, Any] = {}
    with torch.no_grad():
        for node in ancestors:
            if node.op == "get_attr":
                values[node] = _attribute(graph, str(node.target))
            else:
                args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)
    weight: Tensor = values[ancestors[-1]]
    return weight
