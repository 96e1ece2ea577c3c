"""Reads a CSV or Parquet file into numbers for `table`; every complaint names file, line, column and what to do."""

from __future__ import annotations

import difflib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from orchestrator.errors import PlanError, Problem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CSV = {".csv": ",", ".tsv": "\t"}
_PARQUET = (".parquet", ".pq")
_MAX_WHOLE_NUMBER_CLASSES = 20


class TableOptions(Protocol):
    """The keys of `table` that reading depends on."""

    @property
    def path(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def features(self) -> tuple[str, ...] | None: ...
    @property
    def kind(self) -> str: ...
    @property
    def max_categories(self) -> int: ...


@dataclass(frozen=True)
class Columns:
    """Features as numbers: float64 [rows, columns], a name per column, and whether it is a number (else one-hot)."""

    source: Path
    names: tuple[str, ...]
    values: NDArray[np.float64]
    numeric: NDArray[np.bool_]


@dataclass(frozen=True)
class Target:
    """The column to predict: float64 [rows] (a class number where there are classes), and its kind."""

    kind: str
    classes: tuple[str, ...]
    values: NDArray[np.float64]


class _Feature(NamedTuple):
    """What one column of the file becomes: names and values float64 [rows, names]."""

    names: list[str]
    values: NDArray[np.float64]
    numeric: bool


def read_columns(options: TableOptions) -> tuple[Columns, Target]:
    """Return features and target. Raises PlanError, with all problems found, when the file does not give them."""
    import numpy as np

    source = find_file(options.path)
    table = _read(source)
    reader = _Reader(source, options.max_categories)
    names = options.features
    if names is None:
        names = tuple(name for name in table.column_names if name != options.target)
    _require_columns(source, table.column_names, options.target, names)
    parts = [reader.feature(name, table.column(name)) for name in names]
    target = reader.target(options, table.column(options.target))
    if reader.problems or target is None:
        raise _error(reader.problems)
    return Columns(
        source=source,
        names=tuple(name for part in parts for name in part.names),
        values=np.column_stack([part.values for part in parts]),
        numeric=np.array([part.numeric for part in parts for _ in part.names]),
    ), target


def find_file(path: str) -> Path:
    """Return the file a job means: as given (from the working folder), else beside the shipped example jobs."""
    given = Path(path).expanduser()
    if given.is_file():
        return given.resolve()
    spec = importlib.util.find_spec("orchestrator.jobs")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        if not given.is_absolute() and (Path(folder) / given).is_file():
            return (Path(folder) / given).resolve()
    parent = given.resolve().parent
    names = [found.name for found in parent.iterdir()] if parent.is_dir() else []
    close = difflib.get_close_matches(given.name, names, n=1)
    hint = f"did you mean `{close[0]}`?" if close else "give a path from the folder you run the command in"
    raise _error([Problem("data.path", f"no file {given.resolve()}", hint, "no-file")])


def _error(problems: list[Problem]) -> PlanError:
    return PlanError("; ".join(item.message for item in problems), hint=problems[0].hint, problems=problems)


def _read(source: Path) -> Any:
    import pyarrow
    from pyarrow import csv, parquet

    kind = source.suffix.lower()
    try:
        if kind in _PARQUET:
            return parquet.read_table(source)
        if kind in _CSV:
            table = csv.read_csv(
                source,
                read_options=csv.ReadOptions(use_threads=False),  # with threads, errors do not name the line
                parse_options=csv.ParseOptions(delimiter=_CSV[kind], ignore_empty_lines=False),
                convert_options=csv.ConvertOptions(strings_can_be_null=True),
            )
            return _without_blank_end(table)
    except (pyarrow.ArrowException, OSError) as error:
        message = f"{source} cannot be read: {' '.join(str(error).split())}"
        raise _error([Problem("data.path", message, "mend the file", "bad-file")]) from error
    known = ", ".join((*_CSV, *_PARQUET))
    raise _error([Problem("data.path", f"{source} is of no known kind", f"known endings: {known}", "bad-file")])


def _without_blank_end(table: Any) -> Any:
    """Drop blank lines at the end of a file; blank lines elsewhere stay, so that row numbers give line numbers."""
    rows = table.num_rows
    while rows and all(not table.column(at)[rows - 1].is_valid for at in range(table.num_columns)):
        rows -= 1
    return table.slice(0, rows)


def _require_columns(source: Path, known: list[str], target: str, features: tuple[str, ...]) -> None:
    problems: list[Problem] = []
    for path, name in (("data.target", target), *(("data.features", name) for name in features)):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean `{close[0]}`? " if close else ""
            hint = f"{advice}it has: {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}"
            problems.append(Problem(path, f"{source} has no column '{name}'", hint, "no-column"))
        elif known.count(name) > 1:
            message = f"{source} has {known.count(name)} columns called '{name}'"
            problems.append(Problem(path, message, "give each column a name of its own", "twice"))
    if not features:
        problems.append(Problem("data.features", f"{source} has no column beside the target", "", "no-column"))
    if problems:
        raise _error(problems)


class _Reader:
    """Turns columns into numbers and collects what is wrong with them."""

    def __init__(self, source: Path, max_categories: int) -> None:
        self.source = source
        self.max_categories = max_categories
        self.problems: list[Problem] = []

    def feature(self, name: str, column: Any) -> _Feature:
        """Return what a feature column becomes."""
        import numpy as np

        nothing = _Feature([name], np.zeros((len(column), 1)), numeric=True)
        kind = _kind(column.type)
        if kind == "other":
            self._problem(
                "data.features", f"column '{name}' holds {column.type}", "numbers, booleans and text are read"
            )
        if kind == "other" or self._has_gaps("data.features", name, column):
            return nothing
        if kind == "number":
            return _Feature([name], self._numbers("data.features", name, column)[:, None], numeric=True)
        categories = sorted(set(column.to_pylist()))
        if len(categories) > self.max_categories:
            self._too_many(name, column, len(categories))
            return nothing
        number = {category: at for at, category in enumerate(categories)}
        one_hot = np.eye(len(categories))[[number[value] for value in column.to_pylist()]]
        return _Feature([f"{name}={category}" for category in categories], one_hot, numeric=False)

    def target(self, options: TableOptions, column: Any) -> Target | None:
        """Return the target column, None when something is wrong with it."""
        import numpy as np

        kind = options.kind if options.kind != "auto" else _guess(column)
        if self._has_gaps("data.target", options.target, column):
            return None
        if kind == "value":
            if _kind(column.type) == "number":
                return Target(kind, (), self._numbers("data.target", options.target, column))
            self._problem(
                "data.target", f"column '{options.target}' is {column.type}, not numbers", "set data.kind=class"
            )
            return None
        if _kind(column.type) == "number":
            self._numbers("data.target", options.target, column)  # complains about what is not finite
        labels = sorted(set(column.to_pylist()))
        if kind == "binary" and len(labels) != 2:
            message = f"column '{options.target}' has {len(labels)} labels, binary needs 2"
            self._problem("data.kind", message, "set data.kind=class")
            return None
        number = {label: at for at, label in enumerate(labels)}
        values = np.array([number[value] for value in column.to_pylist()], dtype=np.float64)
        return Target(kind, tuple(map(str, labels)), values)

    def _problem(self, path: str, message: str, hint: str, row: int | None = None) -> None:
        self.problems.append(Problem(path, f"{self._place(row)}: {message}", hint, "bad-table"))

    def _place(self, row: int | None) -> str:
        if row is None:
            return str(self.source)
        return f"{self.source}:{row + 2}" if self.source.suffix.lower() in _CSV else f"{self.source} row {row}"

    def _has_gaps(self, path: str, name: str, column: Any) -> bool:
        if column.null_count == 0:
            return False
        row = column.is_null().to_pylist().index(True)
        message = f"column '{name}' has no value here ({column.null_count} missing in all)"
        self._problem(path, message, "fill it in, remove the row, or leave the column out of data.features", row)
        return True

    def _numbers(self, path: str, name: str, column: Any) -> NDArray[np.float64]:
        import numpy as np

        values: NDArray[np.float64] = np.asarray(column.to_numpy(), dtype=np.float64)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            message = f"column '{name}' holds {values[bad[0]]}, not a finite number ({len(bad)} in all)"
            self._problem(path, message, "mend or remove the row", int(bad[0]))
        return values

    def _too_many(self, name: str, column: Any, count: int) -> None:
        odd = [row for row, value in enumerate(column.to_pylist()) if not _is_number(value)]
        if 2 * len(odd) < len(column):
            message = f"column '{name}' holds {column[odd[0]].as_py()!r}, not a number as elsewhere"
            self._problem("data.features", message, "mend or remove the row", odd[0])
            return
        message = f"text column '{name}' has {count} categories, at most {self.max_categories} are allowed"
        self._problem("data.features", message, "leave it out of data.features, or raise data.max_categories")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _kind(arrow_type: Any) -> str:
    from pyarrow import types

    if types.is_integer(arrow_type) or types.is_floating(arrow_type) or types.is_boolean(arrow_type):
        return "number"
    is_text = types.is_string(arrow_type) or types.is_large_string(arrow_type) or types.is_dictionary(arrow_type)
    return "text" if is_text else "other"


def _guess(column: Any) -> str:
    from pyarrow import types

    if types.is_floating(column.type):
        return "value"
    if types.is_integer(column.type):
        return "class" if len(column.unique()) <= _MAX_WHOLE_NUMBER_CLASSES else "value"
    return "class"
