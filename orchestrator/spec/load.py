"""`load_job`: a job file (with `extends:` and overrides) becomes a `LoadedJob`, or a JobFileError with all problems.

Called by the commands and the Python API. Nothing is evaluated, and no torch, ray or mlflow is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.errors import JobFileError, Problem
from orchestrator.spec.job import JobSpec
from orchestrator.spec.overrides import apply_overrides
from orchestrator.spec.places import Layer, Places, merge
from orchestrator.spec.problems import find_problems
from orchestrator.spec.yaml import MAX_BYTES, Document, read
from orchestrator.wording import nearest, shown

MAX_FILES = 32


@dataclass(frozen=True)
class LoadedJob:
    """A well-formed job: frozen spec, merged plain data, where every value stands, files read, notes to show."""

    spec: JobSpec
    data: dict[str, Any]
    places: Places
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def load_job(
    path: str | Path, overrides: Sequence[str] = (), *, also: Callable[[Mapping[str, Any]], list[Problem]] | None = None
) -> LoadedJob:
    """Read a job file, the files it extends, and overrides such as `train.steps=50`.

    `also` finds more problems in the merged data (of a sweep, which is checked with the help of plans).

    Raises JobFileError with every problem found: problems of reading first, and only when there are none, all others.
    """
    reader = _Files()
    layer = reader.layer(Path(path), ())
    places = Places(str(path), layer.marks, reader.lines)
    places, notes = apply_overrides(layer, overrides, places)
    spec, problems, part_notes = find_problems(layer.data)
    if also is not None:
        said = {problem.path for problem in problems}
        problems += [problem for problem in also(layer.data) if problem.path not in said]
    if spec is None or problems:
        located = sorted(
            (places.locate(problem) for problem in problems), key=lambda each: (each.file, each.line, each.column)
        )
        count = f"{len(located)} problem{'s' if len(located) != 1 else ''}"
        raise JobFileError(f"{path}: {count}, nothing was started", problems=located)
    return LoadedJob(spec, layer.data, places, tuple(reader.files), (*notes, *part_notes))


def load_spec(mapping: Mapping[str, Any]) -> JobSpec:
    """Return the job described by a mapping (notebooks, tests). Raises JobFileError with every problem."""
    data = {str(key): value for key, value in mapping.items()}
    try:
        spec, problems, _ = find_problems(data)
    except TypeError as error:
        raise JobFileError(
            f"a job is plain data: {error}", hint="use text, numbers, true/false, lists and dicts"
        ) from error
    if spec is None or problems:
        lines = "; ".join(f"{problem.path}: {problem.message}" for problem in problems)
        raise JobFileError(f"the job is not well-formed: {lines}", hint=problems[0].hint, problems=problems)
    return spec


class _Files:
    """Reads a file and those it extends, and remembers their lines for quoting."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.lines: dict[str, tuple[str, ...]] = {}

    def layer(self, path: Path, above: tuple[Path, ...]) -> Layer:
        """Return the merged layer of `path`; `above` are the files that led here."""
        text = _read_text(path)
        self.lines[str(path)] = tuple(text.splitlines())
        self.files.append(path)
        try:
            document = read(text, str(path))
        except JobFileError as error:
            count = f"{len(error.problems)} problem{'s' if len(error.problems) != 1 else ''}"
            raise JobFileError(f"{path}: {count}, nothing was started", problems=error.problems) from None
        if not isinstance(document.data, dict):
            raise self._not_a_job(path, document)
        layer = Layer(document.data, document.marks)
        bases = self._bases(path, layer, (*above, path.resolve()))
        for mark in [key for key in layer.marks if key == "extends" or key.startswith("extends.")]:
            del layer.marks[mark]
        merged: Layer | None = None
        for base in [*bases, layer]:
            merged = base if merged is None else merge(merged, base)
        return merged or layer

    def _bases(self, path: Path, layer: Layer, above: tuple[Path, ...]) -> list[Layer]:
        given = layer.data.pop("extends", [])
        names = [given] if isinstance(given, str) else given
        if not isinstance(names, list) or not all(isinstance(each, str) and each for each in names):
            message = f"takes a path or a list of paths; got {shown(given)}"
            raise self._refuse(path, layer, "extends", message, "write `extends: base.yaml`", "wrong-type")
        bases: list[Layer] = []
        for index, name in enumerate(names):
            place = "extends" if isinstance(given, str) else f"extends.{index}"
            base = _relative(path.parent / Path(name).expanduser())
            if base.resolve() in above:
                chain = " -> ".join(each.name for each in (*above, base))
                raise self._refuse(
                    path, layer, place, f"files extend each other: {chain}", "remove one `extends:`", "extends"
                )
            if not base.is_file():
                hint = _nearest_file(base) or "the path is relative to the file that says `extends:`"
                raise self._refuse(path, layer, place, f"no such file: {base}", hint, "extends")
            if len(self.files) >= MAX_FILES:
                message = f"more than {MAX_FILES} files are read for one job"
                raise self._refuse(path, layer, place, message, "extend fewer files", "extends")
            bases.append(self.layer(base, above))
        return bases

    def _not_a_job(self, path: Path, document: Document) -> JobFileError:
        if document.data is None:
            problem = Problem("", "the file is empty", "copy a job to start from: `orchestrator init --list`", "empty")
        else:
            message = f"a job file is a mapping of sections; got {shown(document.data)}"
            problem = Problem("", message, "write `model: {use: ...}` and `data: {use: ...}`", "not-a-mapping")
        line = self.lines[str(path)][0] if self.lines[str(path)] else ""
        located = replace(problem, file=str(path), line=1, column=1, source=line)
        return JobFileError(f"{path}: 1 problem, nothing was started", problems=[located])

    def _refuse(self, path: Path, layer: Layer, at: str, message: str, hint: str, code: str) -> JobFileError:
        places = Places(str(path), layer.marks, self.lines)
        problem = places.locate(Problem(at, message, hint, code))
        return JobFileError(f"{path}: 1 problem, nothing was started", problems=[problem])


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        hint = _no_file_hint(path)
        raise JobFileError(f"no such file: {path}", hint=hint) from error
    except OSError as error:
        raise JobFileError(f"{path} cannot be read: {error.strerror}", hint="give the path of a job file") from error
    if len(raw) > MAX_BYTES:
        raise JobFileError(
            f"{path} is larger than {MAX_BYTES:,} bytes", hint="a job file is short; data has files of its own"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
        message = f"byte 0x{raw[error.start]:02x} is not UTF-8"
        source = raw.splitlines()[line - 1].decode("utf-8", "replace") if raw.splitlines()[line - 1 :] else ""
        problem = Problem("", message, "save the file as UTF-8", "encoding", str(path), line, column, source)
        raise JobFileError(f"{path}: 1 problem, nothing was started", problems=[problem]) from error


def _no_file_hint(path: Path) -> str:
    if "=" in path.name:
        return "the job file comes first, values to replace after it: JOB train.epochs=5"
    return _nearest_file(path) or "copy a job to start from: `orchestrator init --list`"


def _nearest_file(path: Path) -> str:
    try:
        found = [each.name for each in path.parent.iterdir() if each.suffix in (".yaml", ".yml")]
    except OSError:
        return f"the folder {path.parent} does not exist" if not path.parent.exists() else ""
    close = nearest(path.name, found)
    return f"did you mean `{path.parent / close}`?" if close else ""


def _relative(path: Path) -> Path:
    """Return the path as a person would write it: without `..` where it can be, relative to here when below."""
    clean = Path(os.path.normpath(path))
    return clean.relative_to(Path.cwd()) if clean.is_relative_to(Path.cwd()) else clean
