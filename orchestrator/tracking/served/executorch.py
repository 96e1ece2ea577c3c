"""Gives `model.pte` a `predict`; MLflow stores this file beside it and runs it. Unpickles nothing.

Needs mlflow, numpy and executorch (with its torch) only.
"""

import hashlib
from pathlib import Path

import numpy
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Served(PythonModel):  # type: ignore[misc]
    """The model in ExecuTorch: inputs as it takes them, outputs as it gives them."""

    def load_context(self, context):  # type: ignore[no-untyped-def]
        """Load the program. Raises ValueError when it was altered."""
        from executorch.runtime import Runtime

        ((name, place),) = context.artifacts.items()
        content = Path(place).read_bytes()
        if hashlib.sha256(content).hexdigest() != context.model_config["sha256"][name]:
            raise ValueError(f"{name} was altered after it was logged")
        self.program = Runtime.get().load_program(content)  # kept: the method reads what it holds
        self.method = self.program.load_method("forward")
        self.most = self.method.metadata.input_tensor_meta(0).sizes()[0]
        self.dtype = context.model_config["dtype"]

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Return the outputs (logits for a classifier) for a batch of any size, as an array, batch dim first."""
        import torch

        values = model_input.to_numpy() if hasattr(model_input, "to_numpy") else model_input
        inputs = torch.from_numpy(numpy.ascontiguousarray(values, dtype=self.dtype))
        parts = [inputs[at : at + self.most] for at in range(0, len(inputs), self.most)]
        return torch.cat([self.method.execute([part])[0].clone() for part in parts]).numpy()


set_model(Served())
