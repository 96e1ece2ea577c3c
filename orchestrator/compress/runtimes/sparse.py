"""How much of a `torch.export` program is really kept as two of every four weights. Called by `runtimes.program`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from orchestrator.compress.runtimes.base import some
from orchestrator.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

LEAST = 0.5
"""Share of the weights that must be kept so. Embeddings, and heads that share theirs, have no zeros to be spared."""
_MOST = 1.25
_FLOAT_BYTES = 4


class SparseFacts(NamedTuple):
    """What a program keeps as two of four, counted in its tensors."""

    products: int
    """Products that read such a weight."""
    kept: int
    """Weights of the layers that are kept so, the zeros among them."""
    others: tuple[tuple[str, int], ...]
    """All other stored tensors by name and size, the largest first; one with several names comes once."""
    place_bytes: int
    """Bytes that say where the kept values stood: they are no weights."""

    @property
    def total(self) -> int:
        """Return all weights, the zeros among them."""
        return self.kept + sum(size for _, size in self.others)

    @property
    def coverage(self) -> float:
        """Return the share of all weights that are kept so."""
        return self.kept / max(1, self.total)


def sparse_facts(program: ExportedProgram) -> SparseFacts:
    """Count products and weights; constants of the program count as its parameters do."""
    import torch

    from orchestrator.compress.runtimes.two_of_four import sparse_layers

    graph = program.module()
    products, kept, made = 0, dict[tuple[str, ...], int](), set[str]()
    for layer in sparse_layers(graph):
        products += 1
        kept[layer.sources] = layer.shape[0] * layer.shape[1]
        made.update(layer.sources)
    stored = {**program.state_dict, **program.constants}
    tensors = {name: value for name, value in stored.items() if isinstance(value, torch.Tensor)}
    mine = {_place(tensors[name]): tensors[name] for name in made}
    others: dict[tuple[object, ...], tuple[str, int]] = {}
    for name, value in tensors.items():
        if _place(value) not in mine:
            others.setdefault(_place(value), (name, value.numel()))
    ordered = sorted(others.values(), key=lambda other: -other[1])
    place_bytes = sum(value.numel() for value in mine.values() if value.dtype == torch.uint8)
    return SparseFacts(products, sum(kept.values()), tuple(ordered), place_bytes)


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape)


def require_sparse(facts: SparseFacts, baseline_bytes: int) -> None:
    """Raise ExportError when a program is 2:4 in name only, or keeps too few of its weights so.

    `baseline_bytes`: of the model before in fp32. A program of more weights than that has some for show.
    """
    if facts.products == 0:
        raise ExportError(
            "2:4 in name only: the program keeps no weight as two of four",
            hint="zeros that lie in the file as numbers, or are put there at every call, spare nothing",
        )
    if facts.coverage < LEAST:
        raise ExportError(
            f"2:4 reached {facts.coverage:.1%} of the weights, {LEAST:.0%} are needed to call it that; the largest "
            f"others: {some([name for name, _ in facts.others])}",
            hint="only linear layers of suitable widths that `prune` has masked are kept so: widen them, or use float8",
        )
    if facts.total * _FLOAT_BYTES > _MOST * baseline_bytes:
        raise ExportError(
            f"the program holds {facts.total:,} weights, zeros counted, and the model it was made of had "
            f"{baseline_bytes // _FLOAT_BYTES:,}",
            hint="weights that the model does not have make others look few",
        )
