"""The strict reader: what is a number, what is text, what is refused, and where everything stands."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import JobFileError, Problem
from orchestrator.spec.yaml import MAX_BYTES, read
from orchestrator.spec.yaml_write import write

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E5", 1e5), ("-2.5", -2.5), (".5", 0.5), ("1.", 1.0), ("3", 3), ("-7", -7), ("0", 0),
        ("true", True), ("false", False), ("null", None), ("~", None), ("", None),
        ("no", "no"), ("on", "on"), ("Yes", "Yes"), ("True", "True"), ("010", "010"),
        ("0x1f", "0x1f"), ("1_000", "1_000"),
        ("1:30", "1:30"), ("2020-01-01", "2020-01-01"),
        ("'1'", "1"), ('"true"', "true"), ("inf", "inf"), ("nan", "nan"),
        ("=", "="), ("<<", "<<"),
    ],
)  # fmt: skip
def test_a_plain_value_means_one_thing(text: str, value: object) -> None:
    found = read(f"key: {text}\n", "f").data["key"]
    assert found == value
    assert type(found) is type(value)


def test_every_path_has_the_place_of_its_key_and_its_value() -> None:
    marks = read("model:\n  use: cnn\n  channels: [16,\n    32]\n", "job.yaml").marks
    use, last = marks["model.use"], marks["model.channels.1"]
    assert (use.key_line, use.key_column, use.line, use.column) == (2, 3, 2, 8)
    assert (last.line, last.column) == (4, 5)
    assert marks[""].line == 1


def test_all_problems_of_reading_are_reported_together() -> None:
    with pytest.raises(JobFileError) as caught:
        read("a: &x 1\na: 2\nb: !!str c\nd: .nan\n", "f")
    assert [(each.line, each.path) for each in caught.value.problems] == [(1, "a"), (2, "a"), (3, "b"), (4, "d")]


@pytest.mark.parametrize(
    "text", ["[" * MAX_BYTES, "a: " + "{a: " * 200_000, "- " * 400_000, "? " * 400_000, "a: [" + "1," * 490_000 + "]"]
)
def test_a_hostile_file_is_refused_quickly(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(JobFileError):
        read(text, "f")
    assert time.perf_counter() - start < 1.0


@given(st.dictionaries(st.text(min_size=1), PLAIN, max_size=4))
@settings(max_examples=80, deadline=None)
def test_what_is_written_is_read_back_unchanged(data: dict[str, object]) -> None:
    assert same(read(write(data), "f").data, data)


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_read_or_refused_with_a_place(text: str) -> None:
    problems: tuple[Problem, ...] = ()
    try:
        read(text, "f")
    except JobFileError as error:
        problems = error.problems or (Problem("", ""),)
    assert all(problem.line >= 1 and problem.column >= 1 and problem.message for problem in problems)


def same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=0, abs_tol=0)
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other
