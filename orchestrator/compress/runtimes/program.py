"""`torch.export` programs in torch, on the processor or a GPU: neither the model's code nor any converter is there."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.compress.runtimes.float8 import float8_facts, require_float8
from orchestrator.compress.runtimes.sparse import require_sparse, sparse_facts
from orchestrator.errors import ExportError, NotAbleError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.export import ExportedProgram

    from orchestrator.compress.manifest import Page
    from orchestrator.compress.runtimes.base import Array, Run

_FILE = "model.pt2"
_WEIGHTS = re.compile(r"data/(weights|constants)/[a-z]+_\d+")
_PLAIN = re.compile(r"aten\.\w+\.\w+")
_SHAPES = re.compile(r"<built-in function \w+>|torch\.sym_\w+|<function sym_\w+ .*")


class Program:
    """One `model.pt2`, all weights in it. Computes with as many threads as the process has given torch.

    `skip`: weights kept as two of every four are multiplied without their zeros where the target can.
    """

    files: tuple[str, ...] = (_FILE,)
    reference = "program"
    code: tuple[str, ...] = ()
    refused: tuple[str, ...] = ("torchao", "torchvision", "onnx", "onnxruntime")
    packages: tuple[str, ...] = ("torch",)

    def __init__(self, target: str = "cpu", *, skip: bool = True) -> None:
        self._target, self._skip = target, skip

    def open(self, contents: Mapping[str, bytes], threads: int = 1) -> Run:
        """Return the model as a function of a batch. Raises NotAbleError where the target's device is missing."""
        (name, content), *_ = contents.items()
        from orchestrator.compress.runtimes.device import device_of
        from orchestrator.compress.runtimes.two_of_four import pack_of, skip_zeros, trials, with_zeros

        device = device_of(self._target)
        # The program itself is let go of at once: it would hold every weight that another takes the place of.
        module: Any = _moved(_load(name, content), device).module()
        skipping = skip_zeros(module, device, None if self._skip else with_zeros)
        if skipping and self._skip and self._target == "cuda" and pack_of(device) is with_zeros:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in trials(device).items())
            raise NotAbleError(f"torch does not skip two of every four weights on this GPU ({reasons})")
        return run_of(module, device)

    def inspect(self, contents: Mapping[str, bytes], page: Page) -> dict[str, Any]:
        """Count operators and weights in the archive; refuse weights that nothing reads and operators of others."""
        (name, content), *_ = contents.items()
        program = _load(name, content)
        _require_read(name, content, program)
        operators = Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")
        foreign = sorted(each for each in operators if not _PLAIN.fullmatch(each) and not _SHAPES.fullmatch(each))
        if foreign:
            raise ExportError(f"{name} uses operators that torch alone does not run: {', '.join(foreign[:3])}")
        products, coverage, others = float8_facts(program)
        sparse = sparse_facts(program)
        if page.scheme == "float8":
            require_float8(products, coverage, others)
        elif page.scheme == "2:4":
            require_sparse(sparse, page.baseline_bytes)
        elif page.scheme != "fp32":
            raise ExportError(f"{page.scheme} in name only: programs are written in fp32, float8 and 2:4")
        return {
            "coverage": sparse.coverage if sparse.products else coverage,
            "weights_by_bits": dict(sorted((_bits(program) - Counter({"8": sparse.place_bytes})).items())),
            "integer_operators": 0,
            "float8_operators": products,
            "sparse_operators": sparse.products,
            "operators": dict(operators.most_common()),
        }


RUNTIME, ON_CUDA = Program(), Program("cuda")
WITH_ZEROS = Program("cuda", skip=False)
"""The same file, every zero multiplied: what skipping them is compared with."""


def run_of(module: Any, device: torch.device) -> Run:
    """Return what torch has loaded as a function of a batch, which goes to a device and comes back from it."""
    import torch

    def run(inputs_B: Array) -> Array:
        with torch.inference_mode():
            outputs: Array = module(torch.from_numpy(inputs_B)).numpy()
        return outputs

    def run_there(inputs_B: Array) -> Array:
        with torch.inference_mode():
            outputs: Array = module(torch.from_numpy(inputs_B).to(device)).cpu().numpy()
        return outputs

    return run if device.type == "cpu" else run_there


def _moved(program: ExportedProgram, device: torch.device) -> ExportedProgram:
    if device.type == "cpu":
        return program
    from torch.export.passes import move_to_device_pass

    moved: ExportedProgram = move_to_device_pass(program, device)
    return moved


def _load(name: str, content: bytes) -> ExportedProgram:
    try:
        from orchestrator.export.program import load_program
    except ImportError as error:
        raise NotAbleError(f"torch cannot be imported: {error}", hint="pip install torch") from error
    return load_program(Path(name), content)


def _tensors(program: ExportedProgram) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a program; one that has several names comes once."""
    import torch

    seen: set[tuple[Any, ...]] = set()
    for name, value in (*program.state_dict.items(), *program.constants.items()):
        if not isinstance(value, torch.Tensor):
            continue
        key = (value.untyped_storage().data_ptr(), value.storage_offset(), tuple(value.shape))
        if key not in seen:
            seen.add(key)
            yield name, value


def _bits(program: ExportedProgram) -> Counter[str]:
    found: Counter[str] = Counter()
    for _, value in _tensors(program):
        if value.numel():
            found[str(8 * value.element_size())] += value.numel()
    return found


def _require_read(name: str, content: bytes, program: ExportedProgram) -> None:
    """Require that every tensor in the archive is one that an operator reads. Raises ExportError naming those not."""
    users = {node.name: len(node.users) for node in program.graph.nodes if node.op == "placeholder"}
    read = {spec.target for spec in program.graph_signature.input_specs if users.get(spec.arg.name)}
    dead = sorted(name for name in {*program.state_dict, *program.constants} if name not in read)
    if dead:
        raise ExportError(
            f"{name} carries weights that no operator reads: {', '.join(dead[:3])}",
            hint="a converter has left the fp32 weights behind: they must be taken out",
        )
    stray = sorted(_stray(content))
    if stray:
        raise ExportError(f"{name} holds records that no weight of the program names: {', '.join(stray[:3])}")


def _stray(content: bytes) -> set[str]:
    """Return the records of tensors that no list of the archive names."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = {each.partition("/")[2]: archive.read(each) for each in archive.namelist()}
    named = {
        f"{place.rpartition('/')[0]}/{entry['path_name']}"
        for place, text in records.items()
        if place.endswith("_config.json")
        for entry in json.loads(text)["config"].values()
    }
    return {place for place in records if _WEIGHTS.fullmatch(place)} - named
