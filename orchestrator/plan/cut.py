"""Narrower nets as parts of a wide one, as the model declares them: `widest(configs)`, `cuts(whole, part)`, `elastic`.

Asked while planning, so torch-free; `train.cut` takes the parts out of tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from orchestrator import plugins
from orchestrator.errors import PlanError, Problem
from orchestrator.spec.base import Use
from orchestrator.spec.job import JobSpec

EXITS = "exits"


class Cut(Protocol):
    """A part of one parameter (`orchestrator.models.declare.Cut`)."""

    @property
    def parameter(self) -> str: ...

    @property
    def places(self) -> tuple[range | tuple[int, ...], ...]: ...

    @property
    def net(self) -> Any: ...


def elastic_keys(model: str) -> tuple[str, ...]:
    """Return the keys of a model in which nets that share weights may differ; () when it declares none."""
    if plugins.light_config("models", model) is None:
        return ()
    return tuple(getattr(plugins.load("models", model), "elastic", ()))


def widest_of(nets: Sequence[Use]) -> Any:
    """Return the config of the smallest net that all of these `model` sections, of one model, are parts of.

    Raises PlanError with the reason when there is none.
    """
    plugin = _plugin(nets[0])
    try:
        return plugin.widest([_config(plugin, net) for net in nets])
    except ValueError as error:
        raise PlanError(f"no {nets[0].use} holds all nets of the space: {error}") from error


def cuts_of(whole: Use, part: Use) -> Mapping[str, Cut]:
    """Return for every parameter of `part` where it lies in `whole`. Raises PlanError with the reason when it does not.

    Both are `model` sections of one model that declares `cuts`.
    """
    if whole.use != part.use:
        raise PlanError(f"a {part.use} is no part of a {whole.use}", hint="only nets of one model share weights")
    plugin = _plugin(whole)
    try:
        found: Mapping[str, Cut] = plugin.cuts(_config(plugin, whole), _config(plugin, part))
    except ValueError as error:
        raise PlanError(f"the net is no part of the wide one: {error}") from error
    return found


def source_name(cut: Cut) -> str:
    """Return under which name a wide net with exits holds the parameter: its own, or that in the exit's net."""
    return cut.parameter if cut.net is None else f"{EXITS}.{exit_name(cut.net)}.{cut.parameter}"


def exit_name(net: Any) -> str:
    """Return 8 hex digits that name the net an exit belongs to (a frozen dataclass, whose text says all of it)."""
    return hashlib.sha256(repr(net).encode()).hexdigest()[:8]


def init_problems(job: JobSpec) -> list[Problem]:
    """Return why the job cannot begin with the weights that `train.init` names; the file itself is not read."""
    init = job.train.init
    if init is None:
        return []
    found: list[Problem] = []
    if job.cluster.address is None and not Path(init.file).is_file():
        found.append(Problem("train.init.file", f"{init.file} does not exist", "give a safetensors file", "no-file"))
    if init.cut_from is not None:
        try:
            cuts_of(init.cut_from, job.model)
        except PlanError as error:
            found.append(Problem("train.init.cut_from", error.message, error.hint or "choose a smaller net", "no-part"))
    return found


def _plugin(net: Use) -> Any:
    if not elastic_keys(net.use):
        raise PlanError(
            f"model {net.use} does not say which nets are parts of which",
            hint="it declares `elastic`, `widest` and `cuts` (docs/models.md); cnn, resnet and transformer do",
        )
    return plugins.load("models", net.use)


def _config(plugin: Any, net: Use) -> Any:
    return plugins.build_config(plugin.Config, net.options)
