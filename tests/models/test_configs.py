"""Sizes that cannot be are refused before torch is loaded, in words that name the key."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator import plugins
from orchestrator.models import cnn, mlp, moe, neuron, perceptron, resnet, rnn, transformer, vit


@pytest.mark.parametrize(
    ("plugin", "options", "says"),
    [
        (cnn, {"kernel_size": 4}, "kernel_size must be odd"),
        (cnn, {"image_size": 10}, "image_size 10 cannot be halved 2 times"),
        (cnn, {"channels": []}, "channels needs at least one block"),
        (cnn, {"channels": [16, 0]}, "channels.1 must be at least 1"),
        (cnn, {"hidden": -1}, "hidden must be 0"),
        (cnn, {"pool": "median"}, "max or avg"),
        (cnn, {"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        (mlp, {"inputs": 2}, "required key is missing"),
        (mlp, {"inputs": 0, "outputs": 1}, "inputs must be at least 1"),
        (mlp, {"inputs": 2, "outputs": 1, "hidden": [4, 0]}, "hidden.1 must be at least 1"),
        (mlp, {"inputs": 2, "outputs": 1, "hiden": [4]}, "unknown key"),
        (neuron, {"inputs": 3, "weights": [1.0]}, "1 weights for 3 inputs"),
        (perceptron, {"inputs": 0}, "inputs must be at least 1"),
        (resnet, {"channels": [8]}, "1 channels and 2 depths"),
        (
            resnet,
            {"image_size": 6, "channels": [8, 8, 8], "depths": [1, 1, 1]},
            "image_size 6 cannot be halved 2 times",
        ),
        (resnet, {"depths": [1, 0]}, "depths.1 must be at least 1"),
        (rnn, {"vocab": 0}, "features must be at least 1"),
        (rnn, {"classes": 3}, "features and classes are for rows of numbers"),
        (rnn, {"kind": "elman"}, "gru or lstm"),
        (transformer, {"dim": 30, "heads": 4}, "dim 30 over 4 heads must give an even whole width, not 7.5"),
        (transformer, {"dim": 12, "heads": 4}, "not 3"),
        (transformer, {"heads": 4, "kv_heads": 3}, "heads 4 must be a multiple of kv_heads 3"),
        (transformer, {"repeat": 0}, "repeat must be at least 1"),
        (transformer, {"rope_base": 0.5}, "rope_base must be above 1"),
        (moe, {"experts": 2, "top_k": 3}, "top_k 3 is more than the 2 experts"),
        (moe, {"layers": 2, "dense_layers": 2}, "dense_layers 2 leaves none of 2 layers"),
        (moe, {"repeat": 2}, "repeat must be 1"),
        (moe, {"capacity_factor": 0.5}, "capacity_factor must be 0 (no limit) or at least 1"),
        (moe, {"z_loss": -1.0}, "z_loss must be at least 0"),
        (vit, {"patch_size": 3}, "image_size 8 is not a whole number of patches of 3"),
    ],
)
def test_impossible_options_are_named(plugin: Any, options: dict[str, Any], says: str) -> None:
    problems = plugins.config_problems(plugin.Config, options)
    assert any(says in problem.message for problem in problems), problems


def test_a_model_names_the_loss_that_fits_its_outputs() -> None:
    assert mlp.shape(mlp.Config(inputs=4, outputs=3)).loss == "cross_entropy"
    assert mlp.shape(mlp.Config(inputs=4, outputs=1)).loss == "mse"
    assert perceptron.shape(perceptron.Config()).loss == "bce"
