"""Gives `model.xml` and `model.bin` a `predict`; MLflow stores this file beside them and runs it. Unpickles nothing.

Needs mlflow, numpy and openvino only.
"""

import hashlib
import sys
from pathlib import Path

import numpy
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Served(PythonModel):  # type: ignore[misc]
    """The model in OpenVINO: inputs as it takes them, outputs as it gives them, floats 32 bits wide as when checked."""

    def load_context(self, context):  # type: ignore[no-untyped-def]
        """Compile the files. Raises ValueError when one was altered."""
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        import openvino

        contents = {name: Path(place).read_bytes() for name, place in context.artifacts.items()}
        for name, digest in context.model_config["sha256"].items():
            if hashlib.sha256(contents[name]).hexdigest() != digest:
                raise ValueError(f"{name} was altered after it was logged")
        core = openvino.Core()
        model = core.read_model(model=contents["model.xml"], weights=contents["model.bin"])
        settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32}
        self.compiled = core.compile_model(model, "CPU", settings)
        self.dtype = context.model_config["dtype"]

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Return the outputs (logits for a classifier) for a batch of any size, as an array, batch dim first."""
        values = model_input.to_numpy() if hasattr(model_input, "to_numpy") else model_input
        return self.compiled(numpy.ascontiguousarray(values, dtype=self.dtype))[0]


set_model(Served())
