"""How much of a `torch.export` program is really kept and multiplied in float8. Called by `runtimes.program`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from orchestrator.compress.runtimes.base import MIN_COVERAGE, some
from orchestrator.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

_TYPE = "torch.float8_e4m3fn"
_VIEWS = ("aten.t.default", "aten.transpose.int", "aten.view.dtype")
"""What may lie between a stored tensor and the operator that reads it in its own type."""


def float8_facts(program: ExportedProgram) -> tuple[int, float, list[str]]:
    """Return operators that multiply in float8, the share of weights that are read so, and the largest of the others.

    A weight counts where a product in float8 reads it as it is stored, or an embedding looks its rows up; one that is
    turned into floats first does not. Scales, a number for each row, belong to their weights and are not counted.
    """
    stored = dict(_stored(program))
    products, read, scales = 0, set[str](), set[str]()
    for node in program.graph.nodes:
        kind = str(node.target)
        if kind == "aten._scaled_mm.default":
            products += 1
            read.add(_source(node.args[1], stored))
            scales.add(_source(node.args[3], stored))
        elif kind == "aten.embedding.default":
            name = _source(node.args[0], stored)
            (scales if _is_column(stored.get(name)) else read).add(name)
    sizes = {_key(tensor): int(tensor.numel()) for name, tensor in stored.items() if name not in scales}
    kept = {_key(stored[name]) for name in read if name in stored and str(stored[name].dtype) == _TYPE}
    others = {name: tensor.numel() for name, tensor in stored.items() if _key(tensor) in sizes.keys() - kept}
    coverage = sum(sizes[key] for key in kept if key in sizes) / max(1, sum(sizes.values()))
    return products, coverage, [_said(program, name) for name in sorted(others, key=lambda name: -others[name])]


def require_float8(products: int, coverage: float, others: list[str]) -> None:
    """Raise ExportError when a program is float8 in name only, or has too few weights in it."""
    if products == 0:
        raise ExportError(
            "float8 in name only: the program multiplies nothing in float8",
            hint="weights that are turned back into floats before every use, or fp32 ones, are no float8",
        )
    if coverage < MIN_COVERAGE:
        raise ExportError(
            f"float8 reached {coverage:.1%} of the weights, {MIN_COVERAGE:.0%} are needed to call it that; in other "
            f"types: {some(others)}",
            hint="convolutions, recurrent weights and layers narrower than 16 stay floats: use a scheme of onnx",
        )


def _stored(program: ExportedProgram) -> Iterator[tuple[str, Tensor]]:
    """Yield the stored tensors of a program by the names of their placeholders."""
    values = {**program.state_dict, **program.constants}
    for spec in program.graph_signature.input_specs:
        if spec.target is not None and hasattr(values.get(spec.target), "numel"):
            yield spec.arg.name, values[spec.target]


def _source(node: Any, stored: dict[str, Tensor]) -> str:
    """Return the placeholder that a node is a view of; empty where it is computed."""
    while str(getattr(node, "target", "")) in _VIEWS:
        node = node.args[0]
    name = str(getattr(node, "name", ""))
    return name if name in stored else ""


def _is_column(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.numel() == max(tensor.shape)


def _key(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape)


def _said(program: ExportedProgram, name: str) -> str:
    return next(str(spec.target) for spec in program.graph_signature.input_specs if spec.arg.name == name)
