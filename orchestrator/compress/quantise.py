"""`use: quantise`: an exported ONNX graph with small integers in place of floats, through ONNX Runtime's own tools."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.compress.base import ARTIFACT, EXPORTED, Change, Context, State
from orchestrator.compress.finetune import Config as FinetuneConfig
from orchestrator.compress.finetune import feature_problems, lessons_of, mixup_problems, train
from orchestrator.compress.finetune import layout_problems as ranks_problems
from orchestrator.compress.integers import prepare, to_dynamic, to_static, to_weights
from orchestrator.errors import ExportError

if TYPE_CHECKING:
    from orchestrator.compress.qat import Learnt
    from orchestrator.plan.compress import Widths
    from orchestrator.plan.layout import Layout
    from orchestrator.plan.shapes import DataShape
    from orchestrator.spec.job import JobSpec

Complaint = tuple[str, str, str]
_MOST, _MOST_CONV = 8.0, 4.0
_FLOAT_TARGETS = ("cnn", "resnet")  # convolutions have no kernels for weight-only integers


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
    `qat` trains the exported model on the very integers first, and exports it again.
    """

    scheme: Literal["int8-static", "int8-dynamic", "int8-weight", "int4-weight", "mixed"] = "int8-static"
    target: Literal["cpu"] = "cpu"
    algorithm: Literal["minmax", "entropy", "percentile"] = "minmax"
    group: int = 32
    qat: Qat | None = None
    budget: Budget | None = None

    def __post_init__(self) -> None:
        if self.group not in (16, 32, 64, 128, 256):
            raise ValueError(f"group must be 16, 32, 64, 128 or 256, not {self.group}")
        if self.scheme in ("int8-static", "int8-dynamic") and self.group != 32:
            raise ValueError(f"group means nothing for {self.scheme}: leave it out")
        if self.scheme not in ("int8-static", "mixed") and self.algorithm != "minmax":
            raise ValueError(f"algorithm means nothing for {self.scheme}: leave it out")
        if (self.scheme == "mixed") != (self.budget is not None):
            raise ValueError("scheme: mixed and budget go together: how small, and which layers pay for it")
        if self.scheme == "mixed" and self.qat is not None:
            raise ValueError("qat trains layers of one scheme, not mixed: leave qat or budget out")


def flow(config: Config) -> tuple[str, str]:
    """Return what it takes and gives."""
    return EXPORTED, ARTIFACT


def plan_problems(config: Config, model: str, widths: Widths | None) -> list[Complaint]:
    """Return what does not work out with this model, as (key, message, hint)."""
    if model in _FLOAT_TARGETS and config.scheme not in ("int8-static", "mixed"):
        message = f"{config.scheme} changes linear layers only, and {model} is made of convolutions"
        return [("scheme", message, "write int8-static")]
    return []


def job_problems(config: Config, job: JobSpec) -> list[Complaint]:
    """Return why `qat` would undo a step before it, or a budget cannot be met, as (key, message, hint)."""
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
    if config.qat is None or "share" not in steps:
        return []
    message = "training on the grid of the integers would take weights off the values that `share` gave them"
    return [("qat", message, "remove share: integers share values anyway")]


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
    """Writes a quantised `model.onnx`."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def apply(self, state: State, context: Context) -> Change:
        """Return the finished file."""
        context.folder.mkdir(parents=True, exist_ok=True)
        source, target = context.folder / "prepared.onnx", context.folder / "model.onnx"
        facts: dict[str, Any] = {"scheme": self.config.scheme}
        learnt = None
        if self.config.qat is not None:
            learnt, graph = self._learn(state, context, self.config.qat)
            facts |= {"steps": learnt.done.steps, "final_loss": learnt.done.loss, "ranks": learnt.ranks}
            state = replace(state, model=learnt.model, folder=graph.parent, files=(graph.name,))
        prepare(state.file(), source)
        scheme = self.config.scheme
        try:
            if scheme == "mixed":
                facts["layers"] = self._mixed(source, target, state, context)
            else:
                self._whole(source, target, context, learnt)
        except (ValueError, RuntimeError, KeyError) as error:  # what ONNX Runtime's tools raise for a graph
            raise ExportError(f"ONNX Runtime cannot make {scheme} of this graph: {str(error)[:300]}") from error
        source.unlink()
        from orchestrator.compress.export import slim

        slim(target)
        after = State(ARTIFACT, state.model, folder=context.folder, files=("model.onnx",), format="onnx", scheme=scheme)
        weights: Counter[int] = Counter()
        for row in facts.get("layers", ()):
            weights[row["bits"]] += row["weights"]
        after = replace(after, weights=weights)
        return Change(after, facts)

    def control(self, state: State, context: Context) -> Change | None:
        """Return the state after the same training without any rounding; None without `qat`."""
        asked = self.config.qat
        if asked is None:
            return None
        lessons = lessons_of(asked.distill, context)
        return train(state, context, asked, lessons, steps=asked.steps)

    def _learn(self, state: State, context: Context, asked: Qat) -> tuple[Learnt, Path]:
        """Return what training on the integers made of the model, and its graph."""
        import onnx

        from orchestrator.compress.export import write_onnx
        from orchestrator.compress.qat import learn

        learnt = learn(state, context, self.config, asked)
        opsets = {item.domain: item.version for item in onnx.load(str(state.file())).opset_import}
        return learnt, write_onnx(learnt.model, context, context.folder / "trained", opsets[""])

    def _whole(self, source: Path, target: Path, context: Context, learnt: Learnt | None) -> None:
        """Quantise every layer alike."""
        scheme, group = self.config.scheme, self.config.group
        if scheme == "int8-static":
            trained: dict[str, Any] = {}
            if learnt is not None:
                from orchestrator.compress.qat import overrides

                trained = overrides(source, learnt)
            to_static(source, target, context, algorithm=self.config.algorithm, trained=trained)
        elif scheme == "int8-dynamic":
            to_dynamic(source, target)
        elif scheme == "int4-weight":
            to_weights(source, target, 4, group, ("MatMul", "Gather"))
        else:
            to_weights(source, target, 8, group, ("MatMul",))
            to_dynamic(target, target, ["Gather"])  # that quantiser does embeddings in 4 bits only

    def _mixed(self, source: Path, target: Path, state: State, context: Context) -> list[dict[str, Any]]:
        from torch import nn

        from orchestrator.compress.artifact import safetensors_bytes
        from orchestrator.compress.fold import fold_norms
        from orchestrator.compress.mixed import quantise_mixed
        from orchestrator.export.weights import plain_copy

        model = state.model
        if any(isinstance(part, nn.BatchNorm2d) for part in model.modules()):
            model = plain_copy(model)
            fold_norms(model, context.calibration()[0][:2])  # as `prepare` did: layers are found by their weights
        return quantise_mixed(source, target, model, context, self.config, len(safetensors_bytes(context.teacher)))
