"""Packages of AOTInductor in torch: machine code for the kind of processor that it was compiled on, weights within."""

from __future__ import annotations

import io
import json
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.compress.processor import instructions
from orchestrator.compress.runtimes.base import require_integers
from orchestrator.errors import ExportError, NotAbleError

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.compress.manifest import Page
    from orchestrator.compress.runtimes.base import Array, Run

FILE = "model.pt2"
PROCESSOR = "extra/processor.json"
"""Record of a package: the instructions that its code may use."""
_RECORD = re.compile(
    r"data/aotinductor/model/\w+(\.\w+)?(\.so|_metadata\.json)|archive_format|archive_version|byteorder"
    r"|\.data/(version|serialization_id)|extra/processor\.json"
)
_KERNEL = re.compile(rb"aoti_torch_cpu_+(\w+)")
_INTEGER_KERNELS = ("qconv", "qlinear")
_FLOAT_BITS = {"torch.float64": 64, "torch.float32": 32, "torch.bfloat16": 16, "torch.float16": 16}


class Aoti:
    """One `model.pt2` of machine code, all weights in it. Computes with as many threads as the process gives torch."""

    files: tuple[str, ...] = (FILE,)
    reference = "aoti"
    code: tuple[str, ...] = ()
    refused: tuple[str, ...] = ("torchao", "torchvision", "onnx", "onnxruntime")
    packages: tuple[str, ...] = ("torch", "torchao")

    def open(self, contents: Mapping[str, bytes], threads: int = 1) -> Run:
        """Return the model as a function of a batch. Raises NotAbleError on a processor without its instructions."""
        (name, content), *_ = contents.items()
        return _run_of(name, content)

    def inspect(self, contents: Mapping[str, bytes], page: Page) -> dict[str, Any]:
        """Count the weights in the code by type, and those packed for kernels that multiply integers."""
        (name, content), *_ = contents.items()
        library = _library(name, content)
        bits, integers, packed = _weights(name, library)
        kernels = sorted({match.decode() for match in _KERNEL.findall(library)})
        if not any(word in kernel for kernel in kernels for word in _INTEGER_KERNELS):
            packed = 0
        coverage = integers / max(1, sum(bits.values()))
        if page.scheme != "fp32":
            require_integers(packed, coverage, page.scheme)
        return {
            "coverage": coverage,
            "weights_by_bits": dict(sorted(bits.items())),
            "integer_operators": packed,
            "operators": dict.fromkeys(kernels, 1),
        }


RUNTIME = Aoti()


def _run_of(name: str, content: bytes) -> Run:
    import torch

    check_records(name, content)
    with tempfile.TemporaryDirectory(prefix="orchestrator-aoti-") as scratch:
        path = Path(scratch) / FILE
        path.write_bytes(content)
        try:
            model = torch._inductor.aoti_load_package(str(path))
        except Exception as error:  # a damaged package surfaces as anything from RuntimeError to OSError
            raise ExportError(f"{name} cannot be run by torch alone: {str(error)[:300]}") from error

    def run(inputs_B: Array) -> Array:
        with torch.inference_mode():
            outputs: Array = model(torch.from_numpy(inputs_B)).numpy()
        return outputs

    return run


def check_records(name: str, content: bytes) -> None:
    """Raise ExportError when a package holds more than code and its description; a pickle, say.

    Raises NotAbleError when its code is for another processor. Opening it runs its code: its hash must be right.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            records = {each.partition("/")[2]: archive.read(each) for each in archive.namelist()}
        needed = set(json.loads(records[PROCESSOR]))
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        raise ExportError(f"{name} is no package of compiled code: {error}", hint="compress again") from error
    strange = sorted(record for record in records if not _RECORD.fullmatch(record))
    if strange:
        raise ExportError(f"{name} is refused: record {strange[0]!r} is none that compiled code needs")
    lacking = sorted(needed - set(instructions()))
    if lacking:
        raise NotAbleError(
            f"{name} was compiled for another processor: this one lacks {', '.join(lacking[:6])}",
            hint="run it on the kind of processor that its page names, or compress again on this one",
        )


def _library(name: str, content: bytes) -> bytes:
    check_records(name, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        libraries = [each for each in archive.namelist() if each.endswith(".so")]
        if len(libraries) != 1:
            raise ExportError(f"{name} holds {len(libraries)} libraries, one is what runs")
        return archive.read(libraries[0])


def _weights(name: str, library: bytes) -> tuple[Counter[str], int, int]:
    """Return how many numbers the constants hold by bits, how many of them are small integers, and packed tensors.

    A tensor of integers in oneDNN's own layout can be read by kernels that multiply integers alone.
    """
    bits: Counter[str] = Counter()
    integers = packed = 0
    for tensor in _constants(name, library).values():
        kind, size = str(tensor.dtype), int(tensor.numel())
        if kind in _FLOAT_BITS:
            bits[str(_FLOAT_BITS[kind])] += size
        elif kind in ("torch.int8", "torch.uint8"):
            bits["8"] += size
            integers += size
            packed += str(tensor.layout) == "torch._mkldnn"
    return bits, integers, packed


def _constants(name: str, library: bytes) -> dict[str, Tensor]:
    import torch

    with tempfile.TemporaryDirectory(prefix="orchestrator-aoti-") as scratch:
        path = Path(scratch) / "model.so"
        path.write_bytes(library)
        try:
            runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1)
            found: dict[str, Tensor] = runner.extract_constants_map(False)
        except (AttributeError, RuntimeError) as error:
            raise ExportError(f"the weights in {name} cannot be listed: {error}") from error
    return found
