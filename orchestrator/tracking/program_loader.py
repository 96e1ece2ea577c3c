"""Loader that travels inside a logged MLflow model: gives `model.pt2` a `predict`. Needs torch and numpy only.

It refuses an archive that holds anything but plain tensors and a graph, so that loading a model unpickles nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from pathlib import Path
from typing import Any

_RECORD = re.compile(
    r"[^/]+/(data/(weights/weight_\d+|constants/tensor_\d+)|data/(weights|constants)/\w+_config\.json|models/\w+\.json"
    r"|data/sample_inputs/\w+\.pt|archive_format|archive_version|byteorder|\.data/(version|serialization_id))"
)


def _load_pyfunc(path: str) -> Program:
    """Return the model in the folder `path` (called by mlflow.pyfunc). Raises ValueError when a file was altered."""
    return Program(Path(path))


def check_plain(archive: Path) -> None:
    """Raise ValueError when the archive holds a pickle, a compiled library or anything else that is no plain tensor."""
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            name = info.filename
            if not _RECORD.fullmatch(name) or (name.endswith(".pt") and info.file_size):
                raise ValueError(f"{archive}: the record {name!r} is not loaded: it may hold a pickle")
            if name.endswith("_config.json"):
                config = json.loads(file.read(info))["config"]
                if any(entry.get("use_pickle") is not False for entry in config.values()):
                    raise ValueError(f"{archive}: {name!r} names a pickled tensor")


class Program:
    """The exported program behind MLflow's `predict`: inputs as the program takes them, outputs as it gives them."""

    def __init__(self, folder: Path) -> None:
        import torch

        page = json.loads((folder / "program.json").read_text(encoding="utf-8"))
        archive = folder / "model.pt2"
        if hashlib.sha256(archive.read_bytes()).hexdigest() != page["sha256"]:
            raise ValueError(f"{archive} was altered after it was logged")
        check_plain(archive)
        self._dtype = getattr(torch, page["dtype"])
        self._module = torch.export.load(archive).module()

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        """Return the outputs (logits for a classifier) for a batch of any size, as a NumPy array, batch dim first."""
        import numpy
        import torch

        values = data.to_numpy() if hasattr(data, "to_numpy") else numpy.asarray(data)
        with torch.inference_mode():
            outputs = self._module(torch.as_tensor(numpy.ascontiguousarray(values)).to(self._dtype))
        # NumPy has no bfloat16.
        return (outputs.float() if outputs.dtype == torch.bfloat16 else outputs).numpy()
