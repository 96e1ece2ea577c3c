"""A point of a sweep: plain values by dotted path into the job. Put into a job's plain data, named, and hashed here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from orchestrator.spec.places import Layer, default_use, drop_own_keys

Point = Mapping[str, Any]
_LONGEST_NAME = 72


class NoSuchPlaceError(Exception):
    """A path leads into something that has no keys, or to an item that a list does not have."""


def apply_point(data: Mapping[str, Any], point: Point) -> dict[str, Any]:
    """Return a job's plain data, without its sweep, with the point's values in it. Raises NoSuchPlaceError.

    Parents are set before what lies below them, and `use` before the part's own keys, which it replaces.
    """
    layer = Layer(plain_copy({key: value for key, value in data.items() if key != "sweep"}), {})
    for path in sorted(point, key=lambda path: (path.count("."), not path.endswith("use"))):
        _set(layer, path, plain_copy(point[path]))
    return layer.data


def _set(layer: Layer, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    holder: Any = layer.data
    for part, below in zip(parents, path.split(".")[1:], strict=True):
        if isinstance(holder, dict):
            if holder.get(part) is None:
                if below.isdigit():
                    raise NoSuchPlaceError(f"{path}: the job does not write the list {part}")
                holder[part] = {}
            holder = holder[part]
        else:
            holder = holder[_index(holder, part, path)]
    if not isinstance(holder, dict):
        holder[_index(holder, last, path)] = value
        return
    parent = ".".join(parents)
    if last == "use" and value != holder.get("use", default_use(parent)):
        drop_own_keys(layer, holder, parent)
    other = {"train.steps": "epochs", "train.epochs": "steps"}.get(path)
    if other is not None:
        holder.pop(other, None)
    holder[last] = value


def _index(holder: Any, part: str, path: str) -> int:
    if isinstance(holder, list) and part.isdigit() and int(part) < len(holder):
        return int(part)
    size = f"a list of {len(holder)}" if isinstance(holder, list) else "no section"
    raise NoSuchPlaceError(f"{path}: '{part}' is looked for in {size}")


def plain_copy(value: Any) -> Any:
    """Return nested plain data anew, tuples as lists."""
    if isinstance(value, Mapping):
        return {key: plain_copy(each) for key, each in value.items()}
    return [plain_copy(each) for each in value] if isinstance(value, list | tuple) else value


def value_at(data: Any, path: str) -> Any:
    """Return the value at a dotted path of plain data. Raises KeyError when there is none."""
    for part in path.split("."):
        try:
            data = data[int(part)] if isinstance(data, list) else data[part]
        except (KeyError, IndexError, TypeError, ValueError):
            raise KeyError(path) from None
    return data


def point_hash(point: Point) -> str:
    """Return 16 hex digits that name the point: equal values give equal digits, whatever their order."""
    text = json.dumps(plain_copy(point), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def point_name(point: Point) -> str:
    """Return the point in few words: `lr 0.0021, channels 16-32`; keys are the last parts of the paths where unique."""
    shorts = short_keys(point)
    text = ", ".join(f"{shorts[path]} {_label(value)}" for path, value in point.items())
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 3] + "..."


def _label(value: Any) -> str:
    """Return a value for a name: of a list of parts what they are, since their keys may be parameters themselves."""
    if isinstance(value, list | tuple) and value and all(isinstance(each, Mapping) and "use" in each for each in value):
        return "-".join(str(each["use"]) for each in value)
    return short_value(value)


def short_keys(paths: Any) -> dict[str, str]:
    """Return for every path the shortest end of it that no other path has."""
    found: dict[str, str] = {}
    for path in paths:
        parts = path.split(".")
        for count in range(1, len(parts) + 1):
            short = ".".join(parts[-count:])
            if not any(other != path and f".{other}".endswith(f".{short}") for other in paths):
                break
        found[path] = short
    return found


def short_value(value: Any) -> str:
    """Return a value in few characters: three digits of a number, a list with dashes, a part by its `use`."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return "-".join(short_value(each) for each in value) or "[]"
    if isinstance(value, Mapping):
        rest = " ".join(f"{key} {short_value(each)}" for key, each in value.items() if key != "use")
        return f"{value.get('use', '')} {rest}".strip() or "defaults"
    return str(value)
