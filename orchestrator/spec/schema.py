"""The job format as JSON Schema (for editors), made from the sections and from what the parts take.

`orchestrator schema` prints it; the repository keeps it in `jobs/job.schema.json`, and a test compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from orchestrator import plugins
from orchestrator.errors import JobFileError
from orchestrator.spec.places import default_use
from orchestrator.spec.problems import group_of, job_schema
from orchestrator.wording import expected, join, resolve

_EXTENDS = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    "description": "Job file (or files) that this one changes, relative to it. Mappings are merged, all else replaced.",
}


def parts_of(group: str, *, built_in: bool) -> dict[str, type]:
    """Return the registered parts of a group that have a `Config`, by name, without those that cannot be imported."""
    found: dict[str, type] = {}
    for name in plugins.names(group):
        if built_in and not plugins.entry_value(group, name).startswith("orchestrator."):
            continue
        try:
            config = plugins.light_config(group, name)
        except JobFileError:
            continue
        if config is not None:
            found[name] = config
    return found


def full_schema(*, built_in: bool = False) -> dict[str, Any]:
    """Return the JSON Schema of a job file with what every installed part (or every built-in) takes."""
    schema = deepcopy(job_schema())
    definitions: dict[str, Any] = schema["$defs"]
    schema["properties"] = {"extends": _EXTENDS, **schema["properties"]}
    # With `extends:` the file below may give what is required.
    schema["anyOf"] = [{"required": schema.pop("required")}, {"required": ["extends"]}]
    definitions["ParamGroup"]["properties"].pop("use")
    for path, node in list(_sections(schema, definitions)):
        for key, value in node.get("properties", {}).items():
            _point_to_group(value, join(path, key), definitions, built_in)
    optim = definitions["OptimSection"]
    _add_choices(optim, "optim", "optimizers", definitions, built_in)
    del definitions["Use"]
    return {**schema, "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "orchestrator job"}


def _sections(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "", schema
    for key, value in schema["properties"].items():
        for each in [value, *value.get("anyOf", [])]:  # a section that may be left out stands beside null
            reference = str(each.get("$ref", "")).rpartition("/")[2]
            if reference in definitions and reference != "Use":
                yield key, definitions[reference]


def _point_to_group(value: dict[str, Any], path: str, definitions: dict[str, Any], built_in: bool) -> None:
    """Replace references to the general `Use` by the definition of the group that this key takes."""
    group = group_of(path)
    if group is None or path == "optim":
        return
    if value.get("$ref") == "#/$defs/Use":
        value["$ref"] = f"#/$defs/{group}"
        if group not in definitions:
            # `use` is not required here: a file that extends another may change single keys of a part.
            definitions[group] = {"type": "object", "properties": {"use": {}}}
            _add_choices(definitions[group], path, group, definitions, built_in)
    for each in [*value.get("anyOf", []), *([value["items"]] if "items" in value else [])]:
        _point_to_group(each, path, definitions, built_in)


def _add_choices(node: dict[str, Any], path: str, group: str, definitions: dict[str, Any], built_in: bool) -> None:
    """Add the names that `use` takes, and for each of them the keys of its `Config`."""
    configs = parts_of(group, built_in=built_in)
    own = dict.fromkeys(node["properties"], True)
    choices = [{"enum": list(configs)}] if configs else []
    node["properties"]["use"] = {
        "anyOf": [*choices, {"type": "string", "pattern": "[.:]"}],
        "description": "Name of a built-in, or the import path of your own (package.module:attr).",
    }
    node["allOf"] = []
    for name, config in configs.items():
        inner = deepcopy(plugins.config_schema(config))
        definitions.update(inner.pop("$defs", {}))
        condition: dict[str, Any] = {"properties": {"use": {"const": name}}}
        if name != default_use(path):
            condition["required"] = ["use"]
        then = {"properties": {**own, **inner.get("properties", {})}, "additionalProperties": False}
        node["allOf"].append({"if": condition, "then": {**then, "required": inner.get("required", [])}})
    if not node["allOf"]:
        del node["allOf"]


def schema_text() -> str:
    """Return the JSON Schema with the built-ins only, as the repository keeps it."""
    return json.dumps(full_schema(built_in=True), indent=1, ensure_ascii=False) + "\n"


def option_rows(config: type) -> list[tuple[str, str, str]]:
    """Return (key, what it takes, default or "required") for every key of a part."""
    schema = plugins.config_schema(config)
    return list(_rows(schema, schema))


def _rows(node: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for key, value in node.get("properties", {}).items():
        yield key, expected(value, root), default_text(key, value, node, root)


def default_text(key: str, value: Mapping[str, Any], node: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    if key in node.get("required", []):
        return "required"
    if "default" not in value:
        return "none" if resolve(value, root).get("type") == "object" else ""
    default = value["default"]
    return str(default) if isinstance(default, str) and default else json.dumps(default)


def summary(thing: object) -> str:
    """Return the first sentence of a docstring, on one line."""
    text = " ".join((getattr(thing, "__doc__", None) or "").split())
    return text.split(". ")[0].rstrip(".") + "." if text else ""
