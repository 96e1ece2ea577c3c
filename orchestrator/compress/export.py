"""`use: export`: the model in memory becomes a file that its format's runtime runs without the training code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.compress.base import EXPORTED, MODULE, Change, Context, State
from orchestrator.compress.formats import FORMATS, load, missing

if TYPE_CHECKING:
    from orchestrator.spec.job import JobSpec

Complaint = tuple[str, str, str]


@dataclass(frozen=True)
class Config:
    """`onnx`: for ONNX Runtime; `openvino`: for OpenVINO. Neither needs torch or the training code.

    `program`: a `torch.export` program for torch, which needs no training code. `aoti`: compiled for the
    kind of processor at hand by AOTInductor, run by torch. `executorch`: a `.pte` for XNNPACK. `safetensors`: weights
    alone, which need the model's code. `opset` is of onnx only.
    """

    format: Literal["onnx", "openvino", "program", "aoti", "executorch", "safetensors"] = "onnx"
    opset: int | None = None

    def __post_init__(self) -> None:
        if self.opset is not None and self.format != "onnx":
            raise ValueError(f"opset means nothing for {self.format}: leave it out")


def flow(config: Config) -> tuple[str, str]:
    """Return what it takes and gives."""
    return MODULE, EXPORTED


def job_problems(config: Config, job: JobSpec) -> list[Complaint]:
    """Return what the format needs and this machine lacks, as (key, message, hint)."""
    return missing(config.format, "format")


def build(config: Config) -> Export:
    """Return the step."""
    return Export(config)


class Export:
    """Writes the files of a format."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def apply(self, state: State, context: Context) -> Change:
        """Return the files, their batch dim free."""
        format = self.config.format
        files = write(format, state.model, context, context.folder, self.config.opset)
        after = State(EXPORTED, state.model, state.masks, folder=context.folder, files=files, format=format)
        return Change(after, notes=(FORMATS[format].note,) if FORMATS[format].note else ())


def write(format: str, model: Any, context: Context, folder: Path, opset: int | None = None) -> tuple[str, ...]:
    """Write a model in a format into `folder`; return the files' names. Raises ExportError, NotAbleError."""
    folder.mkdir(parents=True, exist_ok=True)
    files: tuple[str, ...] = load(FORMATS[format].writer)(model, context, folder, opset)
    return files
