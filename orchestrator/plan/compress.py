"""Do the compression steps fit model and data? What can be known without torch, before anything trains.

A model may say `prunable(config) -> {kind: {name: width}}`: what structural pruning can make narrower, and how wide it
is. A step may say `plan_problems(config, model, widths)`, `job_problems(config, job)`, `data_problems(config, data)`,
`layout_problems(config, job, layout)`, `machine_problems(config, here)` and `follow_problems(config, before, job)`,
`before` being (name, config) of the steps before it: what does not work out, as (key, message, hint).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator import plugins
from orchestrator.errors import JobFileError, Problem
from orchestrator.plan.available import Available
from orchestrator.plan.layout import Layout
from orchestrator.plan.shapes import DataShape
from orchestrator.spec.job import JobSpec

_LAYERS = ("layer_names", "layer_costs", "recurrent_names")
Widths = Mapping[str, Mapping[str, int]]


def compress_problems(
    job: JobSpec, data: DataShape, layout: Layout, notes: list[str], here: Available | None = None
) -> list[Problem]:
    """Return every mismatch of steps with model, data, layout and the machine that compresses, where that is known.

    What only the worker can know becomes a note.
    """
    if not job.compress.steps:
        return []
    found = _calibration(job, data) + _limits(job, data)
    widths = model_widths(job)
    before: list[tuple[str, Any]] = []
    for index, use in enumerate(job.compress.steps):
        config = plugins.light_config("compressors", use.use)
        if config is None:
            continue
        plugin: Any = plugins.load("compressors", use.use)
        asked = plugins.build_config(config, use.options)
        if widths is None and use.use == "prune":
            notes.append(f"model {job.model.use} does not say what can be pruned: found out after training")
        complaints = (
            list(plugin.plan_problems(asked, job.model.use, widths)) if hasattr(plugin, "plan_problems") else []
        )
        complaints += plugin.job_problems(asked, job) if hasattr(plugin, "job_problems") else []
        complaints += plugin.data_problems(asked, data) if hasattr(plugin, "data_problems") else []
        complaints += plugin.layout_problems(asked, job, layout) if hasattr(plugin, "layout_problems") else []
        complaints += plugin.machine_problems(asked, here) if here and hasattr(plugin, "machine_problems") else []
        complaints += plugin.follow_problems(asked, before, job) if hasattr(plugin, "follow_problems") else []
        before.append((use.use, asked))
        for key, message, hint in complaints:
            path = f"compress.steps.{index}.{key}" if key else f"compress.steps.{index}"
            found.append(Problem(path, message, hint, "step-mismatch"))
    return found


def model_widths(job: JobSpec) -> Widths | None:
    """Return what the model says can be pruned; None when it says nothing of itself."""
    try:
        config = plugins.light_config("models", job.model.use)
        plugin: Any = plugins.load("models", job.model.use) if config else None
    except JobFileError:
        return None
    if config is None or not hasattr(plugin, "prunable"):
        return {} if config is not None else None
    widths: Widths = plugin.prunable(plugins.build_config(config, job.model.options))
    return widths


def model_sides(job: JobSpec) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return shapes of one input and one output of a job's model; None when it says nothing of itself."""
    try:
        config = plugins.light_config("models", job.model.use)
        if config is None:
            return None
        plugin: Any = plugins.load("models", job.model.use)
        shape = plugin.shape(plugins.build_config(config, job.model.options))
    except JobFileError:
        return None
    return tuple(shape.inputs), tuple(shape.outputs)


def largest_layer(job: JobSpec) -> int | None:
    """Return how many weights the largest layer of a job's model has at most; None when it says nothing of itself."""
    try:
        config = plugins.light_config("models", job.model.use)
        if config is None:
            return None
        plugin: Any = plugins.load("models", job.model.use)
        asked = plugins.build_config(config, job.model.options)
        if hasattr(plugin, "layer_costs"):
            return max(int(weights) for _, weights in plugin.layer_costs(asked))
        return int(plugin.shape(asked).num_params)
    except JobFileError:
        return None


def recurrent_share(job: JobSpec) -> float:
    """Return the share of a job's model's weights that its recurrent layers hold; 0.0 when it names no such layers.

    The model `rnn` names them by `recurrent_names(config)`, beside `layer_names` and `layer_costs`.
    """
    try:
        config = plugins.light_config("models", job.model.use)
        plugin: Any = plugins.load("models", job.model.use) if config else None
        if config is None or not all(hasattr(plugin, name) for name in _LAYERS):
            return 0.0
        asked = plugins.build_config(config, job.model.options)
    except JobFileError:
        return 0.0
    costs = zip(plugin.layer_names(asked), plugin.layer_costs(asked), strict=True)
    weights: dict[str, int] = {name: int(cost[1]) for name, cost in costs}
    return sum(weights.get(name, 0) for name in plugin.recurrent_names(asked)) / max(1, sum(weights.values()))


def _limits(job: JobSpec, data: DataShape) -> list[Problem]:
    if job.compress.limits.accuracy_drop is None or data.target_kind != "value":
        return []
    return [
        Problem(
            "compress.limits.accuracy_drop",
            f"data {job.data.use} has targets of kind value, which have no accuracy that could drop",
            "remove it: the report has the loss and the mean absolute error",
            "limits",
        )
    ]


def _calibration(job: JobSpec, data: DataShape) -> list[Problem]:
    split = job.compress.calibration.split
    if data.target_kind == "unknown" or data.num_samples.get(split, 0) > 0:
        return []
    there = [name for name, count in data.num_samples.items() if count and name != "test"]
    what = "is empty" if split in data.num_samples else "does not exist"
    return [
        Problem(
            "compress.calibration.split",
            f"the split '{split}' of data {job.data.use} {what}",
            f"set compress.calibration.split={there[0]}" if there else "choose other data",
            "calibration",
        )
    ]
