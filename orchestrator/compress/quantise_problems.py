"""Does `quantise` fit the job: scheme, format, target, model, budget? Told when the job is read. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.compress.finetune import feature_problems, mixup_problems
from orchestrator.compress.finetune import layout_problems as ranks_problems
from orchestrator.compress.formats import FORMATS, exported_as, missing, refusal
from orchestrator.compress.runtimes.base import MIN_COVERAGE
from orchestrator.plan.capability import NEEDED, too_old
from orchestrator.plan.compress import largest_layer, recurrent_share

if TYPE_CHECKING:
    from orchestrator.compress.quantise import Config
    from orchestrator.plan.available import Available
    from orchestrator.plan.compress import Widths
    from orchestrator.plan.layout import Layout
    from orchestrator.plan.shapes import DataShape
    from orchestrator.spec.job import JobSpec

Complaint = tuple[str, str, str]
_MOST, _MOST_CONV = 8.0, 4.0
_FLOAT_TARGETS = ("cnn", "resnet")  # convolutions have no kernels for weight-only integers
_INTEGERS = ("int8-static", "int8-dynamic", "int8-weight", "int4-weight")
_FLAT = ("mlp", "perceptron", "neuron")
_LINEAR_ONLY = {"float8": "linear layers and embeddings", "2:4": "linear layers"}
_OTHER_LAYERS = {"cnn": "convolutions", "resnet": "convolutions", "rnn": "recurrent layers"}
_ONE_TENSOR = {"moe": "experts that lie in one tensor"}
_INSTEAD = {"moe": "write float8", "rnn": "export as onnx, and write int8-dynamic with model.kind: lstm"}
LEAST_FLOAT8 = 160
"""Weights of the smallest layer that takes half of its bytes in float8, filled up to 16 x 16 and with its scales."""
LEAST_SPARSE = 32 * 64
"""Weights of the smallest layer that can be kept as 2:4."""


def plan_problems(config: Config, model: str, widths: Widths | None) -> list[Complaint]:
    """Return what does not work out with this model, as (key, message, hint)."""
    other = _OTHER_LAYERS.get(model) or (_ONE_TENSOR.get(model) if config.scheme == "2:4" else None)
    if config.scheme in _LINEAR_ONLY and other is not None:
        message = f"{config.scheme} changes {_LINEAR_ONLY[config.scheme]} only, and {model} is made of {other}"
        return [("scheme", message, _INSTEAD.get(model, "export as onnx, and write int8-static"))]
    if model in _FLOAT_TARGETS and config.scheme in ("int8-dynamic", "int8-weight", "int4-weight"):
        message = f"{config.scheme} changes linear layers only, and {model} is made of convolutions"
        return [("scheme", message, "write int8-static")]
    return []


def job_problems(config: Config, job: JobSpec) -> list[Complaint]:
    """Return why the format cannot be had so, `qat` would undo a step, or a budget cannot be met, as complaints."""
    format = exported_as(job)
    if config.scheme not in FORMATS[format].schemes:
        return [("scheme", *refusal(format, config.scheme))]
    unknown = _target_problems(config, format) or _option_problems(config, format)
    if unknown:
        return unknown
    if config.qat is not None and not FORMATS[format].qat:
        return [("qat", f"training on the integers knows the grid of onnx, not that of {format}", "remove qat")]
    lacking = (
        missing(format, "scheme", integers=True)
        or _size_problems(config, job)
        or _flat_problems(config, job, format)
        or _recurrent_problems(config, job, format)
    )
    if lacking:
        return lacking
    steps = {step.use for step in job.compress.steps}
    most = _MOST_CONV if job.model.use in _FLOAT_TARGETS else _MOST
    ratio = config.budget.size_ratio if config.budget is not None else None
    if ratio is not None and ratio > most and not steps & {"prune", "lowrank", "share"}:
        message = f"{ratio:g} x smaller takes fewer bits than the runtime has kernels for: at most {most:g} x"
        return [("budget.size_ratio", message, "lower it, or take parts out first (`prune`)")]
    distill = config.qat.distill if config.qat is not None else None
    features = [(f"qat.distill.{key}", message, hint) for key, message, hint in feature_problems(distill, job)]
    if features:
        return features
    if config.qat is None or not _shares_values(job):
        return []
    message = "training on the grid of the integers would take weights off the values that `share` gave them"
    return [("qat", message, "remove share: integers share values anyway")]


def _shares_values(job: JobSpec) -> bool:
    """Say whether a step gives weights values in common; blocks that become one are trained as one."""
    return any(step.use == "share" and step.options.get("kind", "values") == "values" for step in job.compress.steps)


def _flat_problems(config: Config, job: JobSpec, format: str) -> list[Complaint]:
    """Return that ONNX Runtime's tool for weights alone passes over all layers of a model, as (key, message, hint).

    Linear layers on flat inputs are Gemm in the graph but where they have no bias, as the first of `lowrank`'s pairs.
    """
    lowrank = any(step.use == "lowrank" for step in job.compress.steps)
    if format != "onnx" or config.scheme not in ("int8-weight", "int4-weight") or job.model.use not in _FLAT or lowrank:
        return []
    message = (
        f"{config.scheme} changes linear layers on sequences and embeddings only in onnx: those of model "
        f"{job.model.use} have a bias and flat inputs, which its tool passes over"
    )
    return [("scheme", message, "write int8-static or int8-dynamic")]


def _recurrent_problems(config: Config, job: JobSpec, format: str) -> list[Complaint]:
    """Return that too many weights of an `rnn` are in layers that stay floats, as (key, message, hint).

    ONNX Runtime has an operator for an LSTM whose inputs are rounded as they come, OpenVINO's tools take an LSTM's
    matrices with ranges; neither does so for a GRU. Of a model of one's own nothing is known, and the check decides.
    """
    kind = job.model.options.get("kind", "gru")
    able = kind == "lstm" and (format, config.scheme) in (("onnx", "int8-dynamic"), ("openvino", "int8-static"))
    if job.model.use != "rnn" or config.scheme not in _INTEGERS or able:
        return []
    share = recurrent_share(job)
    if share <= 1 - MIN_COVERAGE:
        return []
    message = (
        f"{share:.0%} of the weights of model rnn are in recurrent layers, which stay floats as {config.scheme} in "
        f"{format}: {MIN_COVERAGE:.0%} must be integers"
    )
    hint = "export as onnx, and write int8-dynamic with model.kind: lstm; or, for storage: prune, share and pack"
    return [("scheme", message, hint)]


def _target_problems(config: Config, format: str) -> list[Complaint]:
    """Return why a file in the scheme cannot be judged on the target, as (key, message, hint)."""
    able = FORMATS[format].targets.get(config.scheme, ("cpu",))
    if config.scheme == "2:4" and config.target not in able:
        message = (
            "torch's operators that skip two of every four weights have no kernels on a processor: it takes an "
            "NVIDIA GPU from Ampere on (compute capability 8.0)"
        )
        hint = "write target: cuda; for a smaller file by the zeros: `prune` with kind: 2:4, and `pack`"
        return [("target", message, hint)]
    if config.target not in able:
        message = f"{config.scheme} in {format} runs on the processor"
        return [("target", message, "leave it out, or export as program with scheme: float8 or 2:4")]
    return []


def machine_problems(config: Config, here: Available) -> list[Complaint]:
    """Return why a file cannot be judged on this machine's GPU, as (key, message, hint).

    What is compressed is judged where the command runs, wherever the job's cluster is.
    """
    if config.target == "cpu":
        return []
    able = FORMATS["program"].targets.get(config.scheme, ())
    instead = "write target: cpu" if "cpu" in able else "export as onnx and write int8-static"
    if here.num_gpus == 0:
        hint = f"compress on a machine that has one (`orchestrator compress RUN JOB`), or {instead}"
        return [("target", "the file is judged on an NVIDIA GPU of this machine, which has none", hint)]
    capability = here.best_capability()
    why = too_old(config.scheme, capability) if capability is not None and config.scheme in NEEDED else ""
    hint = f"compress on a machine with a newer one (`orchestrator compress RUN JOB`), or {instead}"
    return [("target", why, hint)] if why else []


def _size_problems(config: Config, job: JobSpec) -> list[Complaint]:
    """Return that no layer is large enough for the scheme, or has the zeros it takes, as (key, message, hint)."""
    largest = largest_layer(job)
    if config.scheme == "2:4":
        if not any(step.use == "prune" and step.options.get("kind") == "2:4" for step in job.compress.steps):
            hint = "put `prune` with kind: 2:4 before export, and a `finetune` after it"
            return [("scheme", "2:4 keeps two of every four weights, and no step makes the others zero", hint)]
        if largest is not None and largest < LEAST_SPARSE:
            message = (
                f"the largest layer of model {job.model.use} has {largest} weights: the kernels take no fewer than "
            )
            return [("scheme", f"{message}{LEAST_SPARSE} (32 outputs of 64 inputs)", "widen the model, or use float8")]
    if config.scheme != "float8" or largest is None or largest >= LEAST_FLOAT8:
        return []
    message = (
        f"the largest layer of model {job.model.use} has {largest} weights: filled up to multiples of 16, as float8 is "
        f"multiplied, with its scales, none of fewer than {LEAST_FLOAT8} becomes half as large"
    )
    return [("scheme", message, "remove quantise, or widen the model")]


def _option_problems(config: Config, format: str) -> list[Complaint]:
    """Return which options the tools of the format do not have, as (key, message, hint)."""
    found: list[Complaint] = []
    known = ("minmax", *FORMATS[format].algorithms.get(config.scheme, ()))
    if config.algorithm not in known:
        message = f"the tools of {format} have no {config.algorithm} for {config.scheme}"
        found.append(("algorithm", message, f"write {' or '.join(known)}"))
    if config.group != 32 and config.scheme not in FORMATS[format].grouped:
        message = f"{config.scheme} has a scale for each output in {format}, none for groups of inputs"
        found.append(("group", message, "leave it out"))
    return found


def data_problems(config: Config, data: DataShape) -> list[Complaint]:
    """Return why the data cannot be used as asked, as (key, message, hint)."""
    distill = config.qat.distill if config.qat is not None else None
    return [(f"qat.distill.{key}", message, hint) for key, message, hint in mixup_problems(distill, data)]


def layout_problems(config: Config, job: JobSpec, layout: Layout) -> list[Complaint]:
    """Return why `qat` cannot train under the job's layout, as (key, message, hint)."""
    if config.qat is None:
        return []
    return [(f"qat.{key}", message, hint) for key, message, hint in ranks_problems(config.qat, job, layout)]
