"""Names become objects; options are judged in plain words without running a user's class."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from orchestrator import plugins
from orchestrator.errors import JobFileError


@dataclass(frozen=True)
class Config:
    """Options to test with."""

    width: int
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)
    kind: Literal["a", "b"] = "a"
    deep: bool = False

    def __post_init__(self) -> None:
        if self.width % 2:
            raise ValueError(f"width must be even, got {self.width}")


def test_good_options_build_the_config_itself() -> None:
    built = plugins.build_config(Config, {"width": 2, "rate": 1, "sizes": [3]})
    assert built == Config(2, 1.0, (3,))
    assert type(built) is Config


@pytest.mark.parametrize(
    ("options", "path", "message", "hint"),
    [
        ({"widht": 2}, "widht", "unknown key", "did you mean `width`?"),
        ({}, "width", "required key is missing", "a whole number"),
        ({"width": "2"}, "width", "takes a whole number; got the text '2'", "without quotes"),
        ({"width": 2, "rate": True}, "rate", "takes a number; got true", "0.1"),
        ({"width": 2, "sizes": [1, None]}, "sizes.1", "takes a whole number; got nothing", "value"),
        ({"width": 2, "kind": "c"}, "kind", "takes a or b; got the text 'c'", "default"),
        ({"width": 2, "deep": 1}, "deep", "takes true or false; got 1", "default: false"),
        ({"width": 3}, "width", "width must be even, got 3", ""),
    ],
)
def test_one_mistake_is_one_problem_in_plain_words(
    options: dict[str, object], path: str, message: str, hint: str
) -> None:
    (problem,) = plugins.config_problems(Config, options)
    assert problem.path == path
    assert message in problem.message
    assert hint in problem.hint


def test_bad_options_raise_with_every_problem() -> None:
    with pytest.raises(JobFileError) as caught:
        plugins.build_config(Config, {"width": 2, "rate": "x", "kind": "z"})
    assert {problem.path for problem in caught.value.problems} == {"rate", "kind"}


@pytest.mark.parametrize("group", plugins.GROUPS)
def test_every_registered_part_can_be_imported(group: str) -> None:
    for name in plugins.names(group):
        assert plugins.load(group, name) is not None


def test_a_callable_without_config_is_bound_to_its_signature() -> None:
    assert plugins.build("losses", "fractions:Fraction", {"numerator": 3}).numerator == 3
    with pytest.raises(JobFileError, match="unexpected keyword argument 'numertor'"):
        plugins.build("losses", "fractions:Fraction", {"numertor": 3})


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(JobFileError, match="no models plug-in is called 'cnnn'") as caught:
        plugins.load("models", "cnnn")
    assert "did you mean `cnn`?" in caught.value.hint


MODULE = """from dataclasses import dataclass

raise RuntimeError("imported")

@dataclass
class Config:
    width: int = 1
"""


def test_a_bare_module_of_the_working_folder_is_found_and_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bare_nets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert plugins.find_problem("models", "bare_nets") is None
    assert "bare_nets" not in sys.modules


def test_what_is_neither_a_built_in_nor_such_a_module_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain_cnn.py").write_text("class Net: ...\n")
    (tmp_path / "cnns").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = plugins.find_problem("models", "cnns")
    assert folder is not None
    assert "did you mean `cnn`?" in folder.hint
    plain = plugins.find_problem("models", "plain_cnn")
    assert plain is not None
    assert plain.message == "no models plug-in is called 'plain_cnn'"
    assert "`plain_cnn:MyClass`" in plain.hint
    assert plugins.find_problem("models", "statistics") is not None  # of Python's own library


def test_a_built_in_goes_before_a_module_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cnn.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert plugins.load("models", "cnn").__name__ == "orchestrator.models.cnn"
