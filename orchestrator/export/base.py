"""What every exporter is: it writes a model into a folder and loads it again from that folder alone. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    Array = NDArray[np.generic]

CHECK_FILE = "check.safetensors"
"""Held-out inputs and the eager model's outputs on them, kept beside the model so that anyone can compare again."""

CHECK_BATCHES = (1, 2, 5, 37)
"""Batch sizes of the comparison, cut from the held-out rows in this order; the model was traced with 2 rows."""


@dataclass(frozen=True)
class Tolerance:
    """How far the reloaded outputs may be from the eager ones; a limit that is None is not applied."""

    max_abs: float | None = None
    relative: float | None = None
    """Norm of the difference over the norm of the eager outputs."""

    def accepts(self, max_abs: float, relative: float) -> bool:
        """Say whether both measured figures are within their limits; a NaN never is."""
        near = self.max_abs is None or max_abs <= self.max_abs
        return near and (self.relative is None or relative <= self.relative) and max_abs == max_abs


class Exporter(Protocol):
    """One file format. Built from its `Config` by the plug-in's `build(config)`."""

    tolerance: Tolerance

    def write(self, model: nn.Module, example_inputs: Tensor, folder: Path) -> list[Path]:
        """Write `model` (eval mode, CPU, contiguous) into `folder`; return the files.

        `example_inputs` has at least two rows, batch dim first. Raises ExportError saying why when it cannot,
        NotAbleError when a package is missing.
        """

    def load(self, folder: Path) -> Callable[[Tensor], Tensor]:
        """Return the model as a function of a batch, from the folder alone. Raises ExportError."""

    def versions(self) -> Mapping[str, str]:
        """Return versions of what wrote the file, for the manifest."""


@runtime_checkable
class ArrayLoader(Protocol):
    """What an exporter also is when its file runs without torch: verification then starts in a fraction of the time."""

    def load_arrays(self, folder: Path) -> Callable[[Array], Array]:
        """Return the model as a function of NumPy arrays."""


@runtime_checkable
class WeightReader(Protocol):
    """What an exporter also is when the weights can be read back by name: their digest is then compared too."""

    def read_weights(self, folder: Path) -> Mapping[str, Tensor]:
        """Return parameters and persistent buffers by name, as the file holds them."""


def cut_batches(num_rows: int) -> list[slice]:
    """Return consecutive slices of sizes `CHECK_BATCHES`, as far as `num_rows` goes."""
    cuts: list[slice] = []
    start = 0
    for size in CHECK_BATCHES:
        stop = min(start + size, num_rows)
        if stop > start:
            cuts.append(slice(start, stop))
        start = stop
    return cuts
