"""What is wrong with a compression is said when the job is read or planned, with its line, before anything trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.compress.quantise import Config, job_problems
from orchestrator.errors import JobFileError, PlanError
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.plan.compress import recurrent_share
from orchestrator.spec.job import JobSpec
from orchestrator.spec.load import load_job, load_spec

HERE = Available(num_cpus=2.0, num_gpus=0, memory_bytes=8 << 30)
BASE: dict[str, Any] = {
    "model": {"use": "resnet", "channels": [16, 32], "depths": [1, 1]},
    "data": {"use": "digits"},
    "train": {"epochs": 1},
}
GOOD = [{"use": "prune"}, {"use": "finetune"}, {"use": "export"}, {"use": "quantise"}]


def job(steps: list[dict[str, Any]], **compress: Any) -> dict[str, Any]:
    return {**BASE, "compress": {"steps": steps, **compress}}


def said(data: dict[str, Any]) -> str:
    with pytest.raises((JobFileError, PlanError)) as caught:
        build_plan(load_spec(data), HERE)
    return "\n".join(f"{each.path}: {each.message} [{each.hint}]" for each in caught.value.problems)


def test_a_good_order_is_taken() -> None:
    spec: JobSpec = load_spec(job(GOOD))
    assert [step.use for step in spec.compress.steps] == ["prune", "finetune", "export", "quantise"]
    assert build_plan(spec, HERE).num_params


def test_no_steps_are_no_compression() -> None:
    assert load_spec(BASE).compress.steps == ()


def test_a_step_after_its_state_is_gone_names_where_it_belongs() -> None:
    text = said(job([{"use": "export"}, {"use": "prune"}]))
    assert "compress.steps.1: prune takes a model in memory, but export has made an exported graph of it" in text
    assert "move prune before export" in text


def test_quantising_a_model_in_memory_is_told_to_export_first() -> None:
    assert "put `- use: export` before quantise" in said(job([{"use": "prune"}, {"use": "quantise"}]))
    assert "put `- use: export` before quantise" in said(job([{"use": "quantise"}]))


def test_training_a_finished_file_is_refused() -> None:
    text = said(job([{"use": "export"}, {"use": "quantise"}, {"use": "finetune"}]))
    assert "finetune takes a model in memory, but quantise has made a finished file of it" in text
    assert "move finetune before export" in text


def test_quantising_twice_is_refused() -> None:
    assert "remove quantise or quantise" in said(job([{"use": "export"}, {"use": "quantise"}, {"use": "quantise"}]))


def test_an_end_without_a_file_is_refused() -> None:
    assert "leaves a model in memory, which is no file" in said(job([{"use": "prune"}]))


@pytest.mark.parametrize(
    ("calibration", "words"),
    [({"split": "test"}, "by the very samples"), ({"split": "dev"}, "the split 'dev' of data digits does not exist")],
)
def test_calibration_on_test_or_on_nothing_is_refused(calibration: dict[str, Any], words: str) -> None:
    assert words in said(job(GOOD, calibration=calibration))


def test_an_empty_calibration_split_is_refused() -> None:
    data = job(GOOD, calibration={"split": "val"}) | {"data": {"use": "digits", "val_fraction": 0.0}}
    assert "the split 'val' of data digits is empty" in said(data)


def test_a_limit_on_the_accuracy_of_values_is_refused() -> None:
    data = job([{"use": "export"}], limits={"accuracy_drop": 0.01}) | {
        "model": {"use": "mlp", "inputs": 2, "outputs": 1},
        "data": {"use": "synthetic", "kind": "regression"},
    }
    data["train"] = {"epochs": 1, "loss": {"use": "mse"}, "monitor": {"metric": "val/loss", "mode": "min"}}
    text = said(data)
    assert text.startswith("compress.limits.accuracy_drop: data synthetic has targets of kind value, which have no acc")


@pytest.mark.parametrize("ratio", [1.0, 1.5, 0, -0.5])
def test_a_ratio_that_is_none_is_refused(ratio: float) -> None:
    assert "ratio must be above 0 and below 1" in said(job([{"use": "prune", "ratio": ratio}, {"use": "export"}]))


def test_a_multiple_that_leaves_all_as_it_is_is_refused() -> None:
    text = said(job([{"use": "prune", "ratio": 0.1, "multiple_of": 64}, {"use": "export"}]))
    assert "leaves every layer as it is" in text


def test_a_model_without_channels_is_refused() -> None:
    data = job(GOOD) | {
        "model": {"use": "mlp", "inputs": 64, "hidden": [16], "outputs": 10},
        "data": {"use": "digits", "flat": True},
    }
    assert "model mlp has no channels that can be pruned" in said(data)


def test_an_unknown_target_or_scheme_is_refused() -> None:
    text = said(job([{"use": "export"}, {"use": "quantise", "target": "tpu", "scheme": "int3"}]))
    assert "compress.steps.1.target" in text
    assert "compress.steps.1.scheme" in text


def test_weight_only_integers_for_convolutions_are_refused() -> None:
    assert "int4-weight changes linear layers only" in said(
        job([{"use": "export"}, {"use": "quantise", "scheme": "int4-weight"}])
    )


RNN = {"use": "rnn", "vocab": 256, "seq_len": 16, "dim": 64, "hidden": 64}
WORDS = {"use": "text", "corpus": "python", "seq_len": 16, "max_bytes": 60_000}


def recurrent(model: dict[str, Any], scheme: str, format: str = "onnx") -> dict[str, Any]:
    steps = [{"use": "export", "format": format}, {"use": "quantise", "scheme": scheme}]
    return job(steps) | {"model": RNN | model, "data": WORDS}


@pytest.mark.parametrize(
    ("kind", "scheme", "share"),
    [
        *[("gru", scheme, 43) for scheme in ("int8-static", "int8-dynamic", "int8-weight", "int4-weight")],
        *[("lstm", scheme, 50) for scheme in ("int8-static", "int8-weight", "int4-weight")],
    ],
)
def test_recurrent_layers_that_would_stay_floats_are_refused(kind: str, scheme: str, share: int) -> None:
    text = said(recurrent({"kind": kind}, scheme))
    assert (
        f"{share}% of the weights of model rnn are in recurrent layers, which stay floats as {scheme} in onnx" in text
    )
    assert "write int8-dynamic with model.kind: lstm" in text


@pytest.mark.parametrize(("scheme", "format"), [("int8-dynamic", "onnx"), ("int8-static", "openvino")])
def test_an_lstm_is_taken_where_its_weights_become_integers(scheme: str, format: str) -> None:
    if format == "openvino":
        pytest.importorskip("nncf")
    assert build_plan(load_spec(recurrent({"kind": "lstm"}, scheme, format)), HERE).num_params


def test_a_scheme_that_is_none_of_integers_has_one_complaint_about_recurrent_layers() -> None:
    (line,) = said(recurrent({}, "float8", "program")).splitlines()
    assert "rnn is made of recurrent layers [export as onnx, and write int8-dynamic with model.kind: lstm]" in line


def test_recurrent_layers_that_hardly_weigh_are_no_hindrance() -> None:
    spec = load_spec(recurrent({"vocab": 30_000, "hidden": 32}, "int8-weight"))
    assert 0 < recurrent_share(spec) < 0.01
    assert job_problems(Config(scheme="int8-weight"), spec) == []
    assert recurrent_share(load_spec(job(GOOD))) == 0


def test_an_unknown_step_names_those_there_are() -> None:
    text = said(job([{"use": "prun"}, {"use": "export"}]))
    assert "did you mean `prune`?" in text


def test_problems_of_steps_have_lines(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        "model: {use: cnn}\ndata: {use: digits}\ncompress:\n  steps:\n    - use: export\n    - use: prune\n"
    )
    with pytest.raises(JobFileError) as caught:
        load_job(file)
    (problem,) = caught.value.problems
    assert problem.line == 6


def test_what_is_legal_instead_of_them_is_taken() -> None:
    zeros = [{"use": "prune", "kind": "2:4"}, {"use": "finetune"}, {"use": "export"}, {"use": "pack"}]
    for steps in ([{"use": "export"}, {"use": "quantise", "scheme": "int8-static"}], zeros):
        assert build_plan(load_spec(job(steps)), HERE).num_params


ZEROS, VALUES = {"use": "prune", "kind": "unstructured"}, {"use": "share"}
BARRED = [
    (ZEROS, {"use": "prune"}, "prune channels", "prune unstructured", "would not fit the narrower weights"),
    ({"use": "prune", "kind": "2:4"}, {"use": "lowrank"}, "lowrank", "prune 2:4", "keeps no zeros"),
    (VALUES, {"use": "lowrank"}, "lowrank", "share values", "keeps no values in common"),
    (VALUES, {"use": "prune"}, "prune channels", "share values", "no longer have values in common"),
    (VALUES, ZEROS, "prune unstructured", "share values", "no longer have values in common"),
    (ZEROS, {"use": "share", "kind": "blocks"}, "share blocks", "prune unstructured", "zeros of its own"),
    (VALUES, {"use": "share", "kind": "blocks"}, "share blocks", "share values", "values of its own"),
]


@pytest.mark.parametrize(("first", "second", "name", "before", "why"), BARRED)
def test_a_step_that_cannot_work_on_what_one_before_has_left_is_refused(
    first: dict[str, Any], second: dict[str, Any], name: str, before: str, why: str
) -> None:
    between, end = {"use": "finetune"}, {"use": "export"}
    text = said(job([{"use": "finetune"}, first, between, second, end]))
    assert f"compress.steps.3: {name} cannot come after {before}: " in text
    assert why in text
    assert f"[move {name} before {before} (compress.steps.1)]" in text
    assert load_spec(job([second, between, first, {"use": "distill"}, end])), "the order that is advised"


def test_what_a_step_of_ones_own_leaves_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bakes_zeros.py").write_text("def build(config):\n    return None\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_spec(job([ZEROS, {"use": "bakes_zeros:build"}, {"use": "prune"}, {"use": "export"}]))


@pytest.mark.parametrize("scheme", ["int8-weight", "int4-weight"])
def test_weight_only_integers_for_flat_inputs_are_refused_where_the_tool_has_none(scheme: str) -> None:
    model = {"use": "mlp", "inputs": 64, "hidden": [16], "outputs": 10}
    flat = {"model": model, "data": {"use": "digits", "flat": True}}
    text = said(job([{"use": "export"}, {"use": "quantise", "scheme": scheme}]) | flat)
    assert f"compress.steps.1.scheme: {scheme} changes linear layers on sequences and embeddings only in onnx" in text
    assert "[write int8-static or int8-dynamic]" in text
    thin = [{"use": "lowrank"}, {"use": "export"}, {"use": "quantise", "scheme": scheme}]
    for steps in ([{"use": "export"}, {"use": "quantise", "scheme": "int8-dynamic"}], thin):
        assert build_plan(load_spec(job(steps) | flat), HERE).num_params


def test_training_on_integers_after_shared_values_is_refused_and_after_shared_blocks_taken() -> None:
    text = {"use": "transformer", "vocab": 256, "seq_len": 8, "dim": 32, "layers": 2, "heads": 4}
    data = {"model": text, "data": {"use": "text", "corpus": "python", "seq_len": 8, "max_bytes": 20_000}}
    end = [{"use": "export"}, {"use": "quantise", "scheme": "int4-weight", "qat": {}}]
    assert "off the values that `share` gave them" in said(job([VALUES, *end]) | data)
    assert build_plan(load_spec(job([{"use": "share", "kind": "blocks"}, *end]) | data), HERE).num_params
