"""Format `openvino` with integers in place of floats, through NNCF."""

from __future__ import annotations

import io
import math
from contextlib import redirect_stdout
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator.compress.base import ARTIFACT, Change, Context, State
from orchestrator.compress.runtimes.openvino import BIN, XML, library, settings
from orchestrator.compress.writers.openvino import save
from orchestrator.errors import ExportError, NotAbleError

if TYPE_CHECKING:
    from orchestrator.compress.quantise import Config

_ATTENDING = ("transformer", "moe", "vit")
_ROWS, _LEAST_GROUP, _COMPARED = 16, 16, 64
_METHODS = {"gptq": "gptq", "awq": "awq", "scale": "scale_estimation"}


def quantise(state: State, context: Context, config: Config) -> Change:
    """Return the finished files."""
    nncf = _tools()
    folder = state.file().parent
    model = library().Core().read_model(str(folder / XML), str(folder / BIN))
    try:
        with redirect_stdout(io.StringIO()):  # its bars
            if config.scheme == "int8-static":
                made, facts = _static(nncf, model, context)
            else:
                made, facts = _weights(nncf, model, context, config), {}
    except Exception as error:  # NNCF raises kinds of its own beside those of OpenVINO
        raise ExportError(f"NNCF cannot make {config.scheme} of this graph: {str(error)[:300]}") from error
    files = save(made, context.folder)
    after = State(ARTIFACT, state.model, folder=context.folder, files=files, format="openvino", scheme=config.scheme)
    return Change(after, {"scheme": config.scheme, **facts})


def _static(nncf: Any, model: Any, context: Context) -> tuple[Any, dict[str, Any]]:
    """Quantise weights and activations in more ways than one; keep what answers nearest to the calibration samples.

    Transformers with SmoothQuant and without: where an input is always zero, as at the border of images, it spoils
    weights. Others with biases corrected and without: after residuals the fast correction does more harm than good.
    """
    samples, inputs = _samples(nncf, context), context.calibration()[0][:_COMPARED].numpy()
    wanted = _answers(model, inputs)
    best, least, chosen = None, math.inf, ""
    for name, options in _ways(nncf, context.job.model.use).items():
        made = nncf.quantize(model.clone(), samples, subset_size=samples.get_length(), **options)
        error = float(abs(_answers(made, inputs) - wanted).mean())
        if best is None or error < least:
            best, least, chosen = made, error, name
    return best, {"way": chosen}


def _ways(nncf: Any, model: str) -> dict[str, dict[str, Any]]:
    """Return the options of NNCF by what they do. Ranges are the least and the greatest of all samples.

    Weights take half of the range of 8 bits: without VNNI, x86 adds two products up in 16 bits, which would overflow
    unseen, and a file made on a processor with VNNI is run on others, too.
    """
    advanced = partial(
        nncf.AdvancedQuantizationParameters,
        overflow_fix=nncf.OverflowFix.ENABLE,
        activations_range_estimator_params=nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX,
    )
    if model in _ATTENDING:
        off = nncf.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1)
        kind = {"model_type": nncf.ModelType.TRANSFORMER}
        return {
            "smoothed": kind | {"advanced_parameters": advanced()},
            "plain": kind | {"advanced_parameters": advanced(smooth_quant_alphas=off)},
        }
    return {
        "corrected": {"advanced_parameters": advanced()},
        "plain": {"advanced_parameters": advanced(disable_bias_correction=True)},
    }


def _answers(model: Any, inputs_B: Any) -> Any:
    return library().Core().compile_model(model, "CPU", settings())(inputs_B)[0]


def _weights(nncf: Any, model: Any, context: Context, config: Config) -> Any:
    """Quantise weights alone."""
    if config.scheme == "int8-weight":
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    narrower = nncf.AdvancedCompressionParameters(
        group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST,  # for layers whose inputs it does not divide
        min_adjusted_group_size=_LEAST_GROUP,
    )
    method = _METHODS.get(config.algorithm)
    chosen: dict[str, Any] = {}
    if method is not None:
        samples = _samples(nncf, context)
        chosen = {method: True, "dataset": samples, "subset_size": samples.get_length()}
    return nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode.INT4_ASYM,
        group_size=config.group,
        all_layers=True,  # embeddings and the head, too
        advanced_parameters=narrower,
        **chosen,
    )


def _samples(nncf: Any, context: Context) -> Any:
    """Return the calibration samples as NNCF takes them, a batch at a time."""
    inputs, _ = context.calibration()
    return nncf.Dataset([inputs[at : at + _ROWS].numpy() for at in range(0, len(inputs), _ROWS)])


def _tools() -> Any:
    """Return nncf, without its reports of usage and its words on standard output."""
    library()
    try:
        import nncf
    except ImportError as error:
        raise NotAbleError(f"quantise needs nncf: {error}", hint='pip install "orchestrator[openvino]"') from error
    nncf.set_log_level("ERROR")
    return nncf
