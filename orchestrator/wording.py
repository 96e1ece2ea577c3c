"""Plain words for what a key takes, for what was given instead, and for how to mend it, made from a JSON Schema.

`complaints` makes problems of them; the reference and `ls` use the same words.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

Schema = Mapping[str, Any]
_NUMBER_TEXT = re.compile(r"[-+]?[0-9][0-9_,]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?")
_TRUE, _FALSE = {"yes", "on", "y", "true"}, {"no", "off", "n", "false"}


def join(*parts: object) -> str:
    """Return a dotted path of the parts that are not empty."""
    return ".".join(str(part) for part in parts if str(part) != "")


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known word closest to `word`; None when none is close."""
    import difflib  # only when something is misspelt: the command line starts without it

    lower = {item.lower(): item for item in known}
    for item in lower:
        if sorted(item) == sorted(word.lower()):  # letters that changed places, also in a word of two or three
            return lower[item]
    close = difflib.get_close_matches(word.lower(), list(lower), n=1, cutoff=cutoff)
    return lower[close[0]] if close else None


def listed(words: Iterable[object], limit: int = 14) -> str:
    """Return the words with commas; a long list is cut and says how many are left."""
    items = [str(word) for word in words]
    rest = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {rest} more" if rest > 0 else "")


def shown(value: object) -> str:
    """Return a value as a job file would spell it, cut to a readable length."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, str):
        text = f"the text '{value}'"
    elif isinstance(value, Mapping):
        return f"a mapping ({listed(value, 4)})" if value else "an empty mapping"
    else:
        text = json.dumps(list(value) if isinstance(value, tuple) else value, default=str)
    return text if len(text) <= 70 else text[:66] + " ..."


def resolve(node: Schema, root: Schema) -> Schema:
    """Follow `$ref` until a node that says something itself."""
    while "$ref" in node:
        node = root.get("$defs", {})[node["$ref"].rsplit("/", 1)[-1]]
    if list(node.get("allOf", [])) and len(node["allOf"]) == 1 and "type" not in node:
        return resolve(node["allOf"][0], root)
    return node


def expected(node: Schema, root: Schema) -> str:
    """Say in words what a JSON Schema node takes: `a whole number of at least 1, or auto`."""
    node = resolve(node, root)
    if "anyOf" in node or "oneOf" in node:
        choices = [expected(each, root) for each in node.get("anyOf", node.get("oneOf", []))]
        return " or ".join(dict.fromkeys(choices))
    if "const" in node:
        return str(node["const"]) if not isinstance(node["const"], bool) else str(node["const"]).lower()
    if "enum" in node:
        return " or ".join(str(each) for each in node["enum"])
    named = {"boolean": "true or false", "null": "null", "string": "text"}
    kind = str(node.get("type", ""))
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range(node)
    if kind == "string" and "pattern" in node:
        return "lower-case letters, digits and dashes, at most 63, starting with a letter or digit"
    if kind == "array":
        return _list_text(node, root)
    if kind == "object":
        return _mapping_text(node, root)
    return named.get(kind, "a value")


def _range(node: Schema) -> str:
    low, above = node.get("minimum"), node.get("exclusiveMinimum")
    high, below = node.get("maximum"), node.get("exclusiveMaximum")
    if node["type"] == "integer":
        low = above + 1 if above is not None else low
        high = below - 1 if below is not None else high
        above = below = None
    texts = [(low, "of at least {:g}"), (above, "above {:g}"), (high, "of at most {:g}"), (below, "below {:g}")]
    found = [text.format(bound) for bound, text in texts if bound is not None]
    return f" {' and '.join(found)}" if found else ""


def _list_text(node: Schema, root: Schema) -> str:
    if "prefixItems" in node:
        items = [expected(each, root) for each in node["prefixItems"]]
        return f"a list of {len(items)}: {', '.join(items)}"
    if "items" not in node:
        return "a list"
    return f"a list, each item {expected(node['items'], root)}"


def _mapping_text(node: Schema, root: Schema) -> str:
    keys = list(node.get("properties", {}))
    if "use" in keys:
        return "{use: NAME, ...}"
    if keys:
        return f"a mapping (keys: {listed(keys)})"
    extra = node.get("additionalProperties")
    return f"a mapping, each value {expected(extra, root)}" if isinstance(extra, Mapping) else "a mapping"


def node_at(path: Iterable[object], root: Schema) -> Schema:
    """Return the schema node of a path of keys and indices; an empty node when the schema says nothing of it."""
    node = resolve(root, root)
    for part in path:
        node = _child(node, str(part), root)
    return node


def _child(node: Schema, part: str, root: Schema) -> Schema:
    for each in node.get("anyOf", [node]):
        option = resolve(each, root)
        if part in option.get("properties", {}):
            return resolve(option["properties"][part], root)
        if part.isdigit() and isinstance(option.get("items"), Mapping):
            return resolve(option["items"], root)
        if part.isdigit() and int(part) < len(option.get("prefixItems", [])):
            return resolve(option["prefixItems"][int(part)], root)
        if isinstance(option.get("additionalProperties"), Mapping):
            return resolve(option["additionalProperties"], root)
    return {}


def repair(value: object, node: Schema, root: Schema) -> str:
    """Return one concrete way to mend a value that a node does not take; empty when there is none to offer."""
    kinds = _kinds(node, root)
    if isinstance(value, str):
        return _repair_text(value, kinds, node, root)
    if isinstance(value, float) and "integer" in kinds and math.isfinite(value):
        return f"write {max(round(value), 1)}"
    if value is None and "properties" in node:
        return "remove the line, or give it keys"
    if value is None:
        return "give it a value, or remove the line"
    if isinstance(value, bool | int | float) and "string" in kinds:
        return f'put it in quotes: "{json.dumps(value)}"'
    if isinstance(value, Mapping) and "string" in kinds and len(value) == 1:
        (key, below), *_ = value.items()
        return f'put it in quotes if it is text: "{key}: {below}"'
    if "array" in kinds and not isinstance(value, list):
        return f"write a list: [{json.dumps(value, default=str)}]"
    return _fallback(value, node, root)


def _fallback(value: object, node: Schema, root: Schema) -> str:
    """The nearest bound, else the default, else a choice."""
    for each in [node, *(resolve(option, root) for option in node.get("anyOf", []))]:
        if isinstance(value, int | float) and not isinstance(value, bool):
            if value <= each.get("exclusiveMinimum", -math.inf):
                low = each["exclusiveMinimum"]
                return f"write {low + 1:g} or more" if each["type"] == "integer" else f"write a number above {low:g}"
            if value < each.get("minimum", -math.inf):
                return f"write {each['minimum']:g} or more"
            if value > each.get("maximum", math.inf):
                return f"write {each['maximum']:g} or less"
    words, default = _words(node, root), node.get("default")
    if default is not None and not isinstance(default, dict) and len(words) != 1:
        return f"remove it for the default: {json.dumps(default)}"
    return f"write {words[0]}" if words else "remove the line, or write what it takes"


def _kinds(node: Schema, root: Schema) -> set[str]:
    node = resolve(node, root)
    found = {str(node["type"])} if "type" in node else set()
    for each in node.get("anyOf", []):
        found |= _kinds(each, root)
    return found


def _words(node: Schema, root: Schema) -> list[str]:
    node = resolve(node, root)
    found = [str(each) for each in node.get("enum", [])] + ([str(node["const"])] if "const" in node else [])
    return found + [word for each in node.get("anyOf", []) for word in _words(each, root)]


def _repair_text(value: str, kinds: set[str], node: Schema, root: Schema) -> str:
    if "boolean" in kinds and value.lower() in _TRUE | _FALSE:
        return f"write {'true' if value.lower() in _TRUE else 'false'}"
    if kinds & {"integer", "number"} and _NUMBER_TEXT.fullmatch(value):
        number = float(value.replace("_", "").replace(",", ""))
        return f"write it without quotes, underscores or leading zeros: {number:g}"
    close = nearest(value, _words(node, root))
    if close is not None:
        return f"did you mean `{close}`?"
    if "use" in node.get("properties", {}):
        return f"write {{use: {value}}}"
    slug = re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")[:63]
    if "pattern" in node and slug:
        return f"write {slug}"
    return f"write a list: [{value}]" if "array" in kinds and value else _fallback(value, node, root)
