"""Initial weights as a function of (seed, parameter name): the same on any number of ranks, whatever holds the shards.

A model that declares `init_parameter` is built on the meta device and filled parameter by parameter; a plain module is
built on the CPU under a generator forked from the seed, so that every rank builds the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Placement

from orchestrator.errors import PlanError
from orchestrator.parallel.shared import shared_groups, tie

InitParameter = Callable[[str, torch.Tensor, torch.Generator], None]


def seed_of(*parts: object) -> int:
    """Return a 63-bit seed from any printable parts; equal parts give equal seeds on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_noise(seed: int, device: torch.device) -> None:
    """Seed the generator that dropout on `device` draws from.

    torch.manual_seed seeds every kind of device there is and formats a stack trace for each: 0.6 ms, a fifth of a small
    model's step.
    """
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def build_module(build: Callable[[], nn.Module], seed: int, *, on_meta: bool) -> nn.Module:
    """Build the model: on the meta device when its parameters are filled later, else on the CPU from the seed."""
    if on_meta:
        with torch.device("meta"):
            return build()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "build"))
        return build()


def fill(
    module: nn.Module,
    init_parameter: InitParameter,
    seed: int,
    device: torch.device,
    copies: Mapping[str, str] | None = None,
) -> None:
    """Give memory to a module on the meta device and fill it; sharded parameters receive their own slice only.

    `copies` maps a parameter that is a copy of another stage's to that one's name, which decides its values.
    """
    groups = shared_groups(module)
    module.to_empty(device=device)
    tie(module, groups)
    for name, parameter in module.named_parameters():
        name = (copies or {}).get(name, name)
        full = torch.empty(parameter.shape, dtype=torch.float32)
        init_parameter(name, full, torch.Generator().manual_seed(seed_of(seed, name)))
        with torch.no_grad():
            own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            own.copy_(own_slice(full, parameter))
    for path, child in module.named_modules():
        reset_buffers(path, child)


def shard_dim(place: Placement) -> int | None:
    """Return the dim that a placement cuts, strided or not; None when every rank holds the whole."""
    dim: int | None = getattr(place, "dim", None)
    return dim


def own_slice(full: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return this rank's slice of a tensor that every rank holds whole, as `like` is sharded; nothing is sent.

    The tensor axis is the innermost of the mesh but cuts first; FSDP then cuts what is left (torch calls the outcome a
    strided shard), so mesh dimensions are walked from the last to the first.
    """
    if not isinstance(like, DTensor):
        return full
    mesh = like.device_mesh
    for axis in reversed(range(mesh.ndim)):
        dim = shard_dim(like.placements[axis])
        if dim is not None:
            pieces = full.chunk(mesh.size(axis), dim)
            at = mesh.get_local_rank(axis)
            full = pieces[at] if at < len(pieces) else full.narrow(dim, 0, 0)
    return full


def reset_buffers(path: str, module: nn.Module) -> None:
    """Fill the buffers that a layer itself has. Raises PlanError when it does not say with what."""
    if not list(module.buffers(recurse=False)):
        return
    reset = getattr(module, "reset_buffers", None) or getattr(module, "reset_running_stats", None)
    if reset is None:
        raise PlanError(
            f"layer '{path}' ({type(module).__name__}) has buffers but no reset_buffers()",
            hint="add a reset_buffers() method that fills them; models are built without memory first",
        )
    with torch.no_grad():
        reset()
