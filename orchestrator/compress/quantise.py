"""`use: quantise`: an exported model with small integers in place of floats, through the tools of its format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from orchestrator.compress.base import ARTIFACT, EXPORTED, Change, Context, State
from orchestrator.compress.finetune import Config as FinetuneConfig
from orchestrator.compress.finetune import feature_problems, lessons_of, mixup_problems, train
from orchestrator.compress.finetune import layout_problems as ranks_problems
from orchestrator.compress.formats import FORMATS, exported_as, load, missing, refusal
from orchestrator.compress.runtimes.base import MIN_COVERAGE
from orchestrator.errors import ExportError
from orchestrator.plan.available import Available
from orchestrator.plan.compress import largest_layer, recurrent_share

if TYPE_CHECKING:
    from orchestrator.plan.compress import Widths
    from orchestrator.plan.layout import Layout
    from orchestrator.plan.shapes import DataShape
    from orchestrator.spec.job import JobSpec

Complaint = tuple[str, str, str]
_MOST, _MOST_CONV = 8.0, 4.0
_RANGES, _ROUNDINGS = ("minmax", "entropy", "percentile"), ("minmax", "gptq", "awq", "scale")
_FLOAT_TARGETS = ("cnn", "resnet")  # convolutions have no kernels for weight-only integers
_FLAT = ("mlp", "perceptron", "neuron")
_LINEAR_ONLY = {"float8": "linear layers and embeddings", "2:4": "linear layers"}
_OTHER_LAYERS = {"cnn": "convolutions", "resnet": "convolutions", "rnn": "recurrent layers"}
_ONE_TENSOR = {"moe": "experts that lie in one tensor"}
_INSTEAD = {"moe": "write float8", "rnn": "export as onnx, and write int8-dynamic with model.kind: lstm"}
LEAST_FLOAT8 = 160
"""Weights of the smallest layer that takes half of its bytes in float8, filled up to 16 x 16 and with its scales."""
LEAST_SPARSE = 32 * 64
"""Weights of the smallest layer that kernels for 2:4 take."""


@dataclass(frozen=True)
class Qat(FinetuneConfig):
    """Quantisation-aware training: passes over the training split (or `steps`), weights and activations rounded.

    All else is as in `finetune`. `distill`: the model as it was before the first step teaches.
    """

    epochs: float = 3.0
    steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and self.steps < 1:
            raise ValueError("steps must be at least 1")


@dataclass(frozen=True)
class Budget:
    """How small the file must be: `bytes`, or `size_ratio` times smaller than the fp32 weights as they were trained."""

    size_ratio: float | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        if (self.size_ratio is None) == (self.bytes is None):
            raise ValueError("give either size_ratio or bytes")
        if (self.size_ratio is not None and self.size_ratio <= 1) or (self.bytes is not None and self.bytes < 1):
            raise ValueError("size_ratio must be above 1, bytes at least 1")


@dataclass(frozen=True)
class Config:
    """`int8-static`: weights and activations, ranges from calibration samples (convolutions, linear layers).

    `int8-dynamic`: weights, and activations as they come (linear layers). `int8-weight`, `int4-weight`: weights only,
    in groups of `group` with a scale each (linear layers and embeddings; best where few tokens are computed at once).
    `mixed`: every layer in 32, 8 or 4 bits, whatever the runtime can, as its measured sensitivity and `budget` ask.
    `algorithm`: how the ranges of int8-static are chosen (`entropy`, `percentile`: onnx only), or what int4-weight does
    beside rounding (openvino only): `gptq` lets weights that are yet to be rounded make up for those that are, `awq`
    widens channels that weigh much first, `scale` chooses scales by the layer's outputs.
    `float8`: weights, and inputs as they come, in 8-bit floating point (linear layers and embeddings; program only).
    `2:4`: linear layers that `prune` left two of every four weights keep no more than those, in bfloat16, and a GPU
    skips the rest (program only, target cuda).
    `target`: what the file is run on to be judged, and what it is compared on: `cpu`, or `cuda` (float8 and 2:4).
    `qat` trains the exported model on the very integers first, and exports it again.
    """

    scheme: Literal["int8-static", "int8-dynamic", "int8-weight", "int4-weight", "mixed", "float8", "2:4"] = (
        "int8-static"
    )
    target: Literal["cpu", "cuda"] = "cpu"
    algorithm: Literal["minmax", "entropy", "percentile", "gptq", "awq", "scale"] = "minmax"
    group: int = 32
    qat: Qat | None = None
    budget: Budget | None = None

    def __post_init__(self) -> None:
        if self.group not in (16, 32, 64, 128, 256):
            raise ValueError(f"group must be 16, 32, 64, 128 or 256, not {self.group}")
        if self.scheme in ("int8-static", "int8-dynamic", "float8", "2:4") and self.group != 32:
            raise ValueError(f"group means nothing for {self.scheme}: leave it out")
        known = {"int8-static": _RANGES, "mixed": _RANGES, "int4-weight": _ROUNDINGS}.get(self.scheme, ("minmax",))
        if self.algorithm not in known:
            raise ValueError(f"algorithm {self.algorithm} means nothing for {self.scheme}: leave it out")
        if (self.scheme == "mixed") != (self.budget is not None):
            raise ValueError("scheme: mixed and budget go together: how small, and which layers pay for it")
        if self.scheme == "mixed" and self.qat is not None:
            raise ValueError("qat trains layers of one scheme, not mixed: leave qat or budget out")


def flow(config: Config) -> tuple[str, str]:
    """Return what it takes and gives."""
    return EXPORTED, ARTIFACT


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
    unknown = _target_problems(config, job, format) or _option_problems(config, format)
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
    """Return that too many weights are in recurrent layers, which stay floats, as (key, message, hint).

    ONNX Runtime has an operator for an LSTM whose inputs are rounded as they come, and none for a GRU.
    """
    share = recurrent_share(job)
    able = format == "onnx" and config.scheme == "int8-dynamic" and job.model.options.get("kind") == "lstm"
    if share <= 1 - MIN_COVERAGE or able or config.scheme == "mixed":
        return []
    message = (
        f"{share:.0%} of the weights of model {job.model.use} are in recurrent layers, which stay floats as "
        f"{config.scheme} in {format}: {MIN_COVERAGE:.0%} must be integers"
    )
    hint = "export as onnx, and write int8-dynamic with model.kind: lstm; or, for storage: prune, share and pack"
    return [("scheme", message, hint)]


def _target_problems(config: Config, job: JobSpec, format: str) -> list[Complaint]:
    """Return why a file in the scheme cannot be judged on the target, or here, as (key, message, hint)."""
    able = FORMATS[format].targets.get(config.scheme, ("cpu",))
    if config.scheme == "2:4" and config.target not in able:
        message = "torch's operators that skip two of every four weights have no kernels on a processor: it takes an "
        message += "NVIDIA GPU from Ampere on (compute capability 8.0)"
        hint = "write target: cuda; for a smaller file by the zeros: `prune` with kind: 2:4, and `pack`"
        return [("target", message, hint)]
    if config.target not in able:
        message = f"{config.scheme} in {format} runs on the processor"
        return [("target", message, "leave it out, or export as program with scheme: float8 or 2:4")]
    if config.target == "cuda" and job.cluster.address is None and Available.local().num_gpus == 0:
        message = "the file is judged on an NVIDIA GPU, and this machine has none"
        return [("target", message, "compress on one that has: `orchestrator compress RUN JOB`, or write int8-static")]
    return []


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


def build(config: Config) -> Quantise:
    """Return the step."""
    return Quantise(config)


class Quantise:
    """Makes the exported file's weights integers, as its format can."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def require_able(self) -> None:
        """Raise NotAbleError where nothing here multiplies as the scheme takes it, before steps train for hours."""
        if self.config.target == "cuda":
            load("orchestrator.compress.runtimes.device:require_gpu")(self.config.scheme)
        elif self.config.scheme == "float8":
            load("orchestrator.compress.float8:require_able")()

    def apply(self, state: State, context: Context) -> Change:
        """Return the finished file."""
        found = FORMATS[state.format]
        if self.config.scheme not in found.schemes:
            message, hint = refusal(state.format, self.config.scheme)
            raise ExportError(message, hint=hint)
        context.folder.mkdir(parents=True, exist_ok=True)
        change: Change = load(found.quantiser)(state, context, self.config)
        return change

    def control(self, state: State, context: Context) -> Change | None:
        """Return the state after the same training without any rounding; None without `qat`."""
        asked = self.config.qat
        if asked is None:
            return None
        lessons = lessons_of(asked.distill, context)
        return train(state, context, asked, lessons, steps=asked.steps)
