"""Gives `model.pt2`, a package of AOTInductor, a `predict`; MLflow stores this file beside it and runs it.

Needs mlflow, numpy and torch only. A package is machine code: serving it runs it, on processors with its instructions
alone. Nothing is unpickled.
"""

import hashlib
import io
import json
import re
import zipfile
from pathlib import Path

import numpy
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

RECORD = re.compile(
    r"data/aotinductor/model/\w+(\.\w+)?(\.so|_metadata\.json)|archive_format|archive_version|byteorder"
    r"|\.data/(version|serialization_id)|extra/processor\.json"
)


def check_records(content: bytes) -> None:
    """Raise ValueError when a package holds anything but code, or code for another processor."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    strange = [name for name in records if not RECORD.fullmatch(name)]
    if strange:
        raise ValueError(f"the record {strange[0]!r} is not loaded: compiled code needs none such")
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    here = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    lacking = sorted(set(json.loads(records["extra/processor.json"])) - here)
    if lacking:
        raise ValueError(f"the model was compiled for another processor: this one lacks {', '.join(lacking[:6])}")


class Served(PythonModel):  # type: ignore[misc]
    """The compiled model: inputs as it takes them, outputs as it gives them."""

    def load_context(self, context):  # type: ignore[no-untyped-def]
        """Load the package. Raises ValueError when it was altered or is for another processor."""
        import torch

        ((name, place),) = context.artifacts.items()
        content = Path(place).read_bytes()
        if hashlib.sha256(content).hexdigest() != context.model_config["sha256"][name]:
            raise ValueError(f"{name} was altered after it was logged")
        check_records(content)
        self.run = torch._inductor.aoti_load_package(place)
        self.dtype = context.model_config["dtype"]

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Return the outputs (logits for a classifier) for a batch of any size, as an array, batch dim first."""
        import torch

        values = model_input.to_numpy() if hasattr(model_input, "to_numpy") else model_input
        with torch.inference_mode():
            return self.run(torch.from_numpy(numpy.ascontiguousarray(values, dtype=self.dtype))).numpy()


set_model(Served())
