"""Cells kept in a file as they are measured, so that a matrix of an hour may be interrupted and go on.

One JSON object a line: what they were measured with (a digest of the code, too), then a cell each. A last line that was
cut off is taken away.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from orchestrator.errors import OrchestratorError
from orchestrator.verify.matrix import Cell, Spot, label_of


class KeptCells:
    """The file of one matrix. Raises OrchestratorError when it was measured with something else, or is no such file."""

    def __init__(self, path: Path, num_steps: int, date: str) -> None:
        self._path, self._with = path, _measured_with(num_steps)
        self._cells: dict[tuple[str, int, str, str], Cell] = {}
        self.begun = date
        """Date of the first cells."""
        if path.exists():
            _cut_torn_line(path)
        if path.exists() and path.stat().st_size:
            self._read()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append({**self._with, "begun": date})

    def missing(self, among: Sequence[Spot]) -> list[Spot]:
        """Return the cells that are not in the file, or that did not agree."""
        done = {key for key, cell in self._cells.items() if cell.agrees}
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
        lines = [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]
        found = {key: value for key, value in lines[0].items() if key != "begun"}
        if found != self._with:
            raise OrchestratorError(
                f"{self._path} was measured with {found}, this matrix is of {self._with}",
                hint="name another file, or remove this one",
            )
        self.begun = lines[0]["begun"]
        names = {field.name for field in fields(Cell)}
        for values in lines[1:]:
            if set(values) != names:
                raise OrchestratorError(
                    f"{self._path} holds a line that is no cell: {sorted(values)}", hint="remove the file"
                )
            cell = Cell(**values)
            self._cells[_key(cell)] = cell


def _cut_torn_line(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: content.rfind(b"\n") + 1])


def _measured_with(num_steps: int) -> dict[str, object]:
    import torch

    from orchestrator import __version__

    known = {"steps": num_steps, "orchestrator": __version__, "torch": torch.__version__, "machine": platform.node()}
    return {**known, "code": _digest_of_sources()}


def _digest_of_sources() -> str:
    """Return a digest of what computes: the version of a clone stays the same when its code changes."""
    import orchestrator
    from orchestrator import models

    folders = {Path(each).resolve() for package in (orchestrator, models) for each in package.__path__}
    digest = hashlib.sha256()
    for file in sorted({file for folder in folders for file in folder.rglob("*.py")}):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _key(cell: Cell) -> tuple[str, int, str, str]:
    return cell.model, cell.ranks, cell.layout, cell.schedule


def _key_of(spot: Spot) -> tuple[str, int, str, str]:
    return spot.model, spot.layout.world_size, label_of(spot), spot.schedule
