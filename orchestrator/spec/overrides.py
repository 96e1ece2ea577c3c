"""`train.steps=50` after the job file: dotted overrides, values read by the same strict YAML. Called by `spec.load`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.errors import JobFileError, Problem
from orchestrator.spec.places import Layer, Places, default_use, drop_own_keys
from orchestrator.spec.yaml import Mark, read
from orchestrator.wording import listed, shown

_SPACE = "sweep.space."
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")


def apply_overrides(layer: Layer, overrides: Sequence[str], places: Places) -> tuple[Places, list[str]]:
    """Change `layer` by every override; return the places with theirs added, and notes on what they replaced.

    `use` is set before all else, since it drops the own keys of the part named before. Raises JobFileError with every
    override that cannot be applied; problems name `override #n`.
    """
    lines = dict(places.lines)
    problems: list[Problem] = []
    notes: list[str] = []
    parsed: list[_Override] = []
    for number, text in enumerate(overrides, 1):
        lines[f"override #{number}"] = tuple(text.splitlines()) or ("",)
        try:
            parsed.append(_Override(text, f"override #{number}"))
        except JobFileError as error:
            problems.extend(error.problems)
    places = replace(places, lines=lines, marks=layer.marks)
    for override in sorted(parsed, key=lambda each: not each.path.endswith("use")):
        notes.extend(_length_notes(layer, override, parsed, places))
        problem = override.apply(layer)
        if problem is not None:
            problems.append(problem)
    if problems:
        problems.sort(key=lambda each: int(each.file.rpartition("#")[2]))
        raise JobFileError("an override cannot be applied", problems=problems)
    return replace(places, marks=layer.marks), notes


def _length_notes(layer: Layer, override: _Override, others: Sequence[_Override], places: Places) -> list[str]:
    """`train.steps` replaces the file's `train.epochs`, and the reverse; given both, neither goes (an error later)."""
    other = {"train.steps": "train.epochs", "train.epochs": "train.steps"}.get(override.path)
    train = layer.data.get("train")
    if other is None or not isinstance(train, dict) or any(each.path == other for each in others):
        return []
    old = train.get(other.partition(".")[2])
    if old is None:
        return []
    note = f"{override.path}={override.value} replaces {other} = {old} ({places.where(other)})"
    layer.drop(other)
    return [note]


class _Override:
    """One parsed override. Raises JobFileError when it is not `dotted.key=value`."""

    def __init__(self, text: str, file: str) -> None:
        self.text, self.file = text, file
        self.path, equals, value = text.partition("=")
        self.path = self.path.strip()
        if not equals or not _KEY.fullmatch(self.path):
            advice = "write key.below=value, for example train.steps=50, with no spaces around ="
            raise self._error("", f"not an override: '{text}'", advice, "override")
        if not value.strip():
            raise self._error(self.path, "no value", f"write {self.path}=VALUE; {self.path}=null for none", "override")
        if self.path.partition(".")[0] == "extends":
            raise self._error("extends", "extends cannot be overridden", "edit the file", "override")
        self.start = text.index("=") + 2
        try:
            document = read(value, file)
        except JobFileError as error:
            raise JobFileError(error.message, problems=[self._shift(each) for each in error.problems]) from error
        self.value = document.data
        self.marks = {
            f"{self.path}.{below}".rstrip("."): replace(mark, key_column=1, column=mark.column + self.start - 1)
            for below, mark in document.marks.items()
        }
        self.marks.setdefault(self.path, Mark(file, 1, 1, 1, self.start))

    def apply(self, layer: Layer) -> Problem | None:
        """Set the value; return what stands in the way."""
        keys = self._keys(layer.data)
        *parents, last = keys
        holder: Any = layer.data
        walked: list[str] = []
        for part in parents:
            problem = self._cannot_enter(holder, part, walked)
            if problem is not None:
                return problem
            walked.append(part)
            if isinstance(holder, list):
                holder = holder[int(part)]
                continue
            if holder.get(part) is None:
                if keys[len(walked)].isdigit():
                    path = ".".join(walked)
                    return self._problem(
                        self.path, f"the job has no list {path}", f"set the whole: {path}=[...]", "override"
                    )
                holder[part] = {}
                layer.marks.setdefault(".".join(walked), Mark(self.file, 1, 1, 1, 1))
            holder = holder[part]
        problem = self._cannot_enter(holder, last, walked)
        if problem is None:
            self._set(layer, holder, ".".join(parents), last)
        return problem

    def _keys(self, data: Mapping[str, Any]) -> list[str]:
        """Return the path's keys. Those of `sweep.space` are paths themselves: the longest that is there, or all."""
        if not self.path.startswith(_SPACE):
            return self.path.split(".")
        rest = self.path.removeprefix(_SPACE)
        space = (data.get("sweep") or {}).get("space") if isinstance(data.get("sweep"), dict) else None
        known = [key for key in space if f"{rest}.".startswith(f"{key}.")] if isinstance(space, dict) else []
        key = max(known, key=len, default=rest)
        return ["sweep", "space", key, *rest.removeprefix(key).split(".")[1:]]

    def _set(self, layer: Layer, holder: Any, parent: str, last: str) -> None:
        if isinstance(holder, list):
            layer.marks = {key: mark for key, mark in layer.marks.items() if not f"{key}.".startswith(f"{self.path}.")}
            holder[int(last)] = self.value
        else:
            if last == "use" and self.value != holder.get("use", default_use(parent)):
                drop_own_keys(layer, holder, parent)
            layer.drop(self.path)
            holder[last] = self.value
        layer.marks.update(self.marks)

    def _cannot_enter(self, holder: Any, part: str, walked: list[str]) -> Problem | None:
        above = ".".join(walked)
        if isinstance(holder, dict):
            return None
        if not isinstance(holder, list):
            return self._problem(
                self.path, f"{above} is {shown(holder)}, it has no keys", f"set {above}=... as a whole", "override"
            )
        if part.isdigit() and int(part) < len(holder):
            return None
        have = f"{above} has {len(holder)} items" + (f", numbered {listed(range(len(holder)), 6)}" if holder else "")
        return self._problem(self.path, f"no item '{part}': {have}", f"set the whole list: {above}=[...]", "override")

    def _shift(self, problem: Problem) -> Problem:
        path = f"{self.path}.{problem.path}".rstrip(".")
        column = problem.column + (self.start - 1 if problem.line == 1 else 0)
        source = self.text if problem.line == 1 else problem.source
        return replace(problem, path=path, column=column, source=source)

    def _error(self, path: str, message: str, hint: str, code: str) -> JobFileError:
        return JobFileError(message, problems=[self._problem(path, message, hint, code)])

    def _problem(self, path: str, message: str, hint: str, code: str) -> Problem:
        return Problem(path, message, hint, code, self.file, 1, 1, self.text.splitlines()[0] if self.text else "")
