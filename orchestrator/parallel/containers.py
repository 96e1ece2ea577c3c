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


def summing_containers(present: Mapping[str, nn.Module], plan: Mapping[str, Split]) -> tuple[set[str], set[str]]:
    """Return the containers that sum their input's gradient, and the column layers that leave it to them.

    A container may when every weight in it belongs to a column layer or to the row layer that ends it: then all that
    reaches its input is this rank's part. Elsewhere (a router that computes alike on every rank) each column sums.
    """
    containers: set[str] = set()
    columns: set[str] = set()
    for name, how in plan.items():
        if how.kind != "gather" or how.output == "sequence" or name not in present:
            continue
        inside = {path: child for path, child in present.items() if path.startswith(f"{name}.")}
        holders = [path for path, child in inside.items() if next(child.parameters(recurse=False), None) is not None]
        mine = {path for path in holders if path in plan and _takes_whole_input(plan[path])}
        if mine and all(path in mine or _ends(plan.get(path), how) for path in holders):
            containers.add(name)
            columns |= mine
    return containers, columns


def _takes_whole_input(how: Split) -> bool:
    return how.kind == "column" and how.input == "replicate" and how.output == "split"


def _ends(how: Split | None, container: Split) -> bool:
    return how is not None and how.kind == "row" and (how.input, how.output) == ("split", container.input)


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
