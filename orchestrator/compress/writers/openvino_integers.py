"""Format `openvino` with integers in place of floats, through NNCF."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from orchestrator.compress.base import ARTIFACT, Change, Context, State
from orchestrator.compress.runtimes.openvino import BIN, XML, library
from orchestrator.compress.writers.openvino import save
from orchestrator.errors import ExportError, NotAbleError

if TYPE_CHECKING:
    from orchestrator.compress.quantise import Config

_ATTENDING = ("transformer", "moe", "vit")
_ROWS = 16
_METHODS = {"gptq": "gptq", "awq": "awq", "scale": "scale_estimation"}


def quantise(state: State, context: Context, config: Config) -> Change:
    """Return the finished files."""
    nncf = _tools()
    folder = state.file().parent
    model = library().Core().read_model(str(folder / XML), str(folder / BIN))
    try:
        with redirect_stdout(io.StringIO()):  # its bars
            made = _made(nncf, model, context, config)
    except Exception as error:  # NNCF raises kinds of its own beside those of OpenVINO
        raise ExportError(f"NNCF cannot make {config.scheme} of this graph: {str(error)[:300]}") from error
    files = save(made, context.folder)
    after = State(ARTIFACT, state.model, folder=context.folder, files=files, format="openvino", scheme=config.scheme)
    return Change(after, {"scheme": config.scheme})


def _made(nncf: Any, model: Any, context: Context, config: Config) -> Any:
    if config.scheme == "int8-static":
        samples = _samples(nncf, context)
        kind = nncf.ModelType.TRANSFORMER if context.job.model.use in _ATTENDING else None
        return nncf.quantize(model, samples, subset_size=samples.get_length(), model_type=kind)
    if config.scheme == "int8-weight":
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
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
