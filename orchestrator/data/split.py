"""Train, validation and test: which sample goes where, how many there are, and the digest that names a data set.

A split is a function of (number of samples or labels, fractions, split_seed), never of the run's seed or of a rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from math import floor
from typing import TYPE_CHECKING

from orchestrator.data.order import permutation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from orchestrator.data.dataset import TensorSplit

SPLITS = ("train", "val", "test")


def require_fractions(val_fraction: float, test_fraction: float) -> None:
    """Raise ValueError unless both fractions are at least 0 and leave something to train on."""
    for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0.0 <= fraction < 1.0:
            raise ValueError(f"{name} must be at least 0 and below 1, not {fraction}")
    if val_fraction + test_fraction >= 1.0:
        raise ValueError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction} leave nothing to train on; "
            "their sum must be below 1"
        )


def split_counts(class_counts: Sequence[int], val_fraction: float, test_fraction: float) -> dict[str, int]:
    """Return samples per split when every class is divided by itself (one entry: no classes)."""
    parts = [_counts(count, val_fraction, test_fraction) for count in class_counts]
    return {name: sum(part[at] for part in parts) for at, name in enumerate(SPLITS)}


def _counts(count: int, val_fraction: float, test_fraction: float) -> tuple[int, int, int]:
    test = floor(count * test_fraction + 0.5)
    val = min(floor(count * val_fraction + 0.5), count - test)
    return count - val - test, val, test


def split_indices(
    groups: NDArray[np.int64], val_fraction: float, test_fraction: float, split_seed: int
) -> dict[str, NDArray[np.int64]]:
    """Return, for every split, the samples in it (int64, ascending).

    `groups` gives each sample's class number, so that every split has the same mix (all zeros: no classes). Sizes are
    those of `split_counts`.
    """
    import numpy as np

    found: dict[str, list[NDArray[np.int64]]] = {name: [] for name in SPLITS}
    for group in np.unique(groups).tolist():
        members = np.flatnonzero(groups == group)
        mixed = members[permutation(len(members), "split", split_seed, group)]
        train, val, _ = _counts(len(members), val_fraction, test_fraction)
        for name, part in zip(SPLITS, np.split(mixed, [train, train + val]), strict=True):
            found[name].append(part)
    empty = [np.zeros(0, np.int64)]
    return {name: np.sort(np.concatenate(parts or empty)).astype(np.int64) for name, parts in found.items()}


def build_splits(
    inputs: NDArray[np.float32], targets: NDArray[np.generic], indices: Mapping[str, NDArray[np.int64]]
) -> dict[str, TensorSplit]:
    """Return every split as tensors of its own, in the order of `indices`."""
    import torch

    from orchestrator.data.dataset import TensorSplit

    return {
        name: TensorSplit(torch.from_numpy(inputs[rows]), torch.from_numpy(targets[rows]))
        for name, rows in indices.items()
    }


def digest(arrays: Iterable[NDArray[np.generic]]) -> str:
    """Return the first 16 hex digits of a SHA-256 over dtype, shape and little-endian bytes of all arrays in order."""
    import numpy as np

    found = hashlib.sha256()
    for array in arrays:
        plain = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
        found.update(f"{plain.dtype.str}{plain.shape}".encode())
        found.update(plain.tobytes())
    return found.hexdigest()[:16]
