"""Everything that is wrong with a job's plain data, in plain words: schema, plug-ins, their options, contradictions.

Called by `spec.load`. Places (file, line, column) are added there; nothing here reads a file or runs a user's code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

from pydantic import ValidationError

from orchestrator import plugins
from orchestrator.complaints import Words, from_pydantic
from orchestrator.errors import JobFileError, Problem
from orchestrator.spec.job import JobSpec, TrainSection
from orchestrator.spec.places import default_use, own_keys, shared_keys
from orchestrator.spec.steps import calibration_problems, order_problems
from orchestrator.spec.sweep import ELSEWHERE, REFUSED
from orchestrator.wording import join, nearest


class Part(NamedTuple):
    """A replaceable part as it stands in the data: dotted path, plug-in group, name, own keys."""

    path: str
    group: str
    use: str
    options: Mapping[str, Any]


# What people write elsewhere, where the nearest spelling would be wrong advice.
_SYNONYMS = {
    "train.precision": dict.fromkeys(("fp16", "float16", "half", "bfloat16", "mixed", "amp", "bf16-mixed"), "bf16")
    | dict.fromkeys(("float32", "single", "tf32"), "fp32")
    | dict.fromkeys(("float64", "double"), "fp64"),
}
_PARTS = {
    "model": "models",
    "data": "data",
    "optim": "optimizers",
    "optim.schedule": "schedules",
    "train.loss": "losses",
    "train.metrics": "metrics",
    "train.callbacks": "callbacks",
    "train.init.cut_from": "models",
    "compress.steps": "compressors",
    "export": "exporters",
    "sweep.search": "searchers",
    "sweep.scheduler": "schedulers",
}


def group_of(path: str) -> str | None:
    """Return the plug-in group whose names `use` takes at a path (`train.metrics.0` -> metrics); None when none is."""
    parent, _, last = path.rpartition(".")
    return _PARTS.get(parent if last.isdigit() else path)


@cache
def job_schema() -> dict[str, Any]:
    """Return the JSON Schema of `JobSpec`, without what plug-ins take (`spec.schema` adds that)."""
    return JobSpec.model_json_schema()


def find_parts(data: Mapping[str, Any]) -> Iterator[Part]:
    """Yield every part that is well-formed enough to be looked up."""
    for path, group in _PARTS.items():
        value: Any = data
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        many = isinstance(value, list)
        for index, each in enumerate(value if isinstance(value, list) else [value]):
            if each is None and path == "optim":
                each = {}
            if not isinstance(each, Mapping):
                continue
            # A schedule says `use`; the optimiser need not, since it is a section too.
            use = each.get("use", default_use(path) if path == "optim" else None)
            if isinstance(use, str):
                yield Part(join(path, index) if many else path, group, use, own_keys(each, path))


def find_problems(data: Mapping[str, Any]) -> tuple[JobSpec | None, list[Problem], list[str]]:
    """Return the job (None when its data does not fit the sections), all problems, and notes for the user."""
    spec, problems = _schema_problems(data)
    notes: list[str] = []
    for part in find_parts(data):
        found, note = _part_problems(part, data)
        problems += found
        notes += [note] if note else []
    problems += _contradictions(data)
    problems += order_problems([part for part in find_parts(data) if part.group == "compressors"])
    problems += calibration_problems(data)
    return spec, _without_noise(problems), notes


def _schema_problems(data: Mapping[str, Any]) -> tuple[JobSpec | None, list[Problem]]:
    try:
        # Strict JSON mode: a list is a tuple and 1 is a float, but "1" is not a number and yes is not true.
        return JobSpec.model_validate_json(json.dumps(data), strict=True), []
    except ValidationError as error:
        errors = [item for item in error.errors(include_url=False) if not _is_length(item)]
    elsewhere = {**_homes(), **_option_homes(data)}
    problems = from_pydantic(errors, job_schema(), data, Words("a job", elsewhere=elsewhere))
    return None, [_advise_part(problem, data) for problem in problems]


def _is_length(item: Mapping[str, Any]) -> bool:
    return bool(
        item["type"] == "value_error" and item["loc"] == ("train",)
    )  # `_contradictions` says it with both lines


def _homes() -> dict[str, str]:
    """Where a key of a section belongs, for a key that stands in a wrong section."""
    found: dict[str, str] = {}
    for name, field in JobSpec.model_fields.items():
        for key in getattr(field.annotation, "model_fields", {}):
            if key not in ("use", "description"):
                found.setdefault(key, f"{name}.{key}")
    return found


def _option_homes(data: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in find_parts(data):
        config = _config_of(part)
        for key in getattr(config, "__dataclass_fields__", {}):
            found.setdefault(key, join(part.path, key))
    return found


def _advise_part(problem: Problem, data: Mapping[str, Any]) -> Problem:
    """Give the names that exist where `use` is missing, or where something else stands for a part."""
    synonym = _SYNONYMS.get(problem.path, {}).get(str(_value_at(data, problem.path)))
    if synonym is not None:
        return replace(problem, hint=f"write {synonym}")
    path = problem.path.removesuffix(".use")
    group = group_of(path)
    if group is None or problem.code == "unknown-key":
        return problem
    known = plugins.names(group)
    names = f"known: {', '.join(known) or 'none'}; or an import path"
    if problem.code == "missing-key":
        part = _value_at(data, path)
        close = nearest("use", list(part), 0.5) if isinstance(part, Mapping) else None
        name = known[0] if known else "NAME"
        lead = f"did you mean `use` for `{close}`?" if close else f"add `use: {name}`"
        hint = f"{lead} {names}" if path != problem.path else f"add `{path}: {{use: {name}}}`; {names}"
    else:
        hint = f"{problem.hint or 'write {use: NAME}'}; {names}"
    return Problem(problem.path, problem.message, hint, problem.code)


def _value_at(data: Any, path: str) -> Any:
    for key in path.split("."):
        data = _item(data, key)
    return data


def _item(data: Any, key: str) -> Any:
    if isinstance(data, list):
        return data[int(key)]
    return data.get(key) if isinstance(data, Mapping) else None


def _config_of(part: Part) -> type | None:
    try:
        if plugins.find_problem(part.group, part.use) is None:
            return plugins.light_config(part.group, part.use)
    except JobFileError:
        return None
    return None


def _part_problems(part: Part, data: Mapping[str, Any]) -> tuple[list[Problem], str]:
    try:
        problem = plugins.find_problem(part.group, part.use)
        config = None if problem else plugins.light_config(part.group, part.use)
    except JobFileError as error:
        problem = Problem("use", error.message, error.hint, "broken-plugin")
        config = None
    if problem is not None:
        why = REFUSED.get(part.group, {}).get(part.use.lower())
        message, hint = f"{part.use} is not offered: {why}" if why else problem.message, problem.hint
        message, hint = ELSEWHERE.get((part.group, part.use.lower()), (message, hint))
        return [Problem(join(part.path, "use"), message, hint, problem.code)], ""
    if config is None:
        # The plan says it of model and data, since it misses their numbers too.
        told = part.group in ("models", "data")
        return (
            [],
            "" if told else f"{part.path}: the options of {part.use} are checked in the worker, where it is built",
        )
    found = plugins.config_problems(config, part.options, takes=part.use, also=shared_keys(part.path))
    if part.path == "optim":
        found += _group_problems(config, data, part)
    lists = f"`orchestrator ls {part.group}` lists the keys of {part.use} and their defaults"
    return [Problem(join(part.path, each.path), each.message, each.hint or lists, each.code) for each in found], ""


def _group_problems(config: type, data: Mapping[str, Any], part: Part) -> list[Problem]:
    """A parameter group may set any key of its optimiser; what it leaves out is taken from the optimiser's own keys."""
    groups = _value_at(data, "optim.groups")
    found: list[Problem] = []
    for index, group in enumerate(groups if isinstance(groups, list) else []):
        if not isinstance(group, Mapping):
            continue
        own = {key: value for key, value in group.items() if key not in ("match", "use")}
        inner = plugins.config_problems(config, {**part.options, **own}, takes=part.use)
        for each in inner:
            if each.path.partition(".")[0] in own:
                found.append(Problem(join("groups", index, each.path), each.message, each.hint, each.code))
        if "use" in group:
            found.append(
                Problem(
                    join("groups", index, "use"),
                    "unknown key",
                    "a group has `match` and keys of the optimiser",
                    "unknown-key",
                )
            )
    return found


