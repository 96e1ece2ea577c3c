"""`use: quantise`: an exported ONNX graph with small integers in place of floats, through ONNX Runtime's own tools."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.compress.base import ARTIFACT, EXPORTED, Change, Context, State
from orchestrator.compress.finetune import Config as FinetuneConfig
from orchestrator.compress.finetune import Distill, lessons_of, mixup_problems, train
from orchestrator.compress.finetune import layout_problems as ranks_problems
from orchestrator.errors import ExportError, NotAbleError

if TYPE_CHECKING:
    from orchestrator.compress.qat import Learnt
    from orchestrator.plan.compress import Widths
    from orchestrator.plan.layout import Layout
    from orchestrator.plan.shapes import DataShape
    from orchestrator.spec.job import JobSpec

Complaint = tuple[str, str, str]
_FLOAT_TARGETS = ("cnn", "resnet")  # convolutions have no kernels for weight-only integers


@dataclass(frozen=True)
class Qat:
    """Quantisation-aware training: passes over the training split (or `steps`), weights and activations rounded.

    `distill`: the model as it was before the first step teaches. `replicate`, `shard`: as in `finetune`.
    """

    epochs: float = 3.0
    steps: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    distill: Distill | None = None
    replicate: int | None = None
    shard: int | None = None

    def __post_init__(self) -> None:
        FinetuneConfig(self.epochs, self.lr, self.batch_size, self.distill, self.replicate, self.shard)
        if self.steps is not None and self.steps < 1:
            raise ValueError("steps must be at least 1")


@dataclass(frozen=True)
class Config:
    """`int8-static`: weights and activations, ranges from calibration samples (convolutions, linear layers).

    `int8-dynamic`: weights, and activations as they come (linear layers). `int8-weight`, `int4-weight`: weights only,
    in groups of `group` with a scale each (linear layers and embeddings; best where few tokens are computed at once).
    `qat` trains the exported model on the very integers first, and exports it again.
    """

    scheme: Literal["int8-static", "int8-dynamic", "int8-weight", "int4-weight"] = "int8-static"
    target: Literal["cpu"] = "cpu"
    algorithm: Literal["minmax", "entropy", "percentile"] = "minmax"
    group: int = 32
    qat: Qat | None = None

    def __post_init__(self) -> None:
        if self.group not in (16, 32, 64, 128, 256):
            raise ValueError(f"group must be 16, 32, 64, 128 or 256, not {self.group}")
        if self.scheme in ("int8-static", "int8-dynamic") and self.group != 32:
            raise ValueError(f"group means nothing for {self.scheme}: leave it out")
        if self.scheme != "int8-static" and self.algorithm != "minmax":
            raise ValueError(f"algorithm means nothing for {self.scheme}: leave it out")


def flow(config: Config) -> tuple[str, str]:
    """Return what it takes and gives."""
    return EXPORTED, ARTIFACT


def plan_problems(config: Config, model: str, widths: Widths | None) -> list[Complaint]:
    """Return what does not work out with this model, as (key, message, hint)."""
    if model in _FLOAT_TARGETS and config.scheme != "int8-static":
        message = f"{config.scheme} changes linear layers only, and {model} is made of convolutions"
        return [("scheme", message, "write int8-static")]
    return []


def job_problems(config: Config, job: JobSpec) -> list[Complaint]:
    """Return why training on integers would undo a step before it, as (key, message, hint)."""
    if config.qat is None or not any(step.use == "share" for step in job.compress.steps):
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
        _prepare(state.file(), source)
        scheme = self.config.scheme
        try:
            if scheme == "int8-static":
                self._static(source, target, context, learnt)
            elif scheme == "int8-dynamic":
                self._dynamic(source, target)
            else:
                self._weights(source, target, 4 if scheme == "int4-weight" else 8)
        except (ValueError, RuntimeError, KeyError) as error:  # what ONNX Runtime's tools raise for a graph
            raise ExportError(f"ONNX Runtime cannot make {scheme} of this graph: {str(error)[:300]}") from error
        source.unlink()
        from orchestrator.compress.export import slim

        slim(target)
        after = State(ARTIFACT, state.model, folder=context.folder, files=("model.onnx",), format="onnx", scheme=scheme)
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

    def _static(self, source: Path, target: Path, context: Context, learnt: Learnt | None) -> None:
        # Activations unsigned and weights signed: the pair that x86 has fast instructions for. Both signed gives the
        # same file and accuracy at a third of the speed.
        tools = _tools("onnxruntime.quantization")
        trained: dict[str, Any] = {}
        if learnt is not None:
            from orchestrator.compress.qat import overrides

            trained = {"TensorQuantOverrides": overrides(source, learnt)}
        methods = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
        tools.quantize_static(
            str(source),
            str(target),
            _reader(tools, context),
            quant_format=tools.QuantFormat.QDQ,
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            calibrate_method=getattr(tools.CalibrationMethod, methods[self.config.algorithm]),
            extra_options=trained,
        )

    def _dynamic(self, source: Path, target: Path, operators: list[str] | None = None) -> None:
        tools = _tools("onnxruntime.quantization")
        tools.quantize_dynamic(
            str(source),
            str(target),
            op_types_to_quantize=operators,
            per_channel=True,
            weight_type=tools.QuantType.QInt8,
        )

    def _weights(self, source: Path, target: Path, bits: int) -> None:
        import onnx

        tools = _tools("onnxruntime.quantization.matmul_nbits_quantizer")
        quantizer = tools.MatMulNBitsQuantizer(
            onnx.load(str(source)),
            bits=bits,
            block_size=self.config.group,
            accuracy_level=4,
            op_types_to_quantize=("MatMul", "Gather") if bits == 4 else ("MatMul",),
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(target), use_external_data_format=False)
        if bits == 8:  # that quantiser does embeddings in 4 bits only
            self._dynamic(target, target, ["Gather"])


def _prepare(source: Path, target: Path) -> None:
    """Fold constants and norms, infer shapes: quantisers see far less without it."""
    module = _tools("onnxruntime.quantization.shape_inference")
    module.quant_pre_process(str(source), str(target), skip_symbolic_shape=True)


def _tools(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise NotAbleError(f"quantise needs {name}: {error}", hint='pip install "orchestrator[compress]"') from error


def _reader(tools: Any, context: Context, rows: int = 32) -> Any:
    """Return what feeds calibration samples to ONNX Runtime, a batch at a time."""
    inputs, _ = context.calibration()
    batches: Iterator[dict[str, Any]] = iter(
        [{"inputs": inputs[at : at + rows].numpy()} for at in range(0, len(inputs), rows)]
    )

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            return next(batches, None)

    return Reader()
