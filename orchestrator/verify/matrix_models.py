"""A job of a second or less for every registered model, for `verify --matrix`. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.spec.job import JobSpec

_TEXT = {"use": "text", "corpus": "python", "seq_len": 8, "max_bytes": 50_000}
_IMAGES = {"use": "digits"}
_TRANSFORMER = {"seq_len": 8, "dim": 16, "layers": 6, "heads": 8, "kv_heads": 8, "hidden": 16, "vocab": 256}
_EXPERTS = {**_TRANSFORMER, "experts": 8, "expert_hidden": 16, "shared_experts": 1, "dense_layers": 1}
# Enough layers for two stages on each of four ranks where the model has that many, and widths that eight divides.
_PARTS: dict[str, dict[str, Any]] = {
    "neuron": {
        "model": {"use": "neuron", "inputs": 6},
        "data": {"use": "synthetic", "kind": "regression", "features": 6},
    },
    "perceptron": {"model": {"use": "perceptron"}, "data": {"use": "synthetic", "kind": "xor"}},
    "mlp": {
        "model": {"use": "mlp", "inputs": 64, "hidden": [16] * 7, "outputs": 10},
        "data": {**_IMAGES, "flat": True},
    },
    "cnn": {"model": {"use": "cnn", "channels": [16, 16, 16], "norm": "group", "hidden": 16}, "data": _IMAGES},
    "resnet": {
        "model": {"use": "resnet", "channels": [16, 16], "depths": [2, 2], "norm": "group"},
        "data": _IMAGES,
    },
    "resnet, batch norm": {
        "model": {"use": "resnet", "channels": [16, 16], "depths": [2, 2], "norm": "batch"},
        "data": _IMAGES,
    },
    "resnet, synchronised batch norm": {
        "model": {"use": "resnet", "channels": [16, 16], "depths": [2, 2], "norm": "sync_batch"},
        "data": _IMAGES,
    },
    "rnn": {
        "model": {"use": "rnn", "kind": "lstm", "seq_len": 8, "dim": 16, "hidden": 16, "layers": 6},
        "data": _TEXT,
    },
    "transformer": {"model": {"use": "transformer", **_TRANSFORMER}, "data": _TEXT},
    "transformer, tied": {
        "model": {
            "use": "transformer",
            **_TRANSFORMER,
            "kv_heads": 4,
            "layers": 3,
            "repeat": 2,
            "tied_embeddings": True,
        },
        "data": _TEXT,
    },
    "moe": {"model": {"use": "moe", **_EXPERTS}, "data": _TEXT},
    "moe, balance loss": {"model": {"use": "moe", **_EXPERTS, "balance_loss": 0.01, "z_loss": 0.001}, "data": _TEXT},
    "vit": {"model": {"use": "vit", "dim": 16, "layers": 5, "heads": 8, "hidden": 16}, "data": _IMAGES},
}


def matrix_jobs() -> Mapping[str, JobSpec]:
    """Return the jobs by the name of their row; a row's name begins with its model's."""
    common = {
        "optim": {"use": "adamw", "lr": 0.003, "clip_norm": 0.5},
        "train": {"steps": 10, "batch_size": 32, "precision": "fp64"},
        "parallel": {"replicate": 1},
    }
    return {name: JobSpec.model_validate({**common, **parts}) for name, parts in _PARTS.items()}
