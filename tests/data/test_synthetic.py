"""Synthetic data: the same bits on every machine, and what each kind promises."""

from __future__ import annotations

import pytest
import torch

from orchestrator.data import synthetic


@pytest.mark.parametrize(
    ("kind", "digest"),
    [
        ("blobs", "249afe2f5762ced1"),
        ("regression", "4e402fc374286eac"),
        ("xor", "b34da81966f89416"),
        ("images", "217ab5dfa3b76301"),
    ],
)
def test_every_machine_makes_the_same_bits(kind: str, digest: str) -> None:
    assert synthetic.load(synthetic.Config(kind=kind)).digest == digest  # type: ignore[arg-type]


def test_the_seed_changes_the_data() -> None:
    digests = {synthetic.load(synthetic.Config(seed=seed)).digest for seed in range(3)}
    assert len(digests) == 3


def test_regression_is_a_linear_rule_plus_noise() -> None:
    config = synthetic.Config(kind="regression", features=5, outputs=2, noise=0.1, num_samples=4000)
    inputs, targets = synthetic.load(config).splits["train"].batch(torch.arange(2800))
    rule = torch.linalg.lstsq(inputs.double(), targets.double()).solution
    left = targets.double() - inputs.double() @ rule
    assert 0.09 < float(left.std()) < 0.11
    assert abs(float(inputs.std()) - 1) < 0.03


def test_xor_is_yes_when_exactly_one_input_is_near_one() -> None:
    config = synthetic.Config(kind="xor", noise=0.4)
    inputs, targets = synthetic.load(config).splits["train"].batch(torch.arange(700))
    bits = inputs.round()
    assert torch.equal((bits[:, :1] != bits[:, 1:]).float(), targets)
    assert 0.4 < float(targets.mean()) < 0.6


def test_images_carry_their_class_as_a_place() -> None:
    config = synthetic.Config(kind="images", classes=4, noise=0.0)
    inputs, targets = synthetic.load(config).splits["train"].batch(torch.arange(100))
    assert torch.equal(inputs.flatten(1).argmax(1) // 16, targets)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"classes": 1}, "classes must be at least 2"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"features": 5000}, "features must be at most 4096"),
        ({"noise": -1.0}, "noise must be at least 0"),
        ({"kind": "images", "classes": 65}, "65 classes need as many places"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
    ],
)
def test_impossible_sizes_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        synthetic.Config(**options)  # type: ignore[arg-type]
