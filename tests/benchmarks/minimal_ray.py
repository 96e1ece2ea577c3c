"""The customary minimal Ray TorchTrainer script with the same loop, for `first_step.py` to compare with."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer, prepare_model
from torch import nn


def train_loop(config: dict[str, str]) -> None:
    """Train the digits CNN for a few steps; rank 0 writes the wall time after the first one."""
    from sklearn.datasets import load_digits

    inputs = torch.tensor(load_digits().images[:, None] / 16.0, dtype=torch.float32)
    targets = torch.tensor(load_digits().target)
    torch.set_num_threads(1)
    model = prepare_model(
        nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 16, 10),
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rank = ray.train.get_context().get_world_rank()
    for step in range(20):
        at = (step * 64 + rank * 32) % 1500
        loss = nn.functional.cross_entropy(model(inputs[at : at + 32]), targets[at : at + 32])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 0 and rank == 0:
            Path(config["mark"]).write_text(repr(time.time()))
    ray.train.report({"loss": loss.item()})


if __name__ == "__main__":
    TorchTrainer(
        train_loop,
        train_loop_config={"mark": sys.argv[1]},
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(storage_path=sys.argv[2]),
    ).fit()
