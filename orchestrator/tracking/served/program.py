"""Gives `model.pt2`, a `torch.export` program, a `predict`; MLflow stores this file beside it and runs it.

Needs mlflow, numpy and torch only. Refuses an archive that holds a pickle, so that loading it unpickles nothing. A
program that was judged on a GPU runs on one where there is one that can, and else on the processor.
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
    r"[^/]+/(data/(weights/weight_\d+|constants/tensor_\d+)|data/(weights|constants)/\w+_config\.json|models/\w+\.json"
    r"|data/sample_inputs/\w+\.pt|archive_format|archive_version|byteorder|\.data/(version|serialization_id))"
)


def check_plain(content: bytes) -> None:
    """Raise ValueError when an archive holds a pickle, a compiled library or anything else that is no plain tensor."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        for info in file.infolist():
            name = info.filename
            if not RECORD.fullmatch(name) or (name.endswith(".pt") and info.file_size):
                raise ValueError(f"the record {name!r} is not loaded: it may hold a pickle")
            if name.endswith("_config.json"):
                config = json.loads(file.read(info))["config"]
                if any(entry.get("use_pickle") is not False for entry in config.values()):
                    raise ValueError(f"{name!r} names a pickled tensor")


class Served(PythonModel):  # type: ignore[misc]
    """The program in torch: inputs as it takes them, outputs as it gives them."""

    def load_context(self, context):  # type: ignore[no-untyped-def]
        """Load the program. Raises ValueError when it was altered or could run anything."""
        import torch

        ((name, place),) = context.artifacts.items()
        content = Path(place).read_bytes()
        if hashlib.sha256(content).hexdigest() != context.model_config["sha256"][name]:
            raise ValueError(f"{name} was altered after it was logged")
        check_plain(content)
        config = context.model_config
        needed = config["capability"]  # of a GPU, where the file was judged on one
        on_gpu = needed is not None and torch.cuda.is_available()
        on_gpu = on_gpu and torch.cuda.get_device_capability() >= tuple(needed)
        self.device, self.dtype = torch.device("cuda" if on_gpu else "cpu"), config["dtype"]
        program = torch.export.load(io.BytesIO(content))
        if on_gpu:
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, self.device)
        self.module = program.module()
        del program  # it would hold every weight that another takes the place of
        if config["scheme"] == "2:4":
            from two_of_four import skip_zeros  # type: ignore[import-not-found]  # stored beside this file

            skip_zeros(self.module, self.device)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Return the outputs (logits for a classifier) for a batch of any size, as an array, batch dim first."""
        import torch

        values = model_input.to_numpy() if hasattr(model_input, "to_numpy") else model_input
        inputs = torch.from_numpy(numpy.ascontiguousarray(values, dtype=self.dtype))
        with torch.inference_mode():
            return self.module(inputs.to(self.device)).cpu().numpy()


set_model(Served())
