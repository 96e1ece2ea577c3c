"""Width, heads and blocks taken out of every registered model that has them: shapes, answers and counts as planned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator import plugins
from orchestrator.compress.base import Context
from orchestrator.compress.lowrank import Config as LowRankConfig
from orchestrator.compress.lowrank import LowRank
from orchestrator.compress.pipeline import Trained, compress
from orchestrator.compress.prune import Config, Prune
from orchestrator.errors import ExportError, PlanError
from orchestrator.export.weights import plain_copy
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.spec.job import JobSpec
from orchestrator.spec.load import load_spec
from tests.tiers import sample_of

from .making import MEASURE, context_of, in_memory, make_trained

TEXT = {"vocab": 256, "seq_len": 8, "dim": 32, "layers": 3, "heads": 4, "hidden": 48}
MODELS: dict[str, dict[str, Any]] = {
    "transformer": {"use": "transformer", **TEXT},
    "grouped": {"use": "transformer", **TEXT, "kv_heads": 2},
    "tied": {"use": "transformer", **TEXT, "tied_embeddings": True},
    "repeated": {"use": "transformer", **TEXT, "layers": 2, "repeat": 2},
    "moe": {"use": "moe", **TEXT, "experts": 4, "expert_hidden": 16, "shared_experts": 1, "dense_layers": 1},
    "vit": {"use": "vit", "dim": 32, "layers": 3, "heads": 4, "hidden": 48},
    "mlp": {"use": "mlp", "inputs": 64, "hidden": [32, 16], "outputs": 10},
    "single": {"use": "mlp", "inputs": 64, "hidden": [32], "outputs": 10},
    "resnet": {"use": "resnet", "channels": [16, 32], "depths": [2, 3]},
}
KINDS = [
    *((name, kind) for name in ("transformer", "grouped", "tied", "moe", "vit") for kind in ("mlp", "heads", "depth")),
    ("repeated", "mlp"),
    ("repeated", "heads"),
    ("mlp", "mlp"),
    ("single", "mlp"),
    ("resnet", "depth"),
]


def data_for(model: dict[str, Any]) -> dict[str, Any]:
    if model["use"] in ("transformer", "moe"):
        return {"use": "text", "corpus": "python", "seq_len": 8, "max_bytes": 50_000}
    return {"use": "digits", "flat": model["use"] == "mlp"}


def job_for(name: str, *steps: dict[str, Any]) -> JobSpec:
    return load_spec(
        {
            "name": "tiny",
            "model": MODELS[name],
            "data": data_for(MODELS[name]),
            "train": {"epochs": 1, "batch_size": 32},
            "cluster": {"gpus_per_worker": 0},
            "compress": {"steps": [*steps, {"use": "export"}], "measure": MEASURE},
        }
    )


def make(name: str, kind: str) -> tuple[Trained, Context]:
    trained = make_trained(job_for(name, {"use": "prune", "kind": kind, **unit(kind)}), epochs=0)
    return trained, context_of(trained, Path("/nonexistent"))


def unit(kind: str) -> dict[str, Any]:
    return {"multiple_of": 4} if kind == "mlp" else {}


def num_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def smaller(name: str, kind: str) -> int | None:
    """Return how many weights the model's own arithmetic gives the narrower sizes; None where it has no such config."""
    options = dict(MODELS[name])
    use = options.pop("use")
    plugin = plugins.load("models", use)
    wide = plugins.build_config(plugin.Config, options)
    before = int(plugin.shape(wide).num_params)
    if kind == "mlp" and use != "mlp":
        halved = {"hidden": wide.hidden_width // 2}
        if use == "moe":
            halved["expert_hidden"] = wide.expert_width // 2
        return int(plugin.shape(replace(wide, **halved)).num_params)
    if kind == "mlp":
        return int(plugin.shape(replace(wide, hidden=tuple(width // 2 for width in wide.hidden))).num_params)
    if kind == "heads":
        kv = getattr(wide, "kv_heads", wide.heads)
        width = wide.dim // wide.heads
        gone = wide.dim * width * (wide.heads // 2 * 2 + kv // 2 * 2)
        gone += 3 * width * (wide.heads // 2) if use == "vit" else 0
        return before - wide.layers * gone
    if use in ("transformer", "vit"):
        return int(plugin.shape(replace(wide, layers=wide.layers - 1)).num_params)
    return None


@pytest.mark.parametrize("importance", ["auto", "random", "taylor"])
@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_half_is_gone_and_the_model_is_as_large_as_planned(name: str, kind: str, importance: str) -> None:
    if kind == "depth" and importance == "taylor":
        pytest.skip("blocks are judged by their influence")
    trained, context = make(name, kind)
    step = Prune(Config(kind=kind, importance=importance, **unit(kind)))  # type: ignore[arg-type]
    narrow = step.apply(in_memory(trained), context).state.model
    inputs, _ = context.calibration()
    assert narrow(inputs[:3]).shape == trained.model(inputs[:3]).shape
    planned = smaller(name, kind)
    assert num_params(narrow) < num_params(trained.model)
    if planned is not None:
        assert num_params(narrow) == planned


@pytest.mark.parametrize(("name", "kind"), [pair for pair in KINDS if pair[1] != "depth" and pair[0] != "mlp"])
def test_the_narrower_model_answers_as_the_masked_one(name: str, kind: str) -> None:
    """Zeros in the last tensor of what went give the same answers as taking it out.

    (Of two hidden layers in a row the second is cut on both sides, so what went cannot be read off it.)
    """
    trained, context = make(name, kind)
    narrow = Prune(Config(kind=kind, **unit(kind))).apply(in_memory(trained), context).state.model  # type: ignore[arg-type]
    masked = plain_copy(trained.model)
    plugin = plugins.load("models", MODELS[name]["use"])
    config = plugins.build_config(plugin.Config, trained.job.model.options)
    for slices in plugin.coupled(config)[kind].values():
        first, last = slices[0], slices[-1]
        wide_first = masked.get_parameter(first.parameter)
        wide_last = masked.get_parameter(last.parameter)
        left = narrow.get_parameter(first.parameter)
        if first.index is not None:
            wide_first, wide_last, left = wide_first[first.index], wide_last[first.index], left[first.index]
        old, new = (part.reshape(-1, first.chunk, part.shape[1]) for part in (wide_first, left))
        gone = [at for at, part in enumerate(old) if not any(torch.equal(part, other) for other in new)]
        assert len(gone) == len(old) - len(new)
        for at in gone:
            wide_last[..., at * last.chunk : (at + 1) * last.chunk] = 0
    inputs, _ = context.calibration()
    torch.testing.assert_close(narrow(inputs), masked(inputs), rtol=1e-5, atol=1e-5)


def test_least_influence_goes_first() -> None:
    trained, context = make("vit", "depth")
    block = trained.model.get_submodule("layers.block2")
    for name in ("attention.output", "feed_forward.down"):
        block.get_submodule(name).weight.data.zero_()  # type: ignore[union-attr, operator]
        block.get_submodule(name).bias.data.zero_()  # type: ignore[union-attr, operator]
    narrow = Prune(Config(kind="depth", ratio=0.34)).apply(in_memory(trained), context).state.model
    left = [name for name, _ in narrow.get_submodule("layers").named_children()]
    assert left == ["patches", "block1", "block3", "norm", "pool", "head"]
    inputs, _ = context.calibration()
    torch.testing.assert_close(narrow(inputs), trained.model(inputs))


def test_widths_shrink_step_by_step_from_what_is_there() -> None:
    trained, context = make("transformer", "mlp")
    first = Prune(Config(kind="mlp", multiple_of=4)).apply(in_memory(trained), context).state
    second = Prune(Config(kind="mlp", multiple_of=4)).apply(first, context).state
    assert second.model.get_parameter("layers.block1.feed_forward.up.weight").shape[0] == 12
    fewer = Prune(Config(kind="depth", ratio=0.34)).apply(second, context).state
    heads = Prune(Config(kind="heads", rounds=2, recover_epochs=0.5)).apply(fewer, context).state
    inputs, _ = context.calibration()
    assert heads.model(inputs[:2]).shape == (2, 8, 256)


def test_layers_that_are_kept_keep_their_width() -> None:
    trained, context = make("transformer", "mlp")
    step = Prune(Config(kind="mlp", multiple_of=4, keep=("block2",)))
    narrow = step.apply(in_memory(trained), context).state.model
    widths = [narrow.get_parameter(f"layers.block{at}.feed_forward.up.weight").shape[0] for at in (1, 2, 3)]
    assert widths == [24, 48, 24]
    with pytest.raises(ExportError, match="no mlp left to prune"):
        Prune(Config(kind="mlp", keep=("feed_forward",))).apply(in_memory(trained), context)
    for kind in ("mlp", "heads", "depth"):
        with pytest.raises(ExportError, match="keep names 'blok', which is in no layer's path"):
            Prune(Config(kind=kind, keep=("block2", "blok"))).apply(in_memory(trained), context)  # type: ignore[arg-type]


def test_experts_can_be_kept_though_they_are_no_layers_of_their_own() -> None:
    trained, context = make("moe", "mlp")
    step = Prune(Config(kind="mlp", multiple_of=4, keep=("experts.0", "experts.1", "experts.2", "experts.3")))
    narrow = step.apply(in_memory(trained), context).state.model
    path = "layers.block2.feed_forward.experts.w1"
    assert narrow.get_parameter(path).shape == trained.model.get_parameter(path).shape


@pytest.mark.parametrize(
    ("name", "step", "words"),
    [
        ("vit", {"kind": "channels"}, "model vit has no channels that can be pruned [it has: mlp, heads, depth"),
        ("resnet", {"kind": "heads"}, "model resnet has no heads"),
        ("repeated", {"kind": "depth"}, "model transformer has no depth"),
        ("grouped", {"kind": "heads", "ratio": 0.3}, "0.3 takes none of 2 heads [at least 0.5]"),
        ("vit", {"kind": "mlp", "ratio": 0.999, "multiple_of": 64}, "leaves every layer as it is"),
    ],
)
def test_what_a_model_has_not_is_refused_before_it_trains(name: str, step: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError) as caught:
        build_plan(job_for(name, {"use": "prune", **step}), Available(num_cpus=2.0, num_gpus=0, memory_bytes=8 << 30))
    assert words in "\n".join(f"{each.message} [{each.hint}]" for each in caught.value.problems)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_parts_that_lowrank_has_made_thin_pairs_of_are_refused_before_it_trains(name: str, kind: str) -> None:
    """Refused is what cannot be done, and nothing else."""
    prune, here = {"use": "prune", "kind": kind, **unit(kind)}, Available(2.0, 0, 8 << 30)
    build_plan(job_for(name, prune, {"use": "lowrank"}), here)
    trained, context = make(name, kind)
    thin = LowRank(LowRankConfig(whiten=False)).apply(in_memory(trained), context).state
    steps = ({"use": "lowrank"}, {"use": "finetune"}, prune)
    if kind == "depth" or (name, kind) == ("moe", "mlp"):
        build_plan(job_for(name, *steps), here)
        change = Prune(Config(kind=kind, **unit(kind))).apply(thin, context)  # type: ignore[arg-type]
        assert any("a step before has made other layers" in note for note in change.notes) is (kind == "mlp")
        return
    with pytest.raises(PlanError) as caught:
        build_plan(job_for(name, *steps), here)
    (problem,) = caught.value.problems
    assert problem.path == "compress.steps.2"
    assert f"prune {kind} cannot come after lowrank" in problem.message
    assert problem.hint == "move it before lowrank"
    with pytest.raises(ExportError, match=r"left to prune|a step before has changed"):
        Prune(Config(kind=kind, **unit(kind))).apply(thin, context)  # type: ignore[arg-type]


def test_parts_that_lowrank_keeps_can_be_pruned_after_it() -> None:
    steps = {"use": "lowrank", "keep": ["feed_forward"]}, {"use": "prune", "kind": "mlp", "multiple_of": 4}
    build_plan(job_for("vit", *steps), Available(2.0, 0, 8 << 30))
    trained, context = make("vit", "mlp")
    thin = LowRank(LowRankConfig(keep=("feed_forward",))).apply(in_memory(trained), context).state
    narrow = Prune(Config(kind="mlp", multiple_of=4)).apply(thin, context).state.model
    assert narrow.get_parameter("layers.block1.feed_forward.up.weight").shape[0] == 24


@pytest.mark.parametrize("name", sample_of(["transformer", "moe", "vit"], 1, seed=1))
def test_a_pruned_model_becomes_a_file_that_holds(name: str, tmp_path: Path) -> None:
    steps = [{"use": "prune", "kind": kind, **unit(kind)} for kind in ("mlp", "heads", "depth")]
    job = job_for(name, *steps)
    outcome = compress(make_trained(job, epochs=0), tmp_path / "compress")
    assert outcome.ok, outcome.error
    assert outcome.checked["size_ratio"] > 1.3
