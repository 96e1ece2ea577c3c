"""`ls`, `schema` and `init`: finding out what there is, and starting from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli.app import app
from orchestrator.cli.init import packaged_jobs


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_ls_names_the_parts_of_every_group() -> None:
    answer = run("ls")
    assert answer.exit_code == 0
    assert "models cnn, mlp, moe, neuron, perceptron, resnet, rnn, transformer, vit" in " ".join(answer.stdout.split())
    assert json.loads(run("ls", "--json").stdout)["groups"]["exporters"] == ["onnx", "program", "safetensors"]


def test_ls_of_a_group_gives_a_sentence_and_the_keys_with_defaults() -> None:
    answer = run("ls", "optimizers")
    assert "adamw  Adam with decoupled weight decay" in answer.stdout
    assert "a list of 2: a number, a number, default [0.9, 0.999]" in answer.stdout
    (part,) = json.loads(run("ls", "data", "table", "--json").stdout)["parts"]
    assert {"key": "path", "takes": "text", "default": "required"} in part["keys"]


@pytest.mark.parametrize(("words", "advice"), [(("ls", "model"), "`models`"), (("ls", "models", "cn"), "`cnn`")])
def test_ls_of_what_is_not_there_names_the_nearest(words: tuple[str, ...], advice: str) -> None:
    answer = run(*words)
    assert answer.exit_code == 2
    assert advice in answer.stderr


def test_schema_prints_json_that_an_editor_can_use() -> None:
    assert json.loads(run("schema").stdout)["properties"]["model"]["$ref"] == "#/$defs/models"
    assert json.loads(run("schema", "--installed").stdout)["title"] == "orchestrator job"
    assert json.loads(run("schema", "--json").stdout)["schema"]["title"] == "orchestrator job"
    assert run("schema", "--markdown").stdout.startswith("# Job files")


def test_init_lists_the_jobs_with_a_sentence_each() -> None:
    answer = run("init", "--list")
    assert answer.exit_code == 0
    assert all(name in answer.stdout for name in packaged_jobs())
    assert all(about for about in json.loads(run("init", "--list", "--json").stdout)["jobs"].values())


@pytest.mark.parametrize("name", sorted(packaged_jobs()))
def test_a_copied_job_checks_out_where_it_was_copied_to(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = run("init", name.replace("_", "-"))
    assert answer.exit_code == 0, answer.output
    assert f"next: orchestrator check {name}.yaml" in answer.stdout
    assert Path("job.schema.json").is_file()
    checked = run("check", f"{name}.yaml", "cluster.cpus_per_worker=0.1")
    assert checked.exit_code == 0, checked.output


def test_init_never_replaces_a_file_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = sorted(packaged_jobs())[0]
    Path("mine.yaml").write_text("precious")
    answer = run("init", name, "-o", "mine.yaml")
    assert answer.exit_code == 2
    assert Path("mine.yaml").read_text() == "precious"
    assert run("init", name, "-o", "mine.yaml", "--force").exit_code == 0
    assert Path("mine.yaml").read_text() == packaged_jobs()[name]


def test_init_of_an_unknown_job_names_the_nearest() -> None:
    answer = run("init", "digits_cnnn")
    assert answer.exit_code == 2
    assert "`digits_cnn`" in answer.stderr
