"""What each step does to a model: narrower through the dependency graph, taught again, exact under masks."""

from __future__ import annotations

import linecache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from orchestrator.compress import pipeline
from orchestrator.compress.base import MODULE, State, Trains
from orchestrator.compress.finetune import Config as FinetuneConfig
from orchestrator.compress.finetune import Distill, Finetune
from orchestrator.compress.pipeline import StepReport, Trained, _code_of, _idle, _sources, digest_of
from orchestrator.compress.prune import Config as PruneConfig
from orchestrator.compress.prune import Prune
from orchestrator.compress.recover import Lessons, recover, soft_distance
from orchestrator.errors import ExportError
from orchestrator.export.weights import digest_weights, plain_copy, state_tensors

from .making import CNN, RESNET, context_of, in_memory, make_job, make_trained

GROUPED = {"use": "cnn", "channels": [32, 64], "norm": "group"}
HIDDEN = {"use": "cnn", "channels": [16, 32], "hidden": 32}
DEEP = {"use": "resnet", "channels": [16, 32, 32], "depths": [2, 1, 1], "norm": "group"}


def untrained(model: dict[str, object]) -> Trained:
    return make_trained(make_job(model, ({"use": "prune"}, {"use": "export"})), epochs=0)


def num_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "random"])
@pytest.mark.parametrize(
    "model", [RESNET, CNN, GROUPED, HIDDEN, DEEP], ids=["resnet", "cnn", "grouped", "hidden", "deep"]
)
def test_pruning_makes_every_layer_narrower_and_the_answer_keeps_its_shape(
    model: dict[str, object], importance: str, tmp_path: Path
) -> None:
    trained = untrained(model)
    before = digest_weights(state_tensors(trained.model))
    step = Prune(PruneConfig(ratio=0.5, importance=importance, multiple_of=4))  # type: ignore[arg-type]
    after = step.apply(in_memory(trained), context_of(trained, tmp_path)).state
    convs = [part for part in after.model.modules() if isinstance(part, nn.Conv2d)]
    old = [part for part in trained.model.modules() if isinstance(part, nn.Conv2d)]
    assert [part.out_channels for part in convs] == [part.out_channels // 2 for part in old]
    inputs = torch.rand(3, 1, 8, 8)
    assert after.model(inputs).shape == (3, 10)
    assert num_params(after.model) < 0.6 * num_params(trained.model)
    assert digest_weights(state_tensors(trained.model)) == before, "a step leaves what it was given alone"


def test_a_narrower_model_computes_what_the_masked_one_does(tmp_path: Path) -> None:
    """Zeroing the channels that go (after norm and bend) gives the same answers as taking them out."""
    trained = make_trained(make_job({**CNN, "channels": [16, 32]}), epochs=1)
    step = Prune(PruneConfig(ratio=0.5, multiple_of=4))
    narrow = step.apply(in_memory(trained), context_of(trained, tmp_path)).state.model
    wide, kept = trained.model, {}
    for name, part in wide.named_modules():
        if isinstance(part, nn.Conv2d):
            small = narrow.get_submodule(name)
            inputs = kept.get("last", list(range(part.in_channels)))
            sliced = part.weight[:, inputs]
            rows = [
                next(i for i in range(len(sliced)) if torch.equal(sliced[i], row))
                for row in small.weight  # type: ignore[union-attr]
            ]
            kept["last"] = rows
            gone = [i for i in range(part.out_channels) if i not in rows]
            part.weight.data[gone] = 0
            part.bias.data[gone] = 0  # type: ignore[union-attr]
    inputs_B = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(narrow(inputs_B), wide(inputs_B), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", [RESNET, GROUPED, DEEP], ids=["resnet", "grouped", "deep"])
def test_a_narrower_model_with_norms_and_residuals_computes_what_the_masked_one_does(
    model: dict[str, object], tmp_path: Path
) -> None:
    trained = untrained(model)
    norms = {n: p for n, p in trained.model.named_modules() if isinstance(p, nn.BatchNorm2d | nn.GroupNorm)}
    for norm in norms.values():
        norm.weight.data = torch.rand_like(norm.weight) + 0.5  # each channel can be told by its weight
        norm.bias.data = torch.rand_like(norm.bias)
    narrow = Prune(PruneConfig(multiple_of=4)).apply(in_memory(trained), context_of(trained, tmp_path)).state.model
    for name, norm in norms.items():
        gone = ~torch.isin(norm.weight, narrow.get_submodule(name).weight)  # type: ignore[arg-type]
        assert int(gone.sum()) == len(gone) // 2
        norm.weight.data[gone] = 0
        norm.bias.data[gone] = 0
    inputs = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(narrow(inputs), trained.model(inputs), rtol=1e-5, atol=1e-5)


def test_layers_that_are_kept_stay_as_they_are(tmp_path: Path) -> None:
    trained = untrained(CNN)
    step = Prune(PruneConfig(ratio=0.5, multiple_of=4, keep=("block1",)))
    after = step.apply(in_memory(trained), context_of(trained, tmp_path)).state.model
    assert after.get_submodule("layers.block1.conv").out_channels == 16
    assert after.get_submodule("layers.block2.conv").out_channels == 16


def test_gradual_pruning_ends_at_the_same_width(tmp_path: Path) -> None:
    trained = untrained(CNN)
    step = Prune(PruneConfig(ratio=0.5, multiple_of=4, rounds=2, recover_epochs=0.2))
    after = step.apply(in_memory(trained), context_of(trained, tmp_path)).state.model
    assert [part.out_channels for part in after.modules() if isinstance(part, nn.Conv2d)] == [8, 16]


def test_the_control_is_trained_as_often_as_between_the_rounds(tmp_path: Path) -> None:
    trained = untrained(CNN)
    context = context_of(trained, tmp_path)
    step = Prune(PruneConfig(multiple_of=4, rounds=3, recover_epochs=0.2))
    assert isinstance(step, Trains)
    found = step.control(in_memory(trained), context)
    assert found is not None
    model = plain_copy(trained.model)
    for _ in range(2):
        recover(model, context, epochs=0.2)
    assert digest_of(found.state) == digest_of(State(MODULE, plain_copy(model))) != digest_of(in_memory(trained))
    assert Prune(PruneConfig()).control(in_memory(trained), context) is None


def test_a_steps_digest_is_of_its_helpers_too_and_a_plug_ins_of_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_too.py").write_text("HELP = 1\n\ndef build(config):\n    return None\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = _code_of("prune"), _code_of("share"), _code_of("mine_too:build")
    assert len(set(before)) == 3
    all_sources = _sources(Path(pipeline.__file__).parent)
    assert "def prune_weights" in all_sources
    assert "def keep_once" in all_sources
    monkeypatch.setattr(pipeline, "_sources", lambda folder: all_sources + "# a helper has changed")
    after = _code_of("prune"), _code_of("share"), _code_of("mine_too:build")
    assert [one == two for one, two in zip(before, after, strict=True)] == [False, False, True]
    (tmp_path / "mine_too.py").write_text("HELP = 2\n\ndef build(config):\n    return None\n")
    linecache.checkcache()
    assert _code_of("mine_too:build") != after[2], "what the function calls in its file counts"


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (150_000, "1_prune MADE NOTHING SMALLER: 100,000 bytes before, 150,000 after, size ratio 0.67"),
        (99_000, "1_prune MADE NOTHING SMALLER: 100,000 bytes before, 99,000 after, size ratio 1.01"),
        (97_000, ""),
    ],
)
def test_a_step_that_makes_nothing_smaller_is_told_with_both_sizes(after: int, words: str) -> None:
    assert _idle(StepReport(1, "prune", 0.0, after, 1, {}), 100_000, same=False) == words


