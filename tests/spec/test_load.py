"""Files over files, overrides over files, and everything found at once."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest

from orchestrator.errors import JobFileError
from orchestrator.spec.job import JobSpec
from orchestrator.spec.load import load_job, load_spec

BASE = """\
name: base
model: {use: cnn, channels: [16, 32], hidden: 8}
data: {use: digits}
optim: {use: adamw, lr: 1e-3, betas: [0.8, 0.9], clip_norm: 1.0, groups: [{match: "*.bias", weight_decay: 0}]}
train: {epochs: 3, seed: 1}
"""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE)
    return Path("base.yaml")


def write(name: str, text: str) -> str:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(text)
    return name


def test_a_job_file_becomes_a_frozen_spec(base: Path) -> None:
    job = load_job(base)
    assert job.spec.train.epochs == 3.0
    assert job.spec.model.options == {"channels": [16, 32], "hidden": 8}
    assert job.spec.optim.options == {"lr": 0.001, "betas": [0.8, 0.9]}
    assert job.files == (base,)
    assert JobSpec.model_validate(job.spec.model_dump(mode="json")) == job.spec


def test_the_file_that_extends_wins_and_lists_are_replaced(base: Path) -> None:
    job = load_job(
        write("sub/child.yaml", "extends: ../base.yaml\nname: child\nmodel: {channels: [8]}\ntrain: {seed: 2}\n")
    )
    assert (job.spec.name, job.spec.train.epochs, job.spec.train.seed) == ("child", 3.0, 2)
    assert job.spec.model.options == {"channels": [8], "hidden": 8}
    assert {str(path) for path in job.files} == {"sub/child.yaml", "base.yaml"}
    assert job.places.where("model.channels") == "sub/child.yaml:3"
    assert job.places.where("model.hidden") == "base.yaml:2"


def test_later_files_of_a_list_win(base: Path) -> None:
    write("more.yaml", "train: {seed: 7}\n")
    assert load_job(write("child.yaml", "extends: [base.yaml, more.yaml]\n")).spec.train.seed == 7


def test_another_part_drops_the_keys_of_the_part_before(base: Path) -> None:
    child = "extends: base.yaml\nmodel: {use: mlp, inputs: 64, outputs: 10}\noptim: {use: sgd}\n"
    job = load_job(write("child.yaml", child))
    assert job.spec.model.options == {"inputs": 64, "outputs": 10}
    assert job.spec.optim.options == {}
    assert job.spec.optim.clip_norm == 1.0
    assert job.spec.optim.groups[0].match == "*.bias"


def test_naming_the_same_part_again_keeps_its_keys(base: Path) -> None:
    assert load_job(write("child.yaml", "extends: base.yaml\nmodel: {use: cnn}\n")).spec.model.options["hidden"] == 8


def test_steps_of_the_file_that_extends_replace_epochs(base: Path) -> None:
    train = load_job(write("child.yaml", "extends: base.yaml\ntrain: {steps: 9}\n")).spec.train
    assert (train.steps, train.epochs) == (9, None)


def test_overrides_replace_values_of_every_depth(base: Path) -> None:
    words = ["model.channels=[4, 8]", "optim.groups.0.weight_decay=0.5", "track.experiment=x", "train.monitor.mode=max"]
    spec = load_job(base, words).spec
    assert spec.model.options["channels"] == [4, 8]
    assert spec.optim.groups[0].options == {"weight_decay": 0.5}
    assert (spec.track.experiment, spec.train.monitor.mode) == ("x", "max")


def test_an_override_of_steps_replaces_epochs_and_says_so(base: Path) -> None:
    job = load_job(base, ["train.steps=50"])
    assert (job.spec.train.steps, job.spec.train.epochs) == (50, None)
    assert job.notes == ("train.steps=50 replaces train.epochs = 3 (base.yaml:5)",)


def test_overriding_use_drops_the_old_keys_wherever_it_stands(base: Path) -> None:
    spec = load_job(base, ["model.inputs=64", "model.outputs=10", "model.use=mlp"]).spec
    assert (spec.model.use, spec.model.options) == ("mlp", {"inputs": 64, "outputs": 10})


def test_the_last_of_two_equal_overrides_wins(base: Path) -> None:
    assert load_job(base, ["train.seed=4", "train.seed=5"]).spec.train.seed == 5


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["train.epochs="], "no value", "train.epochs=VALUE"),
        (["train.epochs", "=", "5"], "not an override", "no spaces around ="),
        (["train.epochs=abc"], "", "remove the override"),
        (["compress.steps.0.ratio=0.5"], "has no list compress.steps", "compress.steps=[...]"),
        (["track.description=some: text"], "", 'put it in quotes if it is text: "some: text"'),
    ],
)
def test_an_override_that_goes_wrong_says_how_to_write_it(
    base: Path, words: list[str], message: str, hint: str
) -> None:
    with pytest.raises(JobFileError) as caught:
        load_job(base, words)
    problem = caught.value.problems[0]
    assert message in problem.message
    assert hint in problem.hint
    assert problem.file == "override #1"


def test_an_override_value_is_data_not_code(base: Path) -> None:
    with pytest.raises(JobFileError) as caught:
        load_job(base, ["name=!!python/object/apply:os.getcwd []"])
    assert caught.value.problems[0].message.startswith("a tag")


def test_all_problems_come_at_once_in_the_order_of_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: A\nmodel: {use: cnn, chanels: [1]}\ndata: {use: digts}\ntrain: {epochs: 1, seed: -1, bath_size: 2}\n"
    )
    with pytest.raises(JobFileError) as caught:
        load_job(path)
    found = [(each.line, each.path) for each in caught.value.problems]
    assert found == [(1, "name"), (2, "model.chanels"), (3, "data.use"), (4, "train.seed"), (4, "train.bath_size")]
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


def test_a_missing_file_names_the_nearest(base: Path) -> None:
    with pytest.raises(JobFileError, match=r"no such file: bse\.yaml") as caught:
        load_job("bse.yaml")
    assert caught.value.hint == "did you mean `base.yaml`?"


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_bytes(b"#" * 1_000_001)
    with pytest.raises(JobFileError, match="larger than"):
        load_job(path)


def test_a_folder_is_not_a_job(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match="cannot be read"):
        load_job(tmp_path)


def test_a_users_class_is_found_but_not_imported(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path.cwd()))
    write("my_pkg/__init__.py", "raise RuntimeError('imported')\n")
    write("my_pkg/nets.py", "raise RuntimeError('imported')\nclass Net: ...\n")
    job = load_job(base, ["model.use=my_pkg.nets:Net", "model.width=3", "train.callbacks=[{use: my_pkg.nets:Net}]"])
    assert job.spec.model.options == {"width": 3}
    assert job.notes == (
        "train.callbacks.0: the options of my_pkg.nets:Net are checked in the worker, where it is built",
    )
    assert not any(name.startswith("my_pkg") for name in sys.modules)


def test_a_users_module_with_a_config_is_checked_like_a_built_in(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path.cwd()))
    text = "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Config:\n    width: int\n"
    write("their_pkg/__init__.py", "")
    write("their_pkg/wide.py", text)
    with pytest.raises(JobFileError) as caught:
        load_job(base, ["model.use=their_pkg.wide", "model.widht=3"])
    (problem,) = caught.value.problems
    assert (problem.path, problem.file) == ("model.widht", "override #2")
    assert "did you mean `width`?" in problem.hint


def test_a_module_that_is_no_plug_in_is_not_imported(base: Path) -> None:
    load_job(base, ["model.use=xmlrpc.server"])
    assert "xmlrpc.server" not in sys.modules


def test_a_mapping_becomes_a_spec_or_names_every_problem() -> None:
    spec = load_spec({"model": {"use": "cnn"}, "data": {"use": "digits"}, "optim": {"betas": (0.9, 0.99)}})
    assert spec.train.epochs == 1
    mistaken = {"model": {"use": "cnn", "chanels": 3}, "data": {"use": "digits"}, "train": {"epochs": 1, "seed": "x"}}
    with pytest.raises(JobFileError, match=r"model\.chanels: unknown key") as caught:
        load_spec(mistaken)
    assert {problem.path for problem in caught.value.problems} == {"model.chanels", "train.seed"}
