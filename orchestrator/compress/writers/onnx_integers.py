"""Format `onnx` with integers in place of floats, through ONNX Runtime's own tools."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.compress.base import ARTIFACT, Change, Context, State
from orchestrator.compress.integers import prepare, to_dynamic, to_static, to_weights
from orchestrator.compress.writers.onnx import slim, write_onnx
from orchestrator.compress.writers.unsigned import unsign_shared
from orchestrator.errors import ExportError

if TYPE_CHECKING:
    from orchestrator.compress.qat import Learnt
    from orchestrator.compress.quantise import Config, Qat


def quantise(state: State, context: Context, config: Config) -> Change:
    """Return the finished file."""
    source, target = context.folder / "prepared.onnx", context.folder / "model.onnx"
    facts: dict[str, Any] = {"scheme": config.scheme}
    learnt = None
    if config.qat is not None:
        learnt, graph = _learn(state, context, config, config.qat)
        facts |= {"steps": learnt.done.steps, "final_loss": learnt.done.loss, "ranks": learnt.ranks}
        state = replace(state, model=learnt.model, folder=graph.parent, files=(graph.name,))
    prepare(state.file(), source)
    scheme = config.scheme
    try:
        if scheme == "mixed":
            facts["layers"] = _mixed(source, target, state, context, config)
        else:
            _whole(source, target, context, config, learnt)
    except (ValueError, RuntimeError, KeyError) as error:  # what ONNX Runtime's tools raise for a graph
        raise ExportError(f"ONNX Runtime cannot make {scheme} of this graph: {str(error)[:300]}") from error
    source.unlink()
    slim(target)
    unsign_shared(target)
    after = State(ARTIFACT, state.model, folder=context.folder, files=("model.onnx",), format="onnx", scheme=scheme)
    weights: Counter[int] = Counter()
    for row in facts.get("layers", ()):
        weights[row["bits"]] += row["weights"]
    after = replace(after, weights=weights)
    return Change(after, facts)


def _learn(state: State, context: Context, config: Config, asked: Qat) -> tuple[Learnt, Path]:
    """Return what training on the integers made of the model, and its graph."""
    import onnx

    from orchestrator.compress.qat import learn

    learnt = learn(state, context, config, asked)
    opsets = {item.domain: item.version for item in onnx.load(str(state.file())).opset_import}
    return learnt, write_onnx(learnt.model, context, context.folder / "trained", opsets[""])


def _whole(source: Path, target: Path, context: Context, config: Config, learnt: Learnt | None) -> None:
    """Quantise every layer alike."""
    scheme, group = config.scheme, config.group
    if scheme == "int8-static":
        trained: dict[str, Any] = {}
        if learnt is not None:
            from orchestrator.compress.qat import overrides

            trained = overrides(source, learnt)
        to_static(source, target, context, algorithm=config.algorithm, trained=trained)
    elif scheme == "int8-dynamic":
        to_dynamic(source, target)
    elif scheme == "int4-weight":
        to_weights(source, target, 4, group, ("MatMul", "Gather"))
    else:
        to_weights(source, target, 8, group, ("MatMul",))
        to_dynamic(target, target, ["Gather"])  # that quantiser does embeddings in 4 bits only


def _mixed(source: Path, target: Path, state: State, context: Context, config: Config) -> list[dict[str, Any]]:
    from torch import nn

    from orchestrator.compress.artifact import safetensors_bytes
    from orchestrator.compress.fold import fold_norms
    from orchestrator.compress.mixed import quantise_mixed
    from orchestrator.export.weights import plain_copy

    model = state.model
    if any(isinstance(part, nn.BatchNorm2d) for part in model.modules()):
        model = plain_copy(model)
        fold_norms(model, context.calibration()[0][:2])  # as `prepare` did: layers are found by their weights
    return quantise_mixed(source, target, model, context, config, len(safetensors_bytes(context.teacher)))
