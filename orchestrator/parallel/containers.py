"""Containers under the tensor axis: one exchange for all the layers in them that need the same input whole.

Query, key and value work on one input: brought together once forward, its gradient summed once backward, not thrice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from orchestrator.parallel.collectives import copy_in, gather, gather_and_sum_back, split

SEQUENCE_DIM = 1
Forward = Callable[[Tensor], Tensor]


class Split(Protocol):
    """What a model's `tensor_plan` says of one submodule (its own dataclass; see docs/models.md)."""

    @property
    def kind(self) -> str:
        """column, row, vocab, channels, norm or gather."""

    @property
    def input(self) -> str:
        """replicate, sequence or split."""

    @property
    def output(self) -> str:
        """replicate, sequence or split."""


def summing_containers(module: nn.Module, plan: Mapping[str, Split]) -> frozenset[nn.Module]:
    """Return the containers that sum their input's gradient, and the column layers that leave it to them.

    A container may when all its weights belong to column layers and to the one row layer that ends it: then all that
    reaches its input is this rank's part. Elsewhere (a router that computes alike on every rank, a container in a
    container, a column layer that is also used outside) each column layer sums for itself.
    """
    present = dict(module.named_modules(remove_duplicate=False))  # a repeated block has a place under each of its names
    found: dict[str, list[str]] = {}
    for name, how in plan.items():
        if how.kind == "gather" and how.output != "sequence" and name in present:
            columns = _columns_of(name, how, present, plan)
            if columns:
                found[name] = columns
    while True:
        led = {path for columns in found.values() for path in columns}
        modules = {present[path] for path in led}
        alone = {path for path, child in present.items() if child in modules and path not in led}
        loose = {present[path] for path in alone}
        kept = {name: columns for name, columns in found.items() if not loose & {present[path] for path in columns}}
        if len(kept) == len(found):
            return frozenset(present[path] for path in (*found, *led))
        found = kept


def _columns_of(name: str, how: Split, present: Mapping[str, nn.Module], plan: Mapping[str, Split]) -> list[str]:
    """Return the column layers of a container that may sum for them; [] when it may not."""
    inside = {path: child for path, child in present.items() if path == name or path.startswith(f"{name}.")}
    if any(path != name and path in plan and plan[path].kind == "gather" for path in inside):
        return []
    holders = [path for path, child in inside.items() if next(child.parameters(recurse=False), None) is not None]
    columns = [path for path in holders if _takes_whole_input(plan.get(path))]
    ends = [path for path in holders if _ends(plan.get(path), how)]
    return columns if len(ends) == 1 and len(columns) + 1 == len(holders) else []


def _takes_whole_input(how: Split | None) -> bool:
    return how is not None and (how.kind, how.input, how.output) == ("column", "replicate", "split")


def _ends(how: Split | None, container: Split) -> bool:
    return how is not None and (how.kind, how.input, how.output) == ("row", "split", container.input)


def contained(module: nn.Module, mesh: DeviceMesh, how: Split, sums: bool) -> Forward:
    """Return the forward of a container: whole input in; its result as its last layer leaves it, or cut."""
    inner, group = module.forward, mesh.get_group()

    def forward(x: Tensor) -> Tensor:
        if how.input == "sequence":
            # Without `sums` the layers inside see to their gradients, so what comes back is whole on every rank.
            x = gather_and_sum_back(x, SEQUENCE_DIM, group) if sums else gather(x, SEQUENCE_DIM, group)
        elif sums:
            x = copy_in(x, group)
        y: Tensor = inner(x)
        return split(y, SEQUENCE_DIM, group) if how.output == "sequence" else y

    return forward
