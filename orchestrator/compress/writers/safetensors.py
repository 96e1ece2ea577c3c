"""Format `safetensors`: weights and nothing else; who runs it needs the model's code. No deployment format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.compress.runtimes.safetensors import FILE, RUNTIME
from orchestrator.errors import ExportError

if TYPE_CHECKING:
    from orchestrator.compress.base import Context

_CLOSE = 1e-6


def write(model: Any, context: Context, folder: Path, opset: int | None = None) -> tuple[str, ...]:
    """Write a model's weights and which plug-in they are of. Raises ExportError when it cannot be rebuilt from that."""
    import torch
    from safetensors.torch import save

    from orchestrator.compress.rebuild import shared_names

    shared = shared_names(model)
    use = context.job.model
    page = {"model": use.model_dump(mode="json"), "shared": shared}
    tensors = {name: value.contiguous() for name, value in model.state_dict().items() if name not in shared}
    content = save(tensors, metadata={"orchestrator": json.dumps(page)})
    inputs, _ = context.calibration()
    with torch.no_grad():
        wanted = model(inputs[:8])
    found = torch.from_numpy(RUNTIME.open({FILE: content})(inputs[:8].numpy()))
    if found.shape != wanted.shape or not float((found - wanted).norm()) <= _CLOSE * float(wanted.norm()):
        raise ExportError(
            f"model {use.use} cannot be rebuilt from its weights after these steps: it answers otherwise",
            hint="export as onnx or program, which hold the structure, too",
        )
    (folder / FILE).write_bytes(content)
    return (FILE,)
