"""Cells kept in a file as they are measured, so that a matrix of an hour may be interrupted and go on.

One JSON object a line: what they were measured with, then a cell each. A line that was cut off is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchestratorError
from orchestrator.verify.matrix import Cell, Spot, label_of


class KeptCells:
    """The file of one matrix. Raises OrchestratorError when it was measured with something else, or is no such file."""

    def __init__(self, path: Path, num_steps: int) -> None:
        self._path, self._with = path, _measured_with(num_steps)
        self._cells: dict[tuple[str, int, str, str], Cell] = {}
        if path.exists():
            self._read()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append(self._with)

    def missing(self, among: Sequence[Spot]) -> list[Spot]:
        """Return the cells that are not in the file, or that failed to run."""
        done = {key for key, cell in self._cells.items() if not cell.error}
        return [spot for spot in among if _key_of(spot) not in done]

    def add(self, cell: Cell) -> None:
        """Keep a cell that has been measured."""
        self._cells[_key(cell)] = cell
        self._append(asdict(cell))

    def of(self, among: Sequence[Spot]) -> list[Cell]:
        """Return the kept ones of these cells, in their order."""
        return [self._cells[key] for key in map(_key_of, among) if key in self._cells]

    def _append(self, values: dict[str, object]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def _read(self) -> None:
        lines = list(_whole_lines(self._path))
        if not lines or lines[0] != self._with:
            raise OrchestratorError(
                f"{self._path} was measured with {lines[0] if lines else 'nothing'}, this matrix is of {self._with}",
                hint="name another file, or remove this one",
            )
        names = {field.name for field in fields(Cell)}
        for values in lines[1:]:
            if set(values) != names:
                raise OrchestratorError(
                    f"{self._path} holds a line that is no cell: {sorted(values)}", hint="remove the file"
                )
            cell = Cell(**values)
            self._cells[_key(cell)] = cell


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict):
            yield values


def _measured_with(num_steps: int) -> dict[str, object]:
    import torch

    from orchestrator import __version__

    return {"steps": num_steps, "orchestrator": __version__, "torch": torch.__version__}


def _key(cell: Cell) -> tuple[str, int, str, str]:
    return cell.model, cell.ranks, cell.layout, cell.schedule


def _key_of(spot: Spot) -> tuple[str, int, str, str]:
    return spot.model, spot.layout.world_size, label_of(spot), spot.schedule
