"""A teacher of one's choice: found by its folder, refused with the reason before anything trains."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.compress.counted import Counted
from orchestrator.compress.distill import Config, Distil
from orchestrator.compress.manifest import Link
from orchestrator.compress.pipeline import _Run, digest_of
from orchestrator.compress.recover import Lessons, counted_of, recover, taught_distance
from orchestrator.compress.teacher import load_teacher, teacher_job
from orchestrator.data.order import SampleOrder
from orchestrator.errors import ExportError, PlanError
from orchestrator.export import package
from orchestrator.export.restore import build_model
from orchestrator.export.weights import digest_weights, plain_copy, state_tensors
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.spec.job import JobSpec
from orchestrator.spec.load import load_spec
from orchestrator.train.loss import BinaryCrossEntropy, CrossEntropy, MeanSquaredError
from tests.export import making
from tests.export.making import VerifiedHere, export, train_run

from .making import CNN, RESNET, context_of, in_memory, make_job, make_trained

HERE = Available(num_cpus=2.0, num_gpus=0, memory_bytes=8 << 30)


def steps(**options: Any) -> list[dict[str, Any]]:
    return [{"use": "prune"}, {"use": "distill", **options}, {"use": "export"}]


def said(job: JobSpec) -> str:
    with pytest.raises(PlanError) as caught:
        build_plan(job, HERE)
    return "\n".join(f"{each.path}: {each.message} [{each.hint}]" for each in caught.value.problems)


def test_the_model_before_teaches_by_default_and_a_run_or_an_export_when_named(tmp_path: Path) -> None:
    run = train_run(tmp_path / "storage", make_job(RESNET))
    (made,) = export(make_job(RESNET), ["safetensors"], tmp_path / "export", torch.rand(45, 1, 8, 8))
    trained = make_trained(make_job(CNN, steps()), epochs=0)
    context = context_of(trained, tmp_path)
    digests = set()
    for teacher in ("input", str(run.path), str(made.path)):
        build_plan(make_job(CNN, steps(teacher=teacher)), HERE)
        change = Distil(Config(teacher=teacher, epochs=0.2)).apply(in_memory(trained), context)
        digests.add(digest_of(change.state))
        weights = state_tensors(trained.model if teacher == "input" else load_teacher(teacher))
        assert change.read == {"teacher": digest_weights(weights)}
    assert len(digests) == 3
    assert not any(parameter.requires_grad for parameter in load_teacher(str(run.path)).parameters())


def test_the_lineage_names_the_weights_of_the_teacher(tmp_path: Path) -> None:
    (made,) = export(make_job(RESNET), ["safetensors"], tmp_path / "export", torch.rand(45, 1, 8, 8))
    job = make_job(CNN, [{"use": "distill", "teacher": str(made.path), "epochs": 0.05}, {"use": "export"}])
    only = job.compress.model_copy(update={"steps": job.compress.steps[:1]})
    trained = make_trained(job.model_copy(update={"compress": only}), epochs=0)
    run = _Run(trained, tmp_path / "compress", lambda text: None)
    run.steps(run.report(0, "trained", in_memory(trained), 0.0))
    (link,) = run.links
    assert link.read == {"teacher": digest_weights(state_tensors(load_teacher(str(made.path))))}
    assert Link(**json.loads(json.dumps(asdict(link)))) == link


def test_a_teacher_of_float64_answers_inputs_of_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "Verification", VerifiedHere)
    model = build_model(make_job(CNN).model)
    monkeypatch.setattr(making, "make_model", lambda job: plain_copy(model).double())
    inputs = torch.rand(45, 1, 8, 8)
    (made,) = export(make_job(CNN), ["safetensors"], tmp_path, inputs.double())
    assert made.ok, made.error
    torch.testing.assert_close(load_teacher(str(made.path))(inputs), plain_copy(model)(inputs))


def test_a_teacher_of_numbers_or_of_one_logit_is_followed_too() -> None:
    outputs, wanted = torch.tensor([[0.5], [2.0]], dtype=torch.float64), torch.tensor([[1.0], [-1.0]]).double()
    number = taught_distance(MeanSquaredError(), outputs, wanted, 4.0)
    assert float(number) == pytest.approx((0.25 + 9.0) / 2)
    mine, theirs = torch.sigmoid(outputs / 4), torch.sigmoid(wanted / 4)
    divergence = theirs * (theirs / mine).log() + (1 - theirs) * ((1 - theirs) / (1 - mine)).log()
    logit = taught_distance(BinaryCrossEntropy(), outputs, wanted, 4.0)
    assert float(logit) == pytest.approx(16 * float(divergence.mean()))


def test_what_the_loss_leaves_out_is_left_out_of_the_distances_on_any_number_of_ranks() -> None:
    """Two sequences of five tokens, padded after two and after four: two ranks with one each, or one with both."""
    numbers = torch.Generator().manual_seed(0)
    outputs, wanted = (torch.randn(2, 5, 7, generator=numbers, dtype=torch.float64) for _ in range(2))
    targets = torch.tensor([[1, 2, -1, -1, -1], [3, 4, 5, 6, -1]])
    loss = CrossEntropy(CrossEntropy.Config(ignore_index=-1))
    valid = targets != -1
    for distance in (
        lambda mine, theirs, counted: taught_distance(loss, mine, theirs, 4.0, counted),
        lambda mine, theirs, counted: counted.mean((mine - theirs).square()),
    ):
        every = Counted(torch.ones(6, dtype=torch.bool), 6.0)
        meant = float(distance(outputs[valid], wanted[valid], every))
        both = counted_of(loss, targets, 6.0)
        assert float(distance(outputs, wanted, both)) == pytest.approx(meant)
        ranks = [distance(outputs[at : at + 1], wanted[at : at + 1], Counted(valid[at : at + 1], 3.0)) for at in (0, 1)]
        assert float(sum(ranks)) / 2 == pytest.approx(meant)
    assert counted_of(CrossEntropy(CrossEntropy.Config()), targets, 6.0) is None
    pooled = torch.rand(2, 3)  # one place for a whole sequence
    assert float(Counted(valid, 3.0).mean(pooled)) == pytest.approx(float(pooled.mean()))


def test_a_pupil_of_numbers_comes_nearer_to_its_teacher(tmp_path: Path) -> None:
    job = make_job({"use": "mlp", "inputs": 2, "hidden": [16], "outputs": 1}, steps()[1:])
    data = {"use": "synthetic", "kind": "regression", "num_samples": 256, "features": 2}
    job = type(job).model_validate(job.model_dump(mode="json") | {"data": data})
    teacher, pupil = make_trained(job, epochs=0), make_trained(job, epochs=0)
    teacher.model.get_parameter("layers.head.bias").add_(1.0)  # it says otherwise than the data
    context = context_of(teacher, tmp_path)
    inputs = context.calibration()[0]
    before = (pupil.model(inputs) - teacher.model(inputs)).square().mean()
    recover(pupil.model, context, epochs=10, lr=0.03, lessons=Lessons(teacher.model, weight=1.0))
    assert float((pupil.model(inputs) - teacher.model(inputs)).square().mean()) < 0.5 * float(before)


def test_a_pupil_comes_nearer_to_its_teacher(tmp_path: Path) -> None:
    from orchestrator.compress.recover import soft_distance

    trained = make_trained(make_job(RESNET, steps()), epochs=2)
    context = context_of(trained, tmp_path)
    fresh = make_trained(make_job(RESNET, steps()), epochs=0)
    pupil = Distil(Config(epochs=2, lr=0.005, weight=1.0)).apply(in_memory(fresh), context).state.model
    inputs, _ = context.calibration()
    wanted = trained.model(inputs)
    before, after = (float(soft_distance(model(inputs), wanted, 4.0)) for model in (fresh.model, pupil))
    assert after < 0.2 * before


def test_a_teacher_of_other_classes_is_refused_before_anything_trains(tmp_path: Path) -> None:
    job = make_job({**RESNET, "classes": 12})
    (made,) = export(job, ["safetensors"], tmp_path / "export", torch.rand(45, 1, 8, 8))
    text = said(make_job(CNN, steps(teacher=str(made.path))))
    assert "compress.steps.1.teacher: the teacher maps (1, 8, 8) to (12,), the model (1, 8, 8) to (10,)" in text


def test_a_teacher_that_is_not_there_is_refused_before_anything_trains(tmp_path: Path) -> None:
    text = said(make_job(CNN, steps(teacher=str(tmp_path / "nobody"))))
    assert "is neither the folder of a run nor one that `export` wrote" in text
    with pytest.raises(ExportError, match="neither the folder of a run"):
        teacher_job(str(tmp_path))


@pytest.mark.parametrize("options", [{"temperature": 0}, {"weight": 0}, {"epochs": 0}, {"lr": -1}, {"batch_size": 0}])
def test_numbers_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Config(**options)


def test_a_teacher_in_a_job_file_is_read(tmp_path: Path) -> None:
    job = load_spec({"model": {"use": "cnn"}, "data": {"use": "digits"}, "compress": {"steps": steps()}})
    assert state_tensors(make_trained(job, epochs=0).model)
    assert build_plan(job, HERE).num_params


def test_blends_of_samples_have_no_target_and_must_be_of_numbers() -> None:
    with pytest.raises(ValueError, match="mixup needs weight 1"):
        Config(mixup=True)
    text = {"use": "text", "corpus": "python", "seq_len": 8}
    model = {"use": "transformer", "vocab": 256, "seq_len": 8, "dim": 16, "layers": 1, "heads": 4}
    job = make_job(model, [{"use": "distill", "mixup": True, "weight": 1.0}, {"use": "export"}])
    job = JobSpec.model_validate(job.model_dump(mode="json") | {"data": text})
    assert "compress.steps.0.mixup: inputs of type int64 cannot be blended" in said(job)


def test_teacher_and_pupil_are_asked_about_the_same_blends_of_two_samples(tmp_path: Path) -> None:
    trained = make_trained(make_job(CNN, steps()), epochs=0)
    asked: dict[str, torch.Tensor] = {}
    for name, model in (("teacher", (teacher := plain_copy(trained.model))), ("pupil", trained.model)):
        model.register_forward_pre_hook(lambda _, given, name=name: asked.update({name: given[0]}))
    lessons = Lessons(teacher, weight=1.0, mixup=True)
    recover(trained.model, context_of(trained, tmp_path), epochs=1, steps=1, lessons=lessons)
    assert torch.equal(asked["teacher"], asked["pupil"])
    first = SampleOrder(len(trained.data.splits["train"]), 64, trained.job.train.seed).indices(0)
    samples, _ = trained.data.splits["train"].batch(torch.from_numpy(first.copy()))
    others = samples.roll(1, 0)
    apart = (others - samples).flatten(1).norm(dim=1)
    shares = (asked["pupil"] - samples).flatten(1).norm(dim=1) / apart
    torch.testing.assert_close(asked["pupil"], samples + shares.view(-1, 1, 1, 1) * (others - samples))
    assert 0.3 < float(shares.mean()) < 0.7
    assert float(shares.max()) < 1
