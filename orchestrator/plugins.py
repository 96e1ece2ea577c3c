"""How a name in a job file becomes an object: entry points for names, `package.module:attr` for a user's own code.

A plug-in is either an object (module or class) with `Config` (a frozen dataclass, standard library only) and
`build(config, ...)`, or any callable. Options of the first kind are validated before anything starts; options of the
second are bound to its signature where it is built, in the worker.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from orchestrator.complaints import Words, from_pydantic
from orchestrator.errors import JobFileError, Problem
from orchestrator.wording import listed, nearest

GROUPS = (
    "models", "data", "optimizers", "schedules", "losses", "metrics", "callbacks", "exporters", "searchers",
    "schedulers", "compressors",
)  # fmt: skip
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(:[A-Za-z_]\w*)?")


@cache
def _installed() -> Any:
    return entry_points()  # opens a file of every installed package: asked once for all groups


@cache
def _entries(group: str) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in _installed().select(group=f"orchestrator.{group}"):
        if entry.name in found and found[entry.name].value != entry.value:
            raise JobFileError(
                f"two installed packages register {group} '{entry.name}': {found[entry.name].value} and {entry.value}",
                hint="uninstall one of them, or name the one you mean by its import path",
            )
        found[entry.name] = entry
    return found


def names(group: str) -> list[str]:
    """Return the registered names of a group, sorted."""
    return sorted(_entries(group))


def entry_value(group: str, name: str) -> str:
    """Return the import path behind a registered name."""
    return _entries(group)[name].value


def is_path(name: str) -> bool:
    """Say whether `name` can only be an import path (`package.module:attr`, `package.module`), not a built-in's name.

    A bare `module` may be either: `find_problem` looks for the built-in first.
    """
    return ("." in name or ":" in name) and _PATH.fullmatch(name) is not None


def find_problem(group: str, name: str) -> Problem | None:
    """Return why `use: name` cannot be resolved, without running a user's code; None when it can.

    A user's module is looked up and its source is parsed, never imported here.
    """
    if name in _entries(group):
        return None
    if is_path(name):
        return _path_problem(name)
    module = _find_module(name) if name.isidentifier() else None
    source = module is not None and (module.origin or "").endswith(".py")
    defined = _defined_in(module) if module is not None and source else None
    if source and (defined is None or defined & {"Config", "*", "__getattr__"}):
        return None  # a module in the working folder, named without dots
    known = names(group)
    close = nearest(name, known)
    hint = f"did you mean `{close}`? " if close else ""
    if source:
        hint += f"The module '{name}' has no `Config`: name what you mean in it, `{name}:MyClass`; "
    return Problem(
        path="use",
        code="unknown-plugin",
        message=f"no {group} plug-in is called '{name}'",
        hint=f"{hint}known: {', '.join(known) or 'none'}; or an import path such as my_package.my_module:MyClass",
    )


def _path_problem(name: str) -> Problem | None:
    module_name, _, attr = name.partition(":")
    found = _find_module(module_name)
    if found is None:
        hint = "run from the folder that holds it, or install it"
        return Problem("use", f"module '{module_name}' cannot be found", hint, "no-module")
    defined = _defined_in(found) if attr else None
    if defined is None or attr in defined or "*" in defined or "__getattr__" in defined:
        return None
    close = nearest(attr, defined)
    public = sorted(each for each in defined if not each.startswith("_"))
    hint = f"did you mean `{module_name}:{close}`?" if close else f"it defines: {listed(public, 8) or 'nothing'}"
    return Problem("use", f"module '{module_name}' has no '{attr}'", hint, "no-attribute")


def _find_module(name: str) -> ModuleSpec | None:
    """Find a module without importing anything: `importlib.util.find_spec` would run the packages above it."""
    path: Sequence[str] | None = None
    found: ModuleSpec | None = None
    walked = ""
    for part in name.split("."):
        walked = f"{walked}.{part}".lstrip(".")
        if walked in sys.modules and sys.modules[walked].__spec__ is not None:
            found = sys.modules[walked].__spec__
        else:
            found = next((spec for spec in (_ask(finder, walked, path) for finder in sys.meta_path) if spec), None)
        if found is None:
            return None
        path = list(found.submodule_search_locations or ())
    return found


def _ask(finder: Any, name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    find = getattr(finder, "find_spec", None)
    found = find(name, path) if find is not None else None
    return found if isinstance(found, ModuleSpec) else None


def _defined_in(found: ModuleSpec) -> set[str] | None:
    """Return the names at the top of a module's source; None when there is no source to read."""
    if not found.origin or not found.origin.endswith(".py"):
        return None
    try:
        with open(found.origin, "rb") as file:
            return _top_level_names(ast.parse(file.read()))
    except (OSError, SyntaxError, ValueError):
        return None


