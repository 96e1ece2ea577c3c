"""`Dataset` and `Split`: what a data plug-in's `load` returns and the engine reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from orchestrator.plan.shapes import DataShape

if TYPE_CHECKING:
    from torch import Tensor


class Split(Protocol):
    """One split. `batch` must give the same rows for the same indices on every rank and in every process."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return (inputs, targets) of these samples (int64 [B], CPU), batch dim first."""


@dataclass(frozen=True)
class Dataset:
    """Splits by name ("train", "val", "test"), the numbers, and what lineage needs.

    `digest` is a SHA-256 (hex, first 16 digits) over the bytes of all inputs and targets in order, and of the splits.
    `transform` says in JSON-ready values how raw values became inputs, for whoever feeds the exported model.
    """

    splits: Mapping[str, Split]
    shape: DataShape
    name: str
    source: str
    digest: str
    transform: Mapping[str, object] = field(default_factory=dict)


class TensorSplit:
    """A split that lies in memory as two tensors; a batch is one indexing operation."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        if len(inputs) != len(targets):
            raise ValueError(f"{len(inputs)} inputs but {len(targets)} targets")
        self.inputs = inputs
        self.targets = targets

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return (inputs, targets) of these samples, batch dim first."""
        return self.inputs[indices], self.targets[indices]
