"""The digits are scikit-learn's own, read without importing it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from orchestrator.data import digits


def test_they_are_scikit_learns_images() -> None:
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    read_images, read_targets = digits._read()
    assert (images == read_images).all()
    assert (targets == read_targets).all()


def test_without_the_packaged_file_scikit_learn_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = digits.load(digits.Config())
    monkeypatch.setattr(digits, "_packaged_file", lambda: None)
    assert digits.load(digits.Config()).digest == packaged.digest


def test_loading_does_not_import_scikit_learn() -> None:
    code = "from orchestrator.data import digits; digits.load(digits.Config())"
    code += "; import sys; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_pixels_lie_between_0_and_1_and_flat_is_the_same_image() -> None:
    image, flat = (digits.load(digits.Config(flat=flat)).splits["train"] for flat in (False, True))
    rows = torch.arange(5)
    assert torch.equal(image.batch(rows)[0].flatten(1), flat.batch(rows)[0])
    pixels = image.batch(torch.arange(len(image)))[0]
    assert (pixels.min(), pixels.max()) == (0.0, 1.0)


def test_the_data_set_is_pinned() -> None:
    dataset = digits.load(digits.Config())
    assert dict(dataset.shape.num_samples) == {"train": 1259, "val": 179, "test": 359}
    assert dataset.digest == "c1158121a7214120"
