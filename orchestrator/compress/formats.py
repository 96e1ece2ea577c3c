"""The formats that `export` knows: who writes a file, who makes its weights integers, what it runs in. No torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.spec.job import JobSpec

Complaint = tuple[str, str, str]


@dataclass(frozen=True)
class Format:
    """Where the code of a format is (`module:name`, loaded when it is needed), and what it can do."""

    runtime: str
    runtimes: Mapping[str, str] = field(default_factory=dict)
    """Where the runtime for another target than `cpu` is, by target."""
    writer: str = ""
    quantiser: str = ""
    """A function of (state, context, config of `quantise`) that returns a Change; empty: there is none."""
    schemes: tuple[str, ...] = ()
    """Schemes of `quantise` that the format can be in."""
    targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By scheme, the values of `quantise`'s `target` that it can have; `cpu` where none is named."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Why another scheme cannot be had, by scheme; `` for all others."""
    qat: bool = False
    algorithms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By scheme, the values of `quantise`'s `algorithm` that it can be told beside the default."""
    grouped: tuple[str, ...] = ()
    """Schemes with a scale for each `group` of inputs; the others have one for each output."""
    modules: tuple[str, ...] = ()
    """What must be importable to write it."""
    integer_modules: tuple[str, ...] = ()
    """What must be importable, too, for its weights to become integers."""
    tools: str = ""
    """A function that returns what else is needed and lacking, as (message, hint); empty: nothing is."""
    note: str = ""
    """What the report says of every file in it."""
    extra: str = ""
    """The optional dependencies that bring those: `pip install "orchestrator[EXTRA]"`."""


FORMATS: dict[str, Format] = {
    "onnx": Format(
        runtime="orchestrator.compress.runtimes.onnx:RUNTIME",
        writer="orchestrator.compress.writers.onnx:write",
        quantiser="orchestrator.compress.writers.onnx_integers:quantise",
        schemes=("int8-static", "int8-dynamic", "int8-weight", "int4-weight", "mixed"),
        qat=True,
        algorithms={"int8-static": ("entropy", "percentile"), "mixed": ("entropy", "percentile")},
        grouped=("int8-weight", "int4-weight", "mixed"),
        modules=("onnx", "onnxscript", "onnxruntime"),
        extra="compress",
    ),
    "openvino": Format(
        runtime="orchestrator.compress.runtimes.openvino:RUNTIME",
        writer="orchestrator.compress.writers.openvino:write",
        quantiser="orchestrator.compress.writers.openvino_integers:quantise",
        schemes=("int8-static", "int8-weight", "int4-weight"),
        refusals={
            "int8-dynamic": "OpenVINO rounds the inputs of int8-weight layers as they come by itself: write that",
            "mixed": "NNCF gives no measured sensitivities",
        },
        algorithms={"int4-weight": ("gptq", "awq", "scale")},
        grouped=("int4-weight",),
        modules=("onnx", "onnxscript", "openvino", "nncf"),
        extra="openvino",
    ),
    "program": Format(
        runtime="orchestrator.compress.runtimes.program:RUNTIME",
        runtimes={"cuda": "orchestrator.compress.runtimes.program:ON_CUDA"},
        writer="orchestrator.compress.writers.program:write",
        quantiser="orchestrator.compress.writers.program:quantise",
        schemes=("float8", "2:4"),
        targets={"float8": ("cpu", "cuda"), "2:4": ("cuda",)},
        refusals={"": "a program with integers runs at 0.2 to 0.56 x the speed of fp32 in eager PyTorch (measured)"},
    ),
    "aoti": Format(
        runtime="orchestrator.compress.runtimes.aoti:RUNTIME",
        writer="orchestrator.compress.writers.aoti:write",
        quantiser="orchestrator.compress.writers.aoti:quantise",
        schemes=("int8-static", "int8-dynamic"),
        refusals={
            "int8-weight": "freezing turns the integers back into floats, and the file grows (36 to 86 MB, measured)",
            "int4-weight": "torch has no kernel for 4-bit weights that its compiler uses on a processor",
        },
        integer_modules=("torchao",),
        tools="orchestrator.compress.processor:compiler_problems",
        extra="aoti",
    ),
    "executorch": Format(
        runtime="orchestrator.compress.runtimes.executorch:RUNTIME",
        writer="orchestrator.compress.writers.executorch:write",
        quantiser="orchestrator.compress.writers.executorch:quantise",
        schemes=("int8-static",),
        refusals={"": "what XNNPACK then does with it was not measured here, and is not claimed"},
        modules=("executorch", "torchao"),
        extra="executorch",
    ),
    "safetensors": Format(
        runtime="orchestrator.compress.runtimes.safetensors:RUNTIME",
        writer="orchestrator.compress.writers.safetensors:write",
        refusals={"": "it holds weights alone, and the model's own code multiplies floats"},
        note="safetensors needs the model's code to run: it is NOT A DEPLOYMENT FORMAT",
    ),
    "pack": Format(runtime="orchestrator.compress.runtimes.pack:RUNTIME"),
}


NEVER: Mapping[str, str] = {
    "float8": "of the runtimes here torch alone multiplies in float8",
    "2:4": "of the runtimes here torch alone skips two of every four weights, on NVIDIA GPUs",
}
"""Why all formats but those that name a scheme cannot be in it."""


def load(place: str) -> Any:
    """Return what `module:name` names."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def refusal(format: str, scheme: str) -> tuple[str, str]:
    """Return why a format cannot be in a scheme of `quantise`, and what to write instead."""
    found = FORMATS[format]
    why = found.refusals.get(scheme) or NEVER.get(scheme) or found.refusals.get("") or "its tools have no such scheme"
    able = [name for name, other in FORMATS.items() if scheme in other.schemes]
    others = f"; {scheme} can be had as {' or '.join(able)}" if able else ""
    hint = f"write {' or '.join(found.schemes)}{others}" if found.schemes else f"remove quantise{others}"
    return f"{format} cannot be made {scheme}: {why}", hint


def exported_as(job: JobSpec) -> str:
    """Return the format of a job's `export` step; onnx where there is none."""
    steps = [step for step in job.compress.steps if step.use == "export"]
    return str(steps[-1].options.get("format", "onnx")) if steps else "onnx"


def missing(format: str, key: str, *, integers: bool = False) -> list[Complaint]:
    """Return what must be installed for a format (or for `integers` in it) and is not, as (key, message, hint)."""
    found = FORMATS[format]
    complaints: list[Complaint] = []
    lacking = [name for name in (found.integer_modules if integers else found.modules) if find_spec(name) is None]
    if lacking:
        what = f"integers in {format} need" if integers else f"{format} needs"
        hint = f'pip install "orchestrator[{found.extra}]"'
        complaints.append((key, f"{what} {', '.join(lacking)}, which is not installed", hint))
    if found.tools and not integers:
        complaints += [(key, f"{format}: {message}", hint) for message, hint in load(found.tools)()]
    return complaints
