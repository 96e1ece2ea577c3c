"""How much of a `torch.export` program is really kept as two of every four weights. Called by `runtimes.program`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.errors import ExportError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

LEAST = 0.5
"""Share of the weights that must be kept so. Embeddings, and heads that share theirs, have no zeros to be spared."""
_SHOWN = 3


def sparse_facts(program: ExportedProgram) -> tuple[int, float, list[str]]:
    """Return products that read such a weight, its share of all weights as they were, and the largest of the others."""
    from orchestrator.compress.runtimes.two_of_four import sparse_layers

    graph = program.module()
    products, kept, made = 0, dict[tuple[str, ...], int](), set[str]()
    for _, weight, sources in sparse_layers(graph):
        products += 1
        kept[sources] = weight.numel()
        made.update(sources)
    others: dict[int, tuple[str, int]] = {}
    for name, tensor in (*graph.named_parameters(), *graph.named_buffers()):
        if name not in made:
            others.setdefault(tensor.untyped_storage().data_ptr(), (name, tensor.numel()))
    rest = sorted(others.values(), key=lambda other: -other[1])
    total = sum(kept.values()) + sum(size for _, size in rest)
    return products, sum(kept.values()) / max(1, total), [name for name, _ in rest]


def require_sparse(products: int, coverage: float, others: list[str]) -> None:
    """Raise ExportError when a program is 2:4 in name only, or keeps too few of its weights so."""
    if products == 0:
        raise ExportError(
            "2:4 in name only: the program keeps no weight as two of four",
            hint="zeros that lie in the file as numbers, or are put there at every call, spare nothing",
        )
    if coverage < LEAST:
        shown = ", ".join(others[:_SHOWN]) + (", ..." if len(others) > _SHOWN else "")
        raise ExportError(
            f"2:4 reached {coverage:.1%} of the weights, {LEAST:.0%} are needed to call it that; the largest others: "
            f"{shown}",
            hint="only linear layers of suitable widths that `prune` has masked are kept so: widen them, or use float8",
        )
