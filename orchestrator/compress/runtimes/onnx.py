"""ONNX graphs in ONNX Runtime: numpy and the runtime are enough."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.compress.graph import PLAIN_DOMAINS, GraphFacts, read_graph
from orchestrator.compress.processor import has_vnni
from orchestrator.compress.runtimes.base import require_integers
from orchestrator.errors import ExportError, NotAbleError

if TYPE_CHECKING:
    from orchestrator.compress.manifest import Page
    from orchestrator.compress.runtimes.base import Array, Run

_FILE = "model.onnx"
_FULL = 32


class Onnx:
    """One `model.onnx`, all weights in it."""

    files: tuple[str, ...] = (_FILE,)
    reference = "onnx"
    code: tuple[str, ...] = ()
    refused: tuple[str, ...] = ("torch", "torchvision", "onnx")
    packages: tuple[str, ...] = ("onnx", "onnxscript", "onnxruntime")

    def open(self, contents: Mapping[str, bytes], threads: int = 1) -> Run:
        """Return the model as a function of a batch."""
        (name, content), *_ = contents.items()
        return run_of(_session(name, content, threads))

    def open_path(self, folder: Path, threads: int = 1) -> Run:
        """Return the model in a folder as a function of a batch."""
        return run_of(_session(_FILE, folder / _FILE, threads))

    def inspect(self, contents: Mapping[str, bytes], page: Page) -> dict[str, Any]:
        """Count operators and weights in the graph, and in the graph as the runtime will really run it."""
        (name, content), *_ = contents.items()
        with tempfile.TemporaryDirectory() as scratch:
            optimised = Path(scratch) / "optimised.onnx"
            _session(name, content, optimised=optimised)
            return _facts(name, content, optimised.read_bytes(), page)


SESSION_CONFIG = {"session.x64quantprecision": "1"}
"""What a session must be told that runs a file on x86 without VNNI, which adds two products of 8-bit integers up in 16
bits: they overflow unseen. Slower, but right; with VNNI it would be slower for nothing."""

RUNTIME = Onnx()


def run_of(session: Any) -> Run:
    """Return a session as a function of a batch."""
    name = session.get_inputs()[0].name

    def run(inputs_B: Array) -> Array:
        outputs: Array = session.run(None, {name: inputs_B})[0]
        return outputs

    return run


def _session(name: str, content: bytes | Path, threads: int = 1, *, optimised: Path | None = None) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise NotAbleError("onnxruntime is not installed", hint='pip install "orchestrator[compress]"') from error
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # contenders take turns: none may spin on
    if not has_vnni():
        for key, value in SESSION_CONFIG.items():
            options.add_session_config_entry(key, value)
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    try:
        source = str(content) if isinstance(content, Path) else content
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own error classes share no base but Exception
        raise ExportError(
            f"{name} cannot be run by ONNX Runtime alone: {str(error)[:300]}",
            hint="an artifact must not need its training code or files beside it",
        ) from error


def _facts(name: str, content: bytes, optimised: bytes, page: Page) -> dict[str, Any]:
    facts, fused = read_graph(content), read_graph(optimised)
    if facts.external:
        raise ExportError(f"{name} keeps weights in files beside it, which the page does not count")
    if facts.dead:
        raise ExportError(
            f"{name} carries weights that no operator reads: {', '.join(facts.dead[:3])}",
            hint="a converter has left the fp32 weights behind: they must be taken out",
        )
    foreign = sorted(facts.domains - set(PLAIN_DOMAINS))
    if foreign:
        raise ExportError(f"{name} uses operators of {', '.join(foreign)}, which no runtime brings along")
    if page.scheme == "mixed":
        _require_bits(facts, page)
    elif page.scheme != "fp32":
        require_integers(fused.integer_operators, facts.coverage, page.scheme)
    return {
        "coverage": facts.coverage,
        "weights_by_bits": {str(bits): count for bits, count in sorted(facts.by_bits.items())},
        "integer_operators": fused.integer_operators,
        "operators": dict(fused.operators.most_common()),
    }


def _require_bits(facts: GraphFacts, page: Page) -> None:
    """Require that the file keeps as many numbers in few bits as its layers claim; zero points and padding come on top.

    Raises ExportError naming the bits that are missing.
    """
    for bits, claimed in page.weights.items():
        there = facts.by_bits[int(bits)]
        if int(bits) < _FULL and there < claimed:
            raise ExportError(
                f"mixed precision in name only: {claimed:,} weights are to be in {bits} bits, the file has {there:,}",
                hint="the graph holds them in other types than the report says",
            )
