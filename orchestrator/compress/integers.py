"""ONNX Runtime's quantisers, file in, file out. Called by `quantise` and `mixed`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from orchestrator.errors import NotAbleError

if TYPE_CHECKING:
    from orchestrator.compress.base import Context

_METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}


def prepare(source: Path, target: Path) -> None:
    """Fold constants and norms, infer shapes: quantisers see far less without it."""
    module = _tools("onnxruntime.quantization.shape_inference")
    module.quant_pre_process(str(source), str(target), skip_symbolic_shape=True)


def to_static(
    source: Path,
    target: Path,
    context: Context,
    *,
    algorithm: str = "minmax",
    trained: Mapping[str, Any] | None = None,
    operators: Sequence[str] | None = None,
    left_out: Sequence[str] = (),
) -> None:
    """Quantise weights and activations, ranges from calibration samples where `trained` has none for a tensor.

    Activations unsigned and weights signed: the pair that x86 has fast instructions for. Both signed gives the same
    file and accuracy at a third of the speed. `left_out` names nodes.
    """
    tools = _tools("onnxruntime.quantization")
    tools.quantize_static(
        str(source),
        str(target),
        _reader(tools, context),
        quant_format=tools.QuantFormat.QDQ,
        per_channel=True,
        activation_type=tools.QuantType.QUInt8,
        weight_type=tools.QuantType.QInt8,
        calibrate_method=getattr(tools.CalibrationMethod, _METHODS[algorithm]),
        op_types_to_quantize=None if operators is None else list(operators),
        nodes_to_exclude=list(left_out),
        extra_options={"TensorQuantOverrides": dict(trained)} if trained else {},
    )


def measured_ranges(source: Path, context: Context, algorithm: str) -> dict[str, tuple[float, float]]:
    """Return the least and greatest value of every activation by tensor, as `to_static` would take them."""
    calibrate, tools = _tools("onnxruntime.quantization.calibrate"), _tools("onnxruntime.quantization")
    with TemporaryDirectory(prefix="ranges-") as folder:
        calibrator = calibrate.create_calibrator(
            str(source),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=getattr(tools.CalibrationMethod, _METHODS[algorithm]),
        )
        calibrator.collect_data(_reader(tools, context))
        found = calibrator.compute_data()
    return {name: (float(each.range_value[0]), float(each.range_value[1])) for name, each in found.items()}


def to_dynamic(
    source: Path, target: Path, operators: Sequence[str] | None = None, left_out: Sequence[str] = ()
) -> None:
    """Quantise weights; activations are as they come."""
    tools = _tools("onnxruntime.quantization")
    tools.quantize_dynamic(
        str(source),
        str(target),
        op_types_to_quantize=None if operators is None else list(operators),
        nodes_to_exclude=list(left_out),
        per_channel=True,
        weight_type=tools.QuantType.QInt8,
    )


def to_weights(
    source: Path, target: Path, bits: int, group: int, operators: Sequence[str], left_out: Sequence[str] = ()
) -> None:
    """Quantise weights of `MatMul` (4 or 8 bits) and `Gather` (4 bits), a scale for each group of inputs."""
    import onnx

    tools = _tools("onnxruntime.quantization.matmul_nbits_quantizer")
    quantizer = tools.MatMulNBitsQuantizer(
        onnx.load(str(source)),
        bits=bits,
        block_size=group,
        accuracy_level=4,
        nodes_to_exclude=list(left_out),
        op_types_to_quantize=tuple(operators),
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(target), use_external_data_format=False)


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
