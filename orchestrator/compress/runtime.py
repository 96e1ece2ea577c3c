"""A file in its runtime as a function of arrays, with a number of threads. numpy and ONNX Runtime only.

An archive (`compress.archive`) is restored in memory first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.compress.archive import MAGIC, unpack
from orchestrator.errors import ExportError, NotAbleError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Run = Callable[[Array], Array]


def open_onnx(path: Path, threads: int = 1, *, optimised: Path | None = None, sha256: str = "") -> Run:
    """Return the model in ONNX Runtime; `optimised` also writes the graph as the runtime will really run it.

    With `sha256` the very bytes that are loaded are hashed first. Raises ExportError when the runtime alone cannot run
    the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise NotAbleError("onnxruntime is not installed", hint='pip install "orchestrator[compress]"') from error
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # contenders take turns: none may spin on
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    content = graph_bytes(path, sha256)
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own error classes share no base but Exception
        raise ExportError(
            f"{path.name} cannot be run by ONNX Runtime alone: {str(error)[:300]}",
            hint="an artifact must not need its training code or files beside it",
        ) from error
    name = session.get_inputs()[0].name

    def run(inputs_B: Array) -> Array:
        outputs: Array = session.run(None, {name: inputs_B})[0]
        return outputs

    return run


def graph_bytes(path: Path, sha256: str = "") -> bytes:
    """Return the ONNX graph in a file, restored where it is an archive. Raises ExportError when it was altered."""
    content = path.read_bytes()
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        raise ExportError(f"{path} was altered: its SHA-256 differs from the page's")
    return unpack(content) if content.startswith(MAGIC) else content
