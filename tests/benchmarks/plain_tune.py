"""The plain way to sweep: Ray Tune, each trial a function that fits a TorchTrainer of one worker. Used by `sweeps`.

`python plain_tune.py FOLDER TRIALS`. The same model, data and length as the trials it is compared with.
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")


def train(config: dict[str, Any]) -> None:
    """Train the MLP on the digits for three epochs."""
    import ray.train
    import torch
    from sklearn.datasets import load_digits

    inputs, targets = load_digits(return_X_y=True)
    x, y = torch.tensor(inputs / 16.0, dtype=torch.float32)[:1257], torch.tensor(targets)[:1257]
    model = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"])
    for _ in range(3):
        for start in range(0, len(x), 64):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x[start : start + 64]), y[start : start + 64])
            loss.backward()
            optimizer.step()
        ray.train.report({"loss": loss.item()})


def trial(config: dict[str, Any]) -> None:
    """Fit a trainer, as Ray's documentation says."""
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    TorchTrainer(
        train,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(storage_path=config["folder"], callbacks=[TuneReportCallback()]),
    ).fit()


def main(folder: str, trials: int) -> None:
    """Sweep, two trials at a time; a third CPU is declared, so that trials' drivers take no worker's room."""
    import ray
    from ray import tune

    ray.init(num_cpus=3, log_to_driver=False, include_dashboard=True)
    space = {"lr": tune.loguniform(1e-3, 1e-1), "folder": folder}
    tuner = tune.Tuner(
        tune.with_resources(trial, {"CPU": 0.5}),
        param_space=space,
        tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=2),
        run_config=tune.RunConfig(storage_path=folder, verbose=0),
    )
    results = tuner.fit()
    assert not results.errors, results.errors
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
