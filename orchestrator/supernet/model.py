"""The wide net as a module, and a part of it as a module of its own that has no weights. Imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator import plugins
from orchestrator.parallel.initialise import build_module, reset_buffers
from orchestrator.plan.cut import EXITS, Cut, cuts_of, exit_name
from orchestrator.spec.base import Use
from orchestrator.spec.job import JobSpec
from orchestrator.train.build import construct_model
from orchestrator.train.cut import cut_weights


def build_whole(job: JobSpec, nets: Iterable[Use]) -> nn.Module:
    """Return the job's model, the widest net, and beside its layers the exits that its parts have for themselves.

    A forward pass is that of the widest net alone. Parameters of exits are named `exits.NET.NAME`.
    """
    module = construct_model(job)
    wanted: dict[Any, set[str]] = {}
    for net in nets:
        for cut in cuts_of(job.model, net).values():
            if cut.net is not None:
                wanted.setdefault(cut.net, set()).add(cut.parameter)
    if wanted:
        plugin: Any = plugins.load("models", job.model.use)
        module.add_module(
            EXITS, nn.ModuleDict({exit_name(net): _only(plugin.build(net), names) for net, names in wanted.items()})
        )
    return module


def _only(module: nn.Module, names: set[str]) -> nn.Module:
    """Return the module with these parameters alone; it is kept for them and never called."""
    for path, part in module.named_modules():
        for name in list(part._parameters):
            if (f"{path}.{name}" if path else name) not in names:
                part.register_parameter(name, None)
        for name in list(part._buffers):
            part.register_buffer(name, None)
    return module


class Part(nn.Module):
    """A narrower net that uses its part of the wide net's weights as they are at each call; gradients reach them.

    Its own class does the computing: what is called is the plain model of the net's `model` section. It owns no
    parameter, only buffers (batch norm's figures).
    """

    def __init__(self, job: JobSpec, net: Use, whole: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.net = net
        self.cuts: Mapping[str, Cut] = cuts_of(job.model, net)
        self._whole = whole
        like = next(iter(whole.values()))
        own = job.model_copy(update={"model": net})
        self.shell = build_module(lambda: construct_model(own), job.train.seed, on_meta=True).to(like.dtype)
        _fill_buffers(self.shell, like.device)
        for parameter in self.shell.parameters():
            parameter.requires_grad_(False)  # without memory; the weights are handed in

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the part's outputs."""
        outputs: Tensor = torch.func.functional_call(self.shell, self.weights(), (inputs,))
        return outputs

    def weights(self) -> dict[str, Tensor]:
        """Return the part's parameters: views of the wide net's."""
        return cut_weights(self._whole, self.cuts)


def _fill_buffers(module: nn.Module, device: torch.device) -> None:
    """Give a module's buffers memory and their first values, as they have when it is built alone."""
    for path, part in module.named_modules():
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty_like(buffer, device=device)
        reset_buffers(path, part)
