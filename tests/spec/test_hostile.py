"""Whatever a job file holds, it is read or refused with a JobFileError: quickly, and without steering the terminal."""

from __future__ import annotations

import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.cli.render import error_lines
from orchestrator.errors import JobFileError
from orchestrator.spec.load import load_job, load_spec
from orchestrator.spec.yaml import read

JOB: dict[str, Any] = {
    "name": "x",
    "model": {"use": "cnn", "channels": [16, 32], "norm": "group"},
    "data": {"use": "digits", "val_fraction": 0.1},
    "optim": {"use": "adamw", "lr": 0.1, "groups": [{"match": "*", "lr": 1.0}], "schedule": {"use": "cosine"}},
    "train": {"epochs": 1, "loss": {"use": "mse"}, "metrics": [{"use": "accuracy"}], "monitor": {"mode": "max"}},
    "parallel": {"replicate": "auto"},
    "cluster": {"gpus_per_worker": 1},
    "track": {"tags": {"a": "b"}},
    "export": [{"use": "onnx"}],
}
VALUES = st.recursive(
    st.sampled_from([None, True, 0, -1, 10**30, 0.5, "", "cnn", "auto", "no_such:Thing", "a.b", "..", ":", "x" * 200])
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["use", "match", "lr", "steps", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)


def paths(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [(*above, key) for key, _ in items]
    return found + [path for key, each in items for path in paths(each, (*above, key))]


@given(st.lists(st.tuples(st.sampled_from(paths(JOB)), VALUES), min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_a_job_with_any_values_is_accepted_or_refused_with_problems(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    data = deepcopy(JOB)
    for path, value in changes:
        put(data, path, value)
    problems = refusal(data)
    assert all(problem.message and problem.hint for problem in problems), problems
    assert len({problem.path for problem in problems}) == len(problems)


def refusal(data: dict[str, Any]) -> tuple[Any, ...]:
    try:
        load_spec(data)
    except JobFileError as error:
        return error.problems or (None,)
    return ()


def put(data: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        if not isinstance(data, dict | list) or (
            isinstance(data, list) and not (isinstance(key, int) and key < len(data))
        ):
            return
        data = data[key] if isinstance(data, list) else data.get(key)
    fits = isinstance(data, list) and isinstance(path[-1], int) and path[-1] < len(data)
    if fits or isinstance(data, dict):
        data[path[-1]] = value


@pytest.mark.parametrize(
    ("base", "text"),
    [
        ("", "".join(f"key{at}: 1\n" for at in range(9000))),
        ("", "model: {use: cnn}\n" * 9000),
        ("", "model:\n  use: cnn\n" + "".join(f"  key{at}: [1]\n" for at in range(6000))),
        ("".join(f"k{at}: [1, 2]\n" for at in range(4000)), "".join(f"k{at}: [3]\n" for at in range(4000))),
        ("".join(f"k{at}: {{a: 1}}\n" for at in range(4000)), "".join(f"k{at}: {{b: 3}}\n" for at in range(4000))),
    ],
    ids=["unknown keys", "duplicates", "unknown options", "merged lists", "merged mappings"],
)
def test_thousands_of_mistakes_take_no_longer_than_one(base: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(base or "name: x\n")
    (tmp_path / "job.yaml").write_text("extends: base.yaml\n" + text)
    start = time.process_time()
    with pytest.raises(JobFileError) as caught:
        load_job(tmp_path / "job.yaml")
    assert time.process_time() - start < 1.5
    assert 1 < len(caught.value.problems) < 250


def test_files_that_extend_many_files_are_bounded(tmp_path: Path) -> None:
    for at in range(30):
        (tmp_path / f"{at}.yaml").write_text(f"extends: [{at + 1}.yaml, {at + 1}.yaml]\n")
    (tmp_path / "30.yaml").write_text("name: x\n")
    with pytest.raises(JobFileError) as caught:
        load_job(tmp_path / "0.yaml")
    assert "more than 32 files" in caught.value.problems[0].message


def test_values_quoted_in_messages_cannot_steer_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text('model: {use: "\\e]0;owned\\a\\e[2J"}\ndata: {use: digits}\n"\\e[31mkey": 1\n')
    with pytest.raises(JobFileError) as caught:
        load_job(path)
    text = "\n".join(click.unstyle(line) for line in error_lines(caught.value))
    assert "\x1b" not in text
    assert "\x07" not in text


SHIPPED = (Path(__file__).parents[2] / "jobs" / "digits_cnn.yaml").read_text()
KEYS = [path for path in paths(read(SHIPPED, "job").data) if isinstance(path[-1], str) and path[0] != "version"]


@pytest.mark.parametrize("path", KEYS, ids=lambda path: ".".join(map(str, path)))
def test_one_misspelt_key_is_one_problem_that_names_the_key_meant(path: tuple[Any, ...]) -> None:
    data: Any = read(SHIPPED, "job").data
    holder = data
    for key in path[:-1]:
        holder = holder[key]
    right = path[-1]
    wrong = right[:-2] + right[-1] + right[-2] if right[-1] != right[-2] else right[:-1]
    value = holder.pop(right)
    holder[wrong] = value
    (problem,) = refusal(data)
    assert right in problem.path or f"`{right}`" in problem.hint
    assert f"`{right}`" in problem.hint or right == "use"