def _top_level_names(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found.update(target.id for target in targets if isinstance(target, ast.Name))
    return found


def load(group: str, name: str) -> Any:
    """Import and return the plug-in. Raises JobFileError when there is none of that name or it cannot be imported."""
    entry = _entries(group).get(name)
    problem = None if entry is not None else find_problem(group, name)
    if problem is not None:
        raise JobFileError(problem.message, hint=problem.hint, problems=[problem])
    module_name, _, attr = name.partition(":")
    try:
        if entry is not None:
            return entry.load()
        module = importlib.import_module(module_name)
        return getattr(module, attr) if attr else module
    except (ImportError, AttributeError) as error:
        raise JobFileError(
            f"{group} plug-in {name} cannot be imported: {error}", hint="install what it needs"
        ) from error


def light_config(group: str, name: str) -> type | None:
    """Return the plug-in's `Config` dataclass if it can be had without running a user's class; None otherwise.

    Registered plug-ins and modules that define a `Config` (`use: my_package.my_model`, no `:attr`) have one. The source
    of a module that is not registered is parsed first, so that one which is no plug-in is never imported. What has no
    `Config` is checked in the worker. Raises JobFileError when the plug-in cannot be imported.
    """
    if name not in _entries(group):
        module_name, _, attr = name.partition(":")
        found = None if attr else _find_module(module_name)
        if found is None or "Config" not in (_defined_in(found) or set()):
            return None
    config = getattr(load(group, name), "Config", None)
    return config if isinstance(config, type) and is_dataclass(config) else None


def config_problems(
    config: type, options: Mapping[str, Any], *, takes: str = "", also: Sequence[str] = ()
) -> list[Problem]:
    """Return what is wrong with `options` for a `Config` dataclass: unknown and missing keys, types, its own checks.

    Paths are relative to the part; `takes` is the part's name for the sentence `NAME takes: ...`, `also` are keys that
    may stand beside the options, of which a misspelt one may be meant.
    """
    from pydantic import ValidationError

    try:
        _validate(config, options)
    except ValidationError as error:
        schema = config_schema(config)
        return from_pydantic(
            error.errors(include_url=False), schema, dict(options), Words(takes or config.__name__, also)
        )
    return []


def _validate(config: type, options: Mapping[str, Any]) -> Any:
    adapter = _adapter(config)
    try:
        text = json.dumps(dict(options))
    except TypeError:  # built in a notebook from other than plain data
        return adapter.validate_python(dict(options))
    # Strict JSON mode: a list is a tuple and 1 is a float, but "1" is not a number and 1 is not true.
    return adapter.validate_json(text, strict=True)


@cache
def _adapter(config: type) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    # pydantic reads its settings from this attribute of a plain dataclass; a subclass leaves the user's class alone.
    settings = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    body = {"__pydantic_config__": settings, "__module__": config.__module__, "__doc__": config.__doc__}
    return TypeAdapter(type(config.__name__, (config,), body))


def config_schema(config: type) -> dict[str, Any]:
    """Return the JSON Schema of a `Config` dataclass."""
    from pydantic.errors import PydanticInvalidForJsonSchema

    try:
        return dict(_adapter(config).json_schema())
    except PydanticInvalidForJsonSchema:  # a field of a type that JSON does not know: names are all we can say
        return {"properties": {field.name: {} for field in fields(config)}}


def build_config(config: type, options: Mapping[str, Any]) -> Any:
    """Return an instance of a `Config` dataclass from options. Raises JobFileError listing every problem."""
    problems = config_problems(config, options)
    if problems:
        lines = "; ".join(f"{problem.path}: {problem.message}" for problem in problems)
        raise JobFileError(f"bad options for {config.__module__}: {lines}", hint=problems[0].hint, problems=problems)
    checked = _validate(config, options)
    return config(**{field.name: getattr(checked, field.name) for field in fields(config) if field.init})


def build(group: str, name: str, options: Mapping[str, Any], *args: Any) -> Any:
    """Build a plug-in: `plugin.build(config, *args)` where it has a `Config`, else `plugin(*args, **options)`.

    Raises JobFileError when the options do not fit.
    """
    plugin = load(group, name)
    config = getattr(plugin, "Config", None)
    if isinstance(config, type) and is_dataclass(config):
        return plugin.build(build_config(config, options), *args)
    try:
        inspect.signature(plugin).bind(*args, **options)
    except TypeError as error:
        raise JobFileError(
            f"{group} plug-in {name}: {error}", hint=f"its signature is {inspect.signature(plugin)}"
        ) from error
    return plugin(*args, **options)