def test_finetuning_repeats_bit_for_bit_and_leaves_its_input_alone(tmp_path: Path) -> None:
    trained = untrained(RESNET)
    context, step = context_of(trained, tmp_path), Finetune(FinetuneConfig(epochs=0.3, distill=Distill()))
    before = digest_of(in_memory(trained))
    one, two = (step.apply(in_memory(trained), context).state for _ in range(2))
    assert digest_of(one) == digest_of(two) != before
    assert digest_of(in_memory(trained)) == before


def test_masks_stay_exact_while_finetuning(tmp_path: Path) -> None:
    trained = untrained(CNN)
    name = "layers.block2.conv.weight"
    mask = torch.rand(trained.model.get_parameter(name).shape, generator=torch.Generator().manual_seed(0)) > 0.7
    state = State(MODULE, trained.model, masks={name: mask})
    step = Finetune(FinetuneConfig(epochs=0.2))
    after = step.apply(state, context_of(trained, tmp_path)).state
    weight = after.model.get_parameter(name)
    assert torch.equal(weight != 0, mask & (weight != 0))
    assert int((weight != 0).sum()) == int(mask.sum())


def test_the_distance_to_a_teacher_is_the_divergence_of_softened_answers() -> None:
    mine, theirs = torch.randn(4, 10), torch.randn(4, 10)
    wanted = sum(
        float(
            (
                functional.softmax(t / 3, -1) * (functional.log_softmax(t / 3, -1) - functional.log_softmax(m / 3, -1))
            ).sum()
        )
        for m, t in zip(mine, theirs, strict=True)
    )
    assert float(soft_distance(mine, theirs, 3.0)) == pytest.approx(9 * wanted / 4, rel=1e-5)
    assert float(soft_distance(theirs, theirs, 3.0)) == pytest.approx(0, abs=1e-6)


def test_a_teacher_with_other_classes_is_refused(tmp_path: Path) -> None:
    trained = untrained(CNN)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    with pytest.raises(ExportError, match="the teacher answers"):
        recover(trained.model, context_of(trained, tmp_path), epochs=0.1, lessons=Lessons(teacher))
