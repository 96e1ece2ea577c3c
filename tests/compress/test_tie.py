"""Blocks that become one: trained as one, held once by every kind of file, refused where there is nothing to tie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.compress.artifact import as_function, size_of
from orchestrator.compress.base import Context, State
from orchestrator.compress.export import Config as ExportConfig
from orchestrator.compress.export import Export
from orchestrator.compress.features import Features, chosen
from orchestrator.compress.pipeline import Trained
from orchestrator.compress.prune import Config as PruneConfig
from orchestrator.compress.prune import Prune
from orchestrator.compress.qat import learn
from orchestrator.compress.quantise import Budget, Qat, Quantise
from orchestrator.compress.quantise import Config as QuantiseConfig
from orchestrator.compress.recover import Lessons, recover
from orchestrator.compress.runtimes.base import open_folder
from orchestrator.compress.share import Config, Share
from orchestrator.compress.structure import _replace
from orchestrator.errors import ExportError, PlanError
from orchestrator.export.weights import plain_copy
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.spec.job import JobSpec
from orchestrator.spec.load import load_spec
from tests.tiers import sample_of

from .making import CNN, context_of, in_memory, make_job, make_trained

HERE = Available(num_cpus=2.0, num_gpus=0, memory_bytes=8 << 30)
STEPS = ({"use": "share", "kind": "blocks"}, {"use": "finetune", "epochs": 1}, {"use": "export"})
TEXT = {"use": "transformer", "vocab": 256, "seq_len": 8, "dim": 32, "layers": 5, "heads": 4}


@pytest.fixture(scope="module")
def trained() -> Trained:
    job = load_spec(
        {
            "model": TEXT,
            "data": {"use": "text", "corpus": "python", "seq_len": 8, "max_bytes": 20_000},
            "optim": {"lr": 3e-3},
            "train": {"epochs": 1, "batch_size": 64},
            "compress": {"steps": [dict(step) for step in STEPS]},
        }
    )
    return make_trained(job, epochs=0)


def tied(trained: Trained, folder: Path, every: int = 2) -> tuple[State, Context]:
    context = context_of(trained, folder)
    return Share(Config(kind="blocks", every=every)).apply(in_memory(trained), context).state, context


def block(state: State, number: int) -> Any:
    return state.model.get_submodule(f"layers.block{number}")


def test_neighbours_become_one_and_are_trained_as_one(trained: Trained, tmp_path: Path) -> None:
    state, context = tied(trained, tmp_path)
    assert block(state, 1) is block(state, 2)
    assert block(state, 3) is block(state, 4)
    assert block(state, 5) is not block(state, 4)
    before = block(state, 1).attention.query.weight.clone()
    recover(state.model, context, epochs=0.1)
    assert block(state, 1) is block(state, 2)
    assert not torch.equal(block(state, 2).attention.query.weight, before)
    assert block(in_memory(trained), 1) is not block(in_memory(trained), 2), "a step leaves what it was given alone"
    three, _ = tied(trained, tmp_path, every=3)
    assert block(three, 1) is block(three, 3) is not block(three, 4)
    assert block(three, 4) is block(three, 5)


@pytest.mark.slow
def test_the_file_holds_tied_blocks_once_and_answers_as_the_model(trained: Trained, tmp_path: Path) -> None:
    state, context = tied(trained, tmp_path)
    own = sum(parameter.numel() for parameter in block(state, 1).parameters()) * 4
    wide, narrow = (
        Export(ExportConfig()).apply(each, replace(context, folder=tmp_path / name)).state
        for name, each in (("wide", in_memory(trained)), ("narrow", state))
    )
    assert size_of(wide) - size_of(narrow) > 1.9 * own, "two of five blocks are gone"
    inputs, _ = context.calibration()
    found = as_function(narrow)(inputs)
    torch.testing.assert_close(found, state.model(inputs), rtol=1e-4, atol=1e-4)


def test_each_place_of_a_tied_block_is_compared_with_the_teachers_block_there(trained: Trained, tmp_path: Path) -> None:
    state, context = tied(trained, tmp_path)
    teacher = plain_copy(trained.model)
    for number in (2, 4):  # as the tied model, but in blocks of their own
        first = teacher.get_submodule(f"layers.block{number - 1}").state_dict()
        teacher.get_submodule(f"layers.block{number}").load_state_dict(first)
    inputs = context.calibration()[0]
    blocks = [f"layers.block{number}" for number in range(1, 6)]
    asked: list[tuple[str, ...] | str] = ["auto", tuple(blocks)]
    for names in asked:
        assert set(blocks) <= set(chosen(state.model, teacher, names))
        pupil = plain_copy(state.model)
        features = Features(pupil, Lessons(teacher, features=names), context)
        for _ in range(2):
            pupil(inputs)
            assert float(features.distance(inputs)) == pytest.approx(0.0, abs=1e-9)
        features.leave()


@pytest.mark.parametrize("scheme", sample_of(["int8-static", "int8-dynamic", "int8-weight", "int4-weight"], 1, seed=1))
def test_quantisers_do_not_copy_them(scheme: Any, trained: Trained, tmp_path: Path) -> None:
    sizes = []
    for name, each in (("wide", in_memory(trained)), ("narrow", tied(trained, tmp_path)[0])):
        context = replace(context_of(trained, tmp_path / name))
        state = Export(ExportConfig()).apply(each, context).state
        sizes.append(size_of(Quantise(QuantiseConfig(scheme=scheme)).apply(state, context).state))
    assert sizes[1] < 0.9 * sizes[0]  # the graph itself weighs much beside five small blocks


@pytest.mark.parametrize(("scheme", "limit"), [("int8-static", 0.17), ("int8-dynamic", 0.03)])
def test_the_runtime_opens_integers_that_several_places_read(
    scheme: Any, limit: float, trained: Trained, tmp_path: Path
) -> None:
    state, context = tied(trained, tmp_path)
    exported = Export(ExportConfig()).apply(state, context).state
    done = Quantise(QuantiseConfig(scheme=scheme)).apply(exported, replace(context, folder=tmp_path / "int8")).state
    inputs, _ = context.calibration()
    outputs = torch.from_numpy(open_folder(done.file().parent, done.format, done.files)(inputs.numpy()))
    wanted = state.model(inputs)
    assert float((outputs - wanted).norm() / wanted.norm()) < limit  # to the bit as the signed file without the setting


def test_tied_blocks_are_trained_on_the_integers_as_one(trained: Trained, tmp_path: Path) -> None:
    state, context = tied(trained, tmp_path)
    asked = QuantiseConfig(scheme="int4-weight", qat=Qat(steps=3))
    assert asked.qat is not None
    learnt = replace(state, model=learn(state, context, asked, asked.qat).model)
    path = "attention.query.weight"
    assert block(learnt, 1) is block(learnt, 2)
    assert block(learnt, 3) is block(learnt, 4) is not block(learnt, 5)
    for number in (1, 3, 5):
        weight = block(learnt, number).get_parameter(path)
        assert not torch.equal(weight, block(state, number).get_parameter(path))
        assert all(len(group.unique()) <= 16 for group in weight), "on the grid of 4 bits: a row is one group"


@pytest.mark.slow
def test_mixed_precision_lowers_a_layer_wherever_it_stands(trained: Trained, tmp_path: Path) -> None:
    context = replace(context_of(trained, tmp_path / "file"))
    state = Export(ExportConfig()).apply(tied(trained, tmp_path)[0], context).state
    asked = QuantiseConfig(scheme="mixed", budget=Budget(size_ratio=3.8))
    change = Quantise(asked).apply(state, context)
    places = [len(row["nodes"]) for row in change.facts["layers"] if row["name"].startswith("layers.block")]
    assert sorted(places) == [1] * 7 + [2] * 14
    whole = sum(parameter.numel() * 4 for parameter in trained.model.parameters())
    assert size_of(change.state) <= whole / 3.8


def test_what_cannot_be_tied_is_refused(trained: Trained, tmp_path: Path) -> None:
    def plan(model: dict[str, Any]) -> JobSpec:
        job = make_job(model, STEPS)
        build_plan(job, HERE)
        return job

    with pytest.raises(PlanError) as caught:
        plan(CNN)
    assert caught.value.problems[0].path == "compress.steps.0.kind"
    assert "declares no blocks" in caught.value.problems[0].message
    twin = tied(trained, tmp_path, every=9)[0].model
    masked = Prune(PruneConfig(kind="unstructured")).apply(in_memory(trained), context_of(trained, tmp_path)).state
    with pytest.raises(ExportError, match="share blocks after masks"):
        Share(Config(kind="blocks")).apply(masked, context_of(trained, tmp_path))
    assert len(list(twin.get_submodule("layers").children())) == 4, "embedding, one block, norm, head"
    odd = make_trained(trained.job, epochs=0)
    path = "layers.block2.feed_forward.gate.weight"
    _replace(odd.model, path, odd.model.get_parameter(path)[:8])
    with pytest.raises(ExportError, match=r"layers\.block2 and layers\.block1 have weights of other shapes"):
        tied(odd, tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 3}, "every means nothing for values"),
        ({"kind": "blocks", "clusters": 8}, "mean nothing for blocks"),
        ({"kind": "blocks", "every": 1}, "every must be at least 2"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Config(**options)