def _contradictions(data: Mapping[str, Any]) -> list[Problem]:
    found: list[Problem] = []
    train, cluster = data.get("train"), data.get("cluster")
    if isinstance(train, Mapping):
        found += _length_problems(train)
    if isinstance(cluster, Mapping) and cluster.get("backend") == "nccl" and cluster.get("gpus_per_worker") == 0:
        found.append(
            Problem(
                "cluster.backend", "nccl needs GPUs, but cluster.gpus_per_worker is 0", "write gloo", "contradiction"
            )
        )
    exports = data.get("export")
    names = [each.get("use") for each in exports if isinstance(each, Mapping)] if isinstance(exports, list) else []
    for index, name in enumerate(names):
        if isinstance(name, str) and name in names[:index]:
            found.append(Problem(f"export.{index}", f"{name} is listed twice", "remove one of them", "contradiction"))
    return found


def _length_problems(train: Mapping[str, Any]) -> list[Problem]:
    steps, epochs = train.get("steps"), train.get("epochs")
    if steps is not None and epochs is not None:
        message = f"train.epochs = {epochs} contradicts train.steps = {steps}: one of them says how long"
        return [Problem("train.epochs", message, "remove one of the two", "contradiction")]
    misspelt = any(nearest(key, ["steps", "epochs"]) for key in train if key not in TrainSection.model_fields)
    if steps is None and epochs is None and not misspelt:
        return [Problem("train", "neither steps nor epochs is given", "add `epochs: 5` or `steps: 500`", "missing-key")]
    return []


def _without_noise(problems: list[Problem]) -> list[Problem]:
    """Keep the first problem of each path."""
    return list({problem.path: problem for problem in reversed(problems)}.values())[::-1]
