"""`use: quantise`: an exported model in fewer bits, or fewer weights, through the tools of its format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.compress.base import ARTIFACT, EXPORTED, Change, Context, State
from orchestrator.compress.finetune import Config as FinetuneConfig
from orchestrator.compress.finetune import lessons_of, train
from orchestrator.compress.formats import FORMATS, load, refusal
from orchestrator.compress.quantise_problems import (
    data_problems,
    job_problems,
    layout_problems,
    machine_problems,
    plan_problems,
)
from orchestrator.errors import ExportError

__all__ = [
    "Config",
    "build",
    "data_problems",
    "flow",
    "job_problems",
    "layout_problems",
    "machine_problems",
    "plan_problems",
]
_RANGES, _ROUNDINGS = ("minmax", "entropy", "percentile"), ("minmax", "gptq", "awq", "scale")


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

    `int8-dynamic`: weights, and inputs as they come (linear layers; LSTMs in onnx). `int8-weight`, `int4-weight`: those
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


def build(config: Config) -> Quantise:
    """Return the step."""
    return Quantise(config)


class Quantise:
    """Writes the exported model in its scheme, as its format can."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def require_able(self) -> None:
        """Raise NotAbleError where nothing here multiplies as the scheme takes it, before steps train for hours."""
        if self.config.target == "cuda":
            load("orchestrator.compress.gpu:require_gpu")(self.config.scheme)
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
