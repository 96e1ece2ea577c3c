"""`use: digits`: 1797 real handwritten digits, 8 x 8 pixels, that come with scikit-learn (UCI, Alpaydin and Kaynak).

A pixel's 0 .. 16 becomes 0 .. 1 by a division, nothing learnt from the data, so an exported model is fed the same way.
The packaged file is read directly: importing scikit-learn costs each rank over a second.
"""

from __future__ import annotations

import gzip
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.data.split import build_splits, digest, require_fractions, split_counts, split_indices
from orchestrator.errors import NotAbleError
from orchestrator.plan.shapes import DataShape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from orchestrator.data.dataset import Dataset

_PER_CLASS = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
_SIDE = 8
_PIXEL_MAX = 16


@dataclass(frozen=True)
class Config:
    """How the images are divided, and whether they come as 1 x 8 x 8 images or (`flat`) as 64 numbers."""

    val_fraction: float = 0.1
    test_fraction: float = 0.2
    split_seed: int = 0
    flat: bool = False

    def __post_init__(self) -> None:
        require_fractions(self.val_fraction, self.test_fraction)


def shape(config: Config) -> DataShape:
    """Return the data set in numbers; reads no file."""
    return DataShape(
        num_samples=split_counts(_PER_CLASS, config.val_fraction, config.test_fraction),
        inputs=(_SIDE * _SIDE,) if config.flat else (1, _SIDE, _SIDE),
        targets=(),
        target_kind="class",
        classes=tuple(map(str, range(10))),
    )


def load(config: Config) -> Dataset:
    """Return images float32 [N, 1, 8, 8] (or [N, 64]) in 0 .. 1 and int64 classes, each class divided by itself."""
    import numpy as np

    from orchestrator.data.dataset import Dataset

    pixels, targets = _read()
    rows = split_indices(targets, config.val_fraction, config.test_fraction, config.split_seed)
    inputs = (pixels / np.float32(_PIXEL_MAX)).astype(np.float32)
    inputs = inputs if config.flat else inputs.reshape(-1, 1, _SIDE, _SIDE)
    return Dataset(
        splits=build_splits(inputs, targets, rows),
        shape=shape(config),
        name="digits",
        source="scikit-learn digits (UCI optical recognition of handwritten digits)",
        digest=digest([inputs, targets, *rows.values()]),
        transform={"divide_by": _PIXEL_MAX},
    )


def _read() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    import numpy as np

    file = _packaged_file()
    if file is None:
        table = _read_by_sklearn()
    else:
        with gzip.open(file, "rt", encoding="ascii") as lines:
            table = np.loadtxt(lines, delimiter=",", dtype=np.float32)
    return table[:, :-1], table[:, -1].astype(np.int64)


def _packaged_file() -> Path | None:
    spec = importlib.util.find_spec("sklearn")  # finds the package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise NotAbleError("the digits come with scikit-learn, which is not installed", hint="pip install scikit-learn")
    file = Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    return file if file.is_file() else None


def _read_by_sklearn() -> NDArray[np.float32]:
    import numpy as np
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    return np.column_stack([pixels, targets]).astype(np.float32)
