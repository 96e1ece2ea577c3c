"""Weights that training begins with in place of drawn ones (`train.init`): a file's, or a part of a wider net's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from orchestrator.errors import CheckpointError
from orchestrator.parallel.initialise import own_slice
from orchestrator.plan.cut import cuts_of
from orchestrator.spec.job import JobSpec
from orchestrator.train.cut import cut_weights


def given_weights(job: JobSpec, module: nn.Module) -> dict[str, Tensor] | None:
    """Return the weights of the whole model by name, and buffers that the file holds; None: the job names no file.

    `module` is the job's model before any layout, on any device: its names and shapes decide. Raises CheckpointError
    when the file is another one, damaged, or does not fit.
    """
    init = job.train.init
    if init is None:
        return None
    weights = _read(init.file, init.sha256)
    if init.cut_from is not None:
        try:
            weights = cut_weights(weights, cuts_of(init.cut_from, job.model))
        except (KeyError, IndexError, RuntimeError) as error:
            raise CheckpointError(
                f"{init.file} does not hold the weights of {init.cut_from.use} {init.cut_from.options}: {error}",
                hint="`train.init.cut_from` must be the model section that the file was trained with",
            ) from error
    _require_fit(init.file, weights, module)
    return weights


def put_weights(module: nn.Module, weights: Mapping[str, Tensor], copies: Mapping[str, str]) -> None:
    """Fill a module that has memory, under any layout: every parameter takes its own slice of the full tensor.

    `copies`: a parameter that is a copy of another pipeline stage's -> that one's name.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            own.copy_(own_slice(weights[copies.get(name, name)], parameter))
        for name, buffer in module.named_buffers():
            if name in weights:
                buffer.copy_(weights[name])


def _read(file: str, sha256: str | None) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise CheckpointError(f"the initial weights cannot be read: {error}", hint="see train.init.file") from error
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise CheckpointError(
            f"{file} is not the file that train.init.sha256 names: its digest is {found}",
            hint="give the file back its content, or take the new digest if that is what you mean",
        )
    try:
        return dict(load(content))
    except SafetensorError as error:
        raise CheckpointError(f"{file} is no safetensors file: {error}") from error


def _require_fit(file: str, weights: Mapping[str, Tensor], module: nn.Module) -> None:
    wanted, allowed = dict(module.named_parameters()), module.state_dict()
    missing = sorted(set(wanted) - set(weights))
    unknown = sorted(set(weights) - set(allowed))
    other = [name for name in weights if name in allowed and weights[name].shape != allowed[name].shape]
    said = [f"'{name}' is missing" for name in missing[:3]] + [f"'{name}' is unknown" for name in unknown[:3]]
    said += [f"'{name}' is {tuple(weights[name].shape)}, not {tuple(allowed[name].shape)}" for name in other[:3]]
    if said:
        raise CheckpointError(
            f"the weights of {file} do not fit the model: {'; '.join(said)}",
            hint="the model section must be the one that the file was trained with",
        )
