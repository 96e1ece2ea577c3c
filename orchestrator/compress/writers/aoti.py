"""Format `aoti`: compiled ahead of time by AOTInductor for the processor at hand, weights frozen into the code."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.compress.base import ARTIFACT, Change, Context, State
from orchestrator.compress.processor import instructions
from orchestrator.compress.runtimes.aoti import FILE, PROCESSOR
from orchestrator.errors import ExportError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from orchestrator.compress.quantise import Config

EXTRA = "aoti"
SETTINGS: Mapping[str, Any] = {"freezing": True, "cpp.dynamic_threads": True}
"""Without freezing, integers are unpacked at every call (0.86 x the speed of eager). Threads are the user's."""


def write(model: Any, context: Context, folder: Path, opset: int | None = None) -> tuple[str, ...]:
    """Compile a model into `model.pt2`, its batch dim free. Raises ExportError."""
    from orchestrator.compress.writers.program import trace_lean
    from orchestrator.compress.writers.pt2e import folded

    compile_package(trace_lean(folded(model, context), context), folder / FILE)
    return (FILE,)


def quantise(state: State, context: Context, config: Config) -> Change:
    """Return the package of the model on integers."""
    from orchestrator.compress.writers.pt2e import to_integers

    program = to_integers(state.model, context, build_quantiser(config.scheme == "int8-dynamic"), EXTRA)
    compile_package(program, context.folder / FILE)
    after = State(ARTIFACT, state.model, folder=context.folder, files=(FILE,), format="aoti", scheme=config.scheme)
    return Change(after, {"scheme": config.scheme})


def build_quantiser(dynamic: bool) -> Any:
    """Return torchao's quantiser for the kernels that AOTInductor has on x86; ranges are minima and maxima."""
    from orchestrator.compress.writers.pt2e import tools_of, without

    tools = tools_of("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer", EXTRA)
    asked = tools.get_default_x86_inductor_quantization_config(is_dynamic=dynamic)
    if not dynamic:
        observer = tools_of("torchao.quantization.pt2e", EXTRA).MinMaxObserver.with_args(eps=2**-12)
        spec = replace(asked.input_activation, observer_or_fake_quant_ctr=observer)
        asked = replace(asked, input_activation=spec, output_activation=spec)
    quantiser = without(tools.X86InductorQuantizer, _one_channel)()
    quantiser.set_global(asked)
    return quantiser


def _one_channel(node: Any) -> bool:
    """Say whether a node is a convolution of one channel.

    With a free batch dim the compiler (torch 2.13) takes its integer outputs for laid out otherwise than they are.
    """
    import torch

    return node.target is torch.ops.aten.conv2d.default and node.args[0].meta["val"].shape[1] == 1


def compile_package(program: ExportedProgram, path: Path, settings: Mapping[str, Any] = SETTINGS) -> None:
    """Compile a program into a package that holds what running it takes, and no more. Raises ExportError."""
    import torch
    from torch._inductor import aoti_compile_and_package

    from orchestrator.export.trace import first_lines

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="orchestrator-aoti-") as scratch:
        made = Path(scratch) / path.name
        try:
            with torch.no_grad():
                aoti_compile_and_package(program, package_path=str(made), inductor_configs=dict(settings))
        except Exception as error:  # the compiler raises its own errors, g++'s, and what its passes run into
            raise ExportError(f"AOTInductor cannot compile this model: {first_lines(error)}") from error
        shrink(made, path)


def shrink(source: Path, target: Path) -> None:
    """Copy a package without sources and symbols, deflated, and write down which instructions it was compiled for."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            if not info.filename.endswith(".cpp"):
                content = old.read(info)
                new.writestr(info.filename, _stripped(content) if info.filename.endswith(".so") else content)
        root = old.namelist()[0].partition("/")[0]
        new.writestr(f"{root}/{PROCESSOR}", json.dumps(instructions()))


def _stripped(library: bytes) -> bytes:
    """Return a library without the symbols that only its linking took."""
    strip = shutil.which("strip")
    if strip is None:
        return library
    with tempfile.TemporaryDirectory(prefix="orchestrator-aoti-") as scratch:
        path = Path(scratch) / "model.so"
        path.write_bytes(library)
        subprocess.run([strip, "--strip-unneeded", str(path)], check=True, capture_output=True)
        return path.read_bytes()
