"""`use: table`: rows of a CSV or Parquet file; numbers as they are or standardised, text as one column per category.

A relative `path` is looked up from the folder the command runs in, then among the example files that ship with
`orchestrator.jobs`. Rows stay in the file's order; reading is in `table_file`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from orchestrator.data.split import build_splits, digest, require_fractions, split_counts, split_indices
from orchestrator.data.table_file import Columns, Target, read_columns
from orchestrator.plan.shapes import DataShape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from orchestrator.data.dataset import Dataset


@dataclass(frozen=True)
class Config:
    """Which file, which column to predict (`target`) and from which others (`features`; absent: all others).

    kind: class (one of several labels), binary (one of two, a single output), value (numbers), auto (class for text,
    booleans and whole numbers of at most 20 kinds, else value). A text feature may have `max_categories` values.
    """

    path: str
    target: str
    features: tuple[str, ...] | None = None
    kind: Literal["auto", "class", "binary", "value"] = "auto"
    standardize: bool = True
    max_categories: int = 64
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    split_seed: int = 0

    def __post_init__(self) -> None:
        require_fractions(self.val_fraction, self.test_fraction)
        if self.features is not None and self.target in self.features:
            raise ValueError(f"target '{self.target}' is also listed in features; the answer would be given away")
        if self.features is not None and len(set(self.features)) < max(1, len(self.features)):
            raise ValueError("features must name at least one column, and none twice")
        if self.max_categories < 2:
            raise ValueError(f"max_categories must be at least 2, not {self.max_categories}")


def shape(config: Config) -> DataShape:
    """Return the data set in numbers; reads the file. Raises PlanError naming file, line and column."""
    return _shape(config, *read_columns(config))


def load(config: Config) -> Dataset:
    """Return inputs float32 [N, features], targets int64 [N] (class) or float32 [N, 1] (binary, value)."""
    import numpy as np

    from orchestrator.data.dataset import Dataset

    columns, target = read_columns(config)
    groups = target.values if target.classes else np.zeros(len(target.values))
    rows = split_indices(groups.astype(np.int64), config.val_fraction, config.test_fraction, config.split_seed)
    targets = target.values.astype(np.int64) if target.kind == "class" else target.values.astype(np.float32)[:, None]
    mean, scale = _standard(columns, rows["train"], config.standardize)
    return Dataset(
        splits=build_splits(((columns.values - mean) / scale).astype(np.float32), targets, rows),
        shape=_shape(config, columns, target),
        name=columns.source.stem,
        source=str(columns.source),
        digest=digest([columns.values, target.values, *rows.values()]),
        transform={"columns": list(columns.names), "subtract": mean.tolist(), "divide_by": scale.tolist()},
    )


def _shape(config: Config, columns: Columns, target: Target) -> DataShape:
    import numpy as np

    counts = [len(target.values)]
    if target.classes:
        counts = np.bincount(target.values.astype(np.int64)).tolist()
    return DataShape(
        num_samples=split_counts(counts, config.val_fraction, config.test_fraction),
        inputs=(len(columns.names),),
        targets=() if target.kind == "class" else (1,),
        target_kind=target.kind,
        classes=target.classes,
    )


def _standard(
    columns: Columns, train: NDArray[np.int64], standardize: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what is subtracted and divided by, learnt from the training rows alone; one-hot columns stay 0 and 1."""
    import numpy as np

    numeric = columns.numeric & standardize & (len(train) > 0)
    rows = columns.values[train] if len(train) else columns.values
    spread = rows.std(axis=0)
    return np.where(numeric, rows.mean(axis=0), 0.0), np.where(numeric & (spread > 0), spread, 1.0)
