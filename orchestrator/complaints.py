"""What pydantic refuses, said as `Problem`s in plain words: one for each place, with one repair.

Called for job sections and for the options of plug-ins alike, so that both complain in the same words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import Problem
from orchestrator.wording import Schema, expected, join, listed, nearest, node_at, repair, shown

MAX_PROBLEMS = 100  # of one section or part; more are counted, not described
_UNKNOWN = {"extra_forbidden", "unexpected_keyword_argument"}


@dataclass(frozen=True)
class Words:
    """What problems may say beyond the schema.

    `takes` names who takes the keys of the top level, `also` are keys that may stand beside them, and `elsewhere` maps
    a key to the dotted path where it belongs.
    """

    takes: str
    also: Sequence[str] = ()
    elsewhere: Mapping[str, str] = field(default_factory=dict)


def unknown_key(path: str, known: Iterable[str], words: Words, takes: str) -> Problem:
    """Return the problem of a key that nobody reads, with the nearest one that is read."""
    known = list(known)
    key = path.rsplit(".", 1)[-1]
    takes = f"{takes or 'this section'} takes: {listed(known) or 'no keys'}"
    meant = [*known, *words.also] if "." not in path else known
    close = nearest(key, meant, 0.7)
    home = words.elsewhere.get(key)
    if close is None and home is not None and home != path:
        return Problem(path, "unknown key", f"it belongs elsewhere: `{home}`. {takes}", "unknown-key")
    close = close or nearest(key, meant)
    advice = f"did you mean `{close}`? " if close else ""
    return Problem(path, "unknown key", advice + takes, "unknown-key")


def from_pydantic(
    errors: Iterable[Mapping[str, Any]],
    root: Schema,
    data: object,
    words: Words,
) -> list[Problem]:
    """Return one plain problem for each place that pydantic complains about (branches of a union count as one).

    `errors` are `ValidationError.errors()`, `root` is the JSON Schema of what was validated, `data` the plain input.
    """
    found: dict[tuple[str, ...], Problem] = {}
    errors = list(errors)
    unknown = {_place(item, data) for item in errors[:MAX_PROBLEMS] if item["type"] in _UNKNOWN}
    for item in errors[:MAX_PROBLEMS]:
        place = _place(item, data)
        if place in found or (item["type"] == "missing" and _misspelt(place, unknown)):
            continue
        found[place] = _problem(item, place, root, data, words)
    if (rest := len(errors) - MAX_PROBLEMS) > 0:
        place = _place(errors[MAX_PROBLEMS], data)
        found[place] = Problem(join(*place), f"{rest} more problems begin here", "mend those above first", "more")
    return list(found.values())


def _place(item: Mapping[str, Any], data: object) -> tuple[str, ...]:
    """Keep of pydantic's location what is a key or an index of the data; names of union branches fall out."""
    place: list[str] = []
    for part in item["loc"]:
        if isinstance(data, Mapping) and str(part) in data:
            data = data[str(part)]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        elif item["type"] != "missing" or part != item["loc"][-1]:
            continue
        place.append(str(part))
    return tuple(place)


def _misspelt(missing: tuple[str, ...], unknown: set[tuple[str, ...]]) -> bool:
    siblings = [place[-1] for place in unknown if place[:-1] == missing[:-1] and place]
    return any(nearest(key, [missing[-1]]) for key in siblings)


def _problem(
    item: Mapping[str, Any],
    place: tuple[str, ...],
    root: Schema,
    data: object,
    words: Words,
) -> Problem:
    path = join(*place)
    kind = str(item["type"])
    if kind in _UNKNOWN:
        parent = node_at(place[:-1], root)
        takes = words.takes if len(place) == 1 else join(*place[:-1])
        return unknown_key(path, parent.get("properties", {}), words, takes)
    node = node_at(place, root)
    if kind == "missing":
        return Problem(
            path, "required key is missing", f"add `{place[-1]}: ...` ({expected(node, root)})", "missing-key"
        )
    if kind in ("value_error", "assertion_error"):
        message = str(item["msg"]).split(", ", 1)[-1]
        named = re.match(r"[`'\"]?([\w.]*)", message)
        key = named.group(1).rstrip(".") if named else ""  # a check that begins with a key's name is about that key
        known = node_at(place, root).get("properties", {})
        return Problem(join(path, key) if key.partition(".")[0] in known else path, message, "", "bad-value")
    value = item["input"]
    if not node:
        return Problem(path, f"{item['msg']}; got {shown(value)}", "", "bad-value")
    takes_what = expected(node, root).removesuffix(" or null")
    return Problem(path, f"takes {takes_what}; got {shown(value)}", repair(value, node, root), _code(kind))


def _code(kind: str) -> str:
    ranges = ("greater_than", "less_than", "finite_number", "too_short", "too_long", "multiple_of")
    if kind.startswith(ranges):
        return "out-of-range"
    return "not-a-choice" if kind in ("literal_error", "string_pattern_mismatch", "enum") else "wrong-type"
