"""Do model, data, loss, metrics and optimiser go together? Each mismatch is a Problem that names the key to change."""

from __future__ import annotations

from orchestrator import plugins
from orchestrator.errors import Problem
from orchestrator.plan.layout import Layout
from orchestrator.plan.shapes import DataShape, ModelShape
from orchestrator.spec.job import JobSpec

METRICS_OF_LOSS = {"cross_entropy": ("accuracy",), "bce": ("accuracy",), "mse": ("mae",)}
_KINDS_OF_LOSS = {"cross_entropy": ("class",), "bce": ("binary", "class"), "mse": ("value",)}


def match_problems(job: JobSpec, model: ModelShape | None, data: DataShape, layout: Layout) -> list[Problem]:
    """Return every mismatch that can be known from what the parts say of themselves."""
    known_data = data.target_kind != "unknown"
    loss = job.train.loss.use if job.train.loss else (model.loss if model else None)
    found: list[Problem] = []
    if model is not None and known_data:
        found += _shape_problems(model, data)
    if loss in _KINDS_OF_LOSS and known_data and data.target_kind not in _KINDS_OF_LOSS[loss]:
        fits = [name for name, kinds in _KINDS_OF_LOSS.items() if data.target_kind in kinds]
        found.append(
            Problem(
                "train.loss",
                f"loss {loss} needs targets of kind {' or '.join(_KINDS_OF_LOSS[loss])}, "
                f"data {job.data.use} has kind {data.target_kind}",
                f"set train.loss={{use: {fits[0]}}}" if fits else "choose other data",
                "loss-mismatch",
            )
        )
    found += _sample_problems(job, data, known_data)
    found += _monitor_problems(job, loss)
    if job.train.monitor.patience is not None and known_data and not data.num_samples.get("val"):
        found.append(
            Problem(
                "train.monitor.patience",
                "stopping early needs a validation split, and it is empty",
                "raise data.val_fraction, or leave train.monitor.patience out",
                "no-validation",
            )
        )
    if job.optim.use == "adafactor" and layout.shard > 1:
        found.append(
            Problem(
                "optim.use",
                "adafactor factors a whole matrix into row and column means, which a sharded weight does not have",
                "set parallel.shard=1, or optim.use=adamw",
                "optimizer-layout",
            )
        )
    return found


def _shape_problems(model: ModelShape, data: DataShape) -> list[Problem]:
    found: list[Problem] = []
    if tuple(model.inputs) != tuple(data.inputs):
        found.append(
            Problem(
                "model",
                f"takes inputs of shape {tuple(model.inputs)}, the data gives {tuple(data.inputs)}",
                "change the model's input size, or the data's options (for example data.flat=true for an MLP)",
                "input-mismatch",
            )
        )
    takes = getattr(model, "input_dtype", data.input_dtype)
    if takes != data.input_dtype:
        found.append(
            Problem(
                "model",
                f"takes {takes} inputs, the data gives {data.input_dtype}",
                "choose data of that kind (int64: tokens, such as data text), or another model",
                "input-dtype",
            )
        )
    outputs = model.outputs[-1] if model.outputs else 1  # class scores come last: (classes,), or per token (L, classes)
    if data.target_kind == "class" and data.classes and outputs != len(data.classes) and outputs != 1:
        found.append(
            Problem(
                "model",
                f"gives {outputs} outputs, the data has {len(data.classes)} classes",
                f"set the model's number of outputs to {len(data.classes)}",
                "output-mismatch",
            )
        )
    return found


def _sample_problems(job: JobSpec, data: DataShape, known_data: bool) -> list[Problem]:
    samples = data.num_samples.get("train", 0)
    if not known_data:
        return []
    if samples == 0:
        return [
            Problem("data", "the training split is empty", "lower its val_fraction and test_fraction", "no-samples")
        ]
    if job.train.batch_size > samples:
        return [
            Problem(
                "train.batch_size",
                f"{job.train.batch_size} is more than the {samples} samples of the training split",
                f"set train.batch_size={samples} or less",
                "batch-too-large",
            )
        ]
    return []


def _monitor_problems(job: JobSpec, loss: str | None) -> list[Problem]:
    if job.train.metrics is not None:
        metrics: tuple[str, ...] | None = tuple(metric.use for metric in job.train.metrics)
    else:
        metrics = METRICS_OF_LOSS.get(loss or "")
    if metrics is None or not set(metrics) <= set(plugins.names("metrics")):  # its own code names them
        return []
    allowed = ["val/loss", *(f"val/{metric}" for metric in metrics)]
    wanted = job.train.monitor.metric
    if wanted in allowed or wanted.split("_")[0] in allowed:
        return []
    return [
        Problem(
            "train.monitor.metric",
            f"'{wanted}' is not computed by this job",
            f"set train.monitor.metric to one of: {', '.join(allowed)}",
            "monitor-mismatch",
        )
    ]
