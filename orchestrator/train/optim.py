"""Optimisers as plug-ins, and parameter groups by name pattern.

A plug-in has `Config` (its keys), `build(config, groups)` and `state_slots(config)`: numbers kept per parameter, which
the plan's memory prediction reads. Where the device has a fused kernel it is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from orchestrator import plugins
from orchestrator.errors import JobFileError, Problem
from orchestrator.spec.job import OptimSection
from orchestrator.wording import listed

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

Groups = list[dict[str, Any]]


def _positive(**values: float) -> None:
    for key, value in values.items():
        if value < 0:
            raise ValueError(f"{key} must not be negative")


def _any_sharded(groups: Groups) -> bool:
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"])


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    @dataclass(frozen=True)
    class Config:
        """Learning rate, moment decays, term against division by zero, weight decay."""

        lr: float = 1e-3
        betas: tuple[float, float] = (0.9, 0.999)
        eps: float = 1e-8
        weight_decay: float = 0.01

        def __post_init__(self) -> None:
            _positive(lr=self.lr, eps=self.eps, weight_decay=self.weight_decay)
            if not all(0 <= beta < 1 for beta in self.betas):
                raise ValueError("betas must be in [0, 1)")

    @staticmethod
    def state_slots(config: Config) -> float:
        """Return 2: both moments."""
        return 2.0

    @staticmethod
    def build(config: Config, groups: Groups) -> Optimizer:
        """Return the optimiser over parameter groups."""
        from torch.optim import AdamW as TorchAdamW

        return TorchAdamW(groups, **asdict(config), fused=True)


class SGD:
    """Stochastic gradient descent with momentum."""

    @dataclass(frozen=True)
    class Config:
        """Learning rate, momentum, Nesterov's variant, weight decay (added to the gradient)."""

        lr: float = 1e-2
        momentum: float = 0.9
        nesterov: bool = False
        weight_decay: float = 0.0

        def __post_init__(self) -> None:
            _positive(lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
            if self.nesterov and self.momentum == 0:
                raise ValueError("nesterov needs a momentum above 0")

    @staticmethod
    def state_slots(config: Config) -> float:
        """Return 1 with momentum, else 0."""
        return 1.0 if config.momentum else 0.0

    @staticmethod
    def build(config: Config, groups: Groups) -> Optimizer:
        """Return the optimiser over parameter groups."""
        from torch.optim import SGD as TorchSGD

        # torch 2.13 has a fused kernel for SGD, but no rule for running it on sharded weights.
        return TorchSGD(groups, **asdict(config), fused=not _any_sharded(groups))


class Adafactor:
    """Adafactor (Shazeer and Stern, 2018): second moments of a matrix as row and column means."""

    @dataclass(frozen=True)
    class Config:
        """Learning rate, decay exponent, clipping of the update, weight decay."""

        lr: float = 1e-2
        beta2_decay: float = -0.8
        d: float = 1.0
        weight_decay: float = 0.0

        def __post_init__(self) -> None:
            _positive(lr=self.lr, d=self.d, weight_decay=self.weight_decay)

    @staticmethod
    def state_slots(config: Config) -> float:
        """Return 0: rows plus columns are small beside the matrix."""
        return 0.0

    @staticmethod
    def build(config: Config, groups: Groups) -> Optimizer:
        """Return the optimiser over parameter groups."""
        from torch.optim import Adafactor as TorchAdafactor

        return TorchAdafactor(groups, **asdict(config))


def build_optimizer(
    section: OptimSection, named: Iterable[tuple[str, Tensor]], *, check_matches: bool = True
) -> Optimizer:
    """Return the optimiser of a job over named parameters, in groups; the first group whose pattern matches wins.

    Raises JobFileError for a group that matches nothing (unless `named` is only a part of the model, then
    `check_matches` is off) or has a key the optimiser does not take.
    """
    rest: dict[str, Any] = {"params": []}
    groups = [_group(section, index) for index in range(len(section.groups))]
    names: list[str] = []
    for name, parameter in named:
        names.append(name)
        if parameter.requires_grad:
            owner = next((g for g, s in zip(groups, section.groups, strict=True) if fnmatchcase(name, s.match)), rest)
            owner["params"].append(parameter)
    for index, group in enumerate(groups):
        if check_matches and not group["params"]:
            pattern = section.groups[index].match
            raise JobFileError(
                f"optim.groups.{index}.match: no trainable parameter matches '{pattern}'",
                hint=f"it has {listed(names, 8)}; `orchestrator plan -v` lists the names, patterns are like *.bias",
                problems=[Problem(f"optim.groups.{index}.match", f"no trainable parameter matches '{pattern}'")],
            )
    filled = [part for group in [rest, *groups] for part in _by_sharding(group)]
    optimizer: Optimizer = plugins.build("optimizers", section.use, section.options, filled)
    return optimizer


def _by_sharding(group: dict[str, Any]) -> Groups:
    """Cut a group into one per way of sharding: a fused update takes whole and sharded weights only apart."""
    from torch.distributed.tensor import DTensor

    parts: dict[object, list[Any]] = {}
    for parameter in group["params"]:
        way = (parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else None
        parts.setdefault(way, []).append(parameter)
    return [{**group, "params": parameters} for parameters in parts.values()]


def _group(section: OptimSection, index: int) -> dict[str, Any]:
    options = section.groups[index].options
    config = plugins.light_config("optimizers", section.use)
    if config is not None:
        # Binding the group's keys over the section's finds misspelt and ill-typed ones.
        plugins.build_config(config, {**section.options, **options})
    return {"params": [], **options}
