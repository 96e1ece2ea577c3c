"""`Layer` and `Places`: where in which file every value of a job came from, also after `extends:` and overrides.

`spec.load` builds them; everybody who finds something wrong later asks `Places.locate` for file, line and column.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from orchestrator.errors import OrchestratorError, Problem
from orchestrator.spec.job import OptimSection
from orchestrator.spec.yaml import Mark

AnyError = TypeVar("AnyError", bound=OrchestratorError)
_AT_KEY = {"unknown-key", "missing-key", "duplicate-key", "contradiction"}
# Keys that contradict each other: the one a problem stands at, and the other, whose place is said too.
_OTHER = {"train.epochs": "train.steps", "cluster.backend": "cluster.gpus_per_worker"}
# A section that is itself a part (`use`): which of its keys belong to the section, and what `use` is when not given.
_SHARED_KEYS = {"optim": frozenset(OptimSection.model_fields)}
_DEFAULT_USE = {"optim": "adamw", "optim.schedule": "constant"}


@dataclass(frozen=True)
class Places:
    """The mark of every dotted path, and the lines of every file (or override) that marks name."""

    file: str
    marks: Mapping[str, Mark] = field(default_factory=dict)
    lines: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def locate(self, problem: Problem) -> Problem:
        """Return the problem with file, line, column and quoted line; one that has a line already is left alone."""
        if problem.line:
            return problem
        path = problem.path
        while path not in self.marks and path:
            path = path.rpartition(".")[0]
        mark = self.marks.get(path)
        if mark is None:
            return replace(problem, file=self.file)
        at_key = problem.code in _AT_KEY or path != problem.path
        line, column = (mark.key_line, mark.key_column) if at_key else (mark.line, mark.column)
        text = self.lines.get(mark.file, ())
        other = _OTHER.get(path) if problem.code == "contradiction" else None
        return replace(
            problem,
            message=f"{problem.message} ({other}: {self.where(other)})" if other else problem.message,
            hint=problem.hint.replace("the line", "the override") if _is_override(mark) else problem.hint,
            file=mark.file,
            line=line,
            column=column,
            source=text[line - 1] if line <= len(text) else "",
        )

    def attach(self, error: AnyError) -> AnyError:
        """Return an error of the same kind whose problems have places."""
        problems = [self.locate(problem) for problem in error.problems]
        return type(error)(error.message, hint=error.hint, problems=problems)

    def where(self, path: str) -> str:
        """Return `file:line` of a key, or `override #n`; the file alone when the key is not written anywhere."""
        mark = self.marks.get(path)
        if mark is None:
            return self.file
        return mark.file if _is_override(mark) else f"{mark.file}:{mark.key_line}"


def _is_override(mark: Mark) -> bool:
    return mark.file.startswith("override ")


@dataclass
class Layer:
    """Plain data with the mark of every path in it. Layers are merged, later ones over earlier ones."""

    data: dict[str, Any]
    marks: dict[str, Mark]

    def drop(self, path: str) -> None:
        """Remove a key and everything below it, if it is there."""
        parent, _, key = path.rpartition(".")
        holder: Any = self.data
        for part in parent.split(".") if parent else []:
            holder = holder.get(part) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and key in holder:
            for each in paths_below(holder.pop(key), path):
                self.marks.pop(each, None)


def merge(base: Layer, top: Layer) -> Layer:
    """Return `top` over `base`: mappings are merged key by key, lists and single values are replaced.

    Where `use` changes, the own keys of the part that was named before are dropped; `train.steps` replaces
    `train.epochs` and the reverse, since one of them alone says how long.
    """
    merged = Layer(_copy(base.data), dict(base.marks))
    if "" in top.marks:
        merged.marks[""] = top.marks[""]
    _replace_length(merged, top.data)
    _merge_into(merged, merged.data, top, top.data, "")
    return merged


def _replace_length(merged: Layer, top: Mapping[str, Any]) -> None:
    given = top.get("train")
    if isinstance(given, dict) and ("steps" in given) != ("epochs" in given):
        merged.drop("train.epochs" if "steps" in given else "train.steps")


def _merge_into(merged: Layer, base: dict[str, Any], top_layer: Layer, top: Mapping[str, Any], path: str) -> None:
    if "use" in top and top["use"] != base.get("use", _DEFAULT_USE.get(path)):
        drop_own_keys(merged, base, path)
    for key, value in top.items():
        child = f"{path}.{key}" if path else key
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge_into(merged, base[key], top_layer, value, child)
            merged.marks[child] = top_layer.marks.get(child, merged.marks.get(child, Mark("", 0, 0, 0, 0)))
            continue
        merged.drop(child)
        base[key] = _copy(value)
        marks = top_layer.marks
        merged.marks.update({each: marks[each] for each in paths_below(value, child) if each in marks})


def drop_own_keys(layer: Layer, part: Mapping[str, Any], path: str) -> None:
    """Remove the keys that belong to the part named by `use`, not to the section that holds it."""
    for key in [key for key in part if key not in _SHARED_KEYS.get(path, ()) and key != "use"]:
        layer.drop(f"{path}.{key}" if path else key)


def own_keys(part: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return the part's own keys and values (all but `use` and those of the section)."""
    shared = _SHARED_KEYS.get(path, frozenset())
    return {key: value for key, value in part.items() if key != "use" and key not in shared}


def shared_keys(path: str) -> tuple[str, ...]:
    """Return the keys that stand beside the part's own: `use`, and those of the section that holds it."""
    return ("use", *(key for key in OptimSection.model_fields if key != "use")) if path in _SHARED_KEYS else ("use",)


def default_use(path: str) -> str | None:
    """Return which part a section names when the file does not say `use`; None when it must."""
    return _DEFAULT_USE.get(path)


def paths_below(value: Any, path: str) -> Iterator[str]:
    """Yield a value's path and those of everything in it."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from paths_below(each, f"{path}.{key}")


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(each) for key, each in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list) else value
