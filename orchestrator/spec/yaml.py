"""A strict reader of one small YAML document: plain data and the place of every key. `spec.load` calls it.

Refused: duplicate keys, anchors, aliases, tags, merge keys, several documents, keys that are not text, numbers that are
not finite, more than 1 MB, 20 levels or 20,000 values. Only `true` and `false` are booleans, `1e-3` is a number, and
what YAML 1.1 takes for octal numbers, dates or base-60 numbers stays text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from orchestrator.errors import JobFileError, Problem

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_VALUES = 20_000
MAX_PROBLEMS = 100
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF|nan|NaN|NAN)")
_NULL = ("", "~", "null")

# What libyaml or PyYAML says -> (what we say, what to do). The first line whose text occurs in theirs is used.
_SYNTAX = (
    (
        "mapping values are not allowed",
        "a `:` where no key can be",
        "put text that contains `: ` in quotes, or check the indentation",
    ),
    ("found character '\\t'", "a tab", "indent with spaces"),
    ("tab", "a tab", "indent with spaces"),
    ("could not find expected ':'", "a key without `:`", "write `key: value`"),
    ("',' or ']'", "a list that is not closed, or a comma is missing", "close it with `]`"),
    ("',' or '}'", "a mapping that is not closed, or a comma is missing", "close it with `}`"),
    ("escape", "an unknown escape in double quotes", "use single quotes, or double the backslash"),
    ("end of stream", "quotes that are not closed", "close the quotes"),
    ("quoted scalar", "quotes that are not closed", "close the quotes"),
    ("expected <block end>", "indentation that does not line up", "give keys of one section the same indentation"),
    ("expected key", "indentation that does not line up", "give keys of one section the same indentation"),
    ("'-' indicator", "indentation that does not line up", "give items of one list the same indentation"),
    ("block sequence entries", "a list item where none can be", "start the list on its own line"),
    ("cannot start any token", "a character that text without quotes cannot begin with", "put the text in quotes"),
    ("block end", "indentation that does not line up", "give keys of one section the same indentation"),
    ("undefined alias", "an alias", "write the value out"),
    ("node content", "a bracket, comma or sign where a value should stand", "write a value, or put text in quotes"),
    ("control characters", "a control character", "remove it"),
    ("special characters", "a control character", "remove it"),
)


@dataclass(frozen=True)
class Mark:
    """Where a key and its value stand; lines and columns count from 1."""

    file: str
    key_line: int
    key_column: int
    line: int
    column: int


@dataclass
class Document:
    """Plain data (dict, list, str, int, float, bool, None) and the mark of every dotted path (the root's is "")."""

    data: Any
    marks: dict[str, Mark] = field(default_factory=dict)


def read(text: str, file: str) -> Document:
    """Read one document. Raises JobFileError with every problem found; `file` is the name that problems carry."""
    reader = _Reader(text, file)
    document = reader.document()
    if reader.problems:
        raise JobFileError(f"{file} is not a well-formed job file", problems=reader.problems)
    return document


class _Reader:
    """Builds data from PyYAML's event stream; depth is bounded, so recursion is too."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.lines = text.splitlines()
        self.problems: list[Problem] = []
        self.marks: dict[str, Mark] = {}
        self.events: Iterator[Any] = iter(yaml.parse(text, Loader=_Loader))

    def document(self) -> Document:
        """Return the only document; problems are left in `self.problems`."""
        data: Any = None
        try:
            next(self.events)
            start = next(self.events)
            if isinstance(start, yaml.DocumentStartEvent):
                first = next(self.events)
                data = self._node(first, "", first, 1)
                next(self.events)
                if isinstance(event := next(self.events), yaml.DocumentStartEvent):
                    self._report(event, "", "a second document", "one-document", "keep one document in a file")
        except yaml.YAMLError as error:
            self.problems.append(self._syntax(error))
        except _GiveUpError as error:
            self.problems.append(error.problem)
        return Document(data, self.marks)

    def _node(self, event: Any, path: str, key: Any, depth: int) -> Any:
        self.marks[path] = _mark(self.file, key.start_mark, event.start_mark)
        if len(self.marks) > MAX_VALUES:
            raise _GiveUpError(self._problem(event, path, f"more than {MAX_VALUES} values", "too-large", "shorten it"))
        if isinstance(event, yaml.AliasEvent):
            self._report(event, path, f"an alias `*{event.anchor}`", "alias", "write the value out")
            return None
        if event.anchor is not None:
            self._report(event, path, f"an anchor `&{event.anchor}`", "alias", "remove it; `extends:` shares settings")
        if event.tag is not None:
            self._report(event, path, f"a tag `{_short_tag(event.tag)}`", "tag", "remove it; a job file is plain data")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, path)
        if depth > MAX_DEPTH:
            raise _GiveUpError(self._problem(event, path, f"more than {MAX_DEPTH} levels", "too-deep", "flatten it"))
        return self._mapping(path, depth) if isinstance(event, yaml.MappingStartEvent) else self._list(path, depth)

    def _list(self, path: str, depth: int) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self._node(event, f"{path}.{len(items)}".lstrip("."), event, depth + 1))
        return items

    def _mapping(self, path: str, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(key := next(self.events), yaml.MappingEndEvent):
            name = self._key(key, path)
            child = f"{path}.{name}" if path else name
            before = self.marks.get(child)
            kept = dict(self.marks) if name in found else None
            value = self._node(next(self.events), child, key, depth + 1)
            if kept is not None and before is not None:
                self.marks = kept
                advice = f"keep one; the first is on line {before.key_line}"
                self._report(key, child, "the key is there twice", "duplicate-key", advice)
            else:
                found[name] = value
        return found

    def _key(self, event: Any, path: str) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            raise _GiveUpError(self._problem(event, path, "a key that is not text", "bad-key", "write `key: value`"))
        name = str(event.value)
        if event.anchor is not None or event.tag is not None:
            self._report(event, path, "an anchor or tag on a key", "tag", "remove it")
        elif event.implicit[0] and name == "<<":
            self._report(event, path, "a merge key `<<`", "alias", "use `extends:`, or write the keys out")
        elif event.implicit[0] and (name in _NULL or INT.fullmatch(name) or FLOAT.fullmatch(name)):
            self._report(event, path, f"a key that is not text: `{name}`", "bad-key", "put it in quotes if it is meant")
        return name

    def _scalar(self, event: Any, path: str) -> Any:
        text = str(event.value)
        if event.style or not event.implicit[0]:  # libyaml says "" where PyYAML says None
            return text
        if text in _NULL:
            return None
        if text in ("true", "false"):
            return text == "true"
        if INT.fullmatch(text) and len(text) <= 20:
            return int(text)
        if FLOAT.fullmatch(text) and math.isfinite(float(text)):
            return float(text)
        if INT.fullmatch(text) or FLOAT.fullmatch(text) or NOT_FINITE.fullmatch(text):
            self._report(
                event, path, f"a number that is too large or not finite: {text[:30]}", "number", "write a finite one"
            )
        return text

    def _report(self, event: Any, path: str, message: str, code: str, hint: str) -> None:
        problem = self._problem(event, path, message, code, hint)
        if len(self.problems) >= MAX_PROBLEMS:
            raise _GiveUpError(problem)
        self.problems.append(problem)

    def _problem(self, event: Any, path: str, message: str, code: str, hint: str) -> Problem:
        mark = event.start_mark
        return Problem(path, message, hint, code, self.file, mark.line + 1, mark.column + 1, self._line(mark.line))

    def _line(self, index: int) -> str:
        return self.lines[index] if 0 <= index < len(self.lines) else ""

    def _syntax(self, error: yaml.YAMLError) -> Problem:
        mark, begin = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
        words = f"{getattr(error, 'problem', '')} {getattr(error, 'reason', '')} {getattr(error, 'context', '')}"
        if mark is None or (begin is not None and ("end of stream" in words or "expected ':'" in words)):
            mark = begin  # where the quotes open or the key stands says more than where reading gave up
        index = max(0, min(mark.line if mark else 0, len(self.lines) - 1))
        column = mark.column if mark and mark.line == index else 0
        line = self._line(index)
        if line[column : column + 1] == "\t" or (line.startswith("\t") and "expected" in words):
            words = "tab"
        unknown = (words.strip() or "not YAML", "see https://yaml.org for the syntax")
        message, hint = next((ours for theirs, *ours in _SYNTAX if theirs in words), unknown)
        return Problem("", message, hint, "yaml-syntax", self.file, index + 1, column + 1, line)


class _GiveUpError(Exception):
    """Reading cannot go on; carries the problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def _mark(file: str, key: Any, value: Any) -> Mark:
    return Mark(file, key.line + 1, key.column + 1, value.line + 1, value.column + 1)


def _short_tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")
