"""Compares two traces: the worst relative difference per group, and the first place where a group disagrees. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

NUMBERS = "numbers.json"
NUMBER_GROUPS = {"loss": "loss", "norm": "gradient norm", "clipped_norm": "clipped norm"}
# As a step computes them: what is wrong first is at fault, the rest follows.
GROUPS = ("loss", "gradients", "gradient norm", "clipped norm", "weights", "buffers")
# A tensor whose norm is below this share of its group's largest counts by that share: noise over nothing is no finding.
# Times the tolerance that is a few roundings of the largest tensor.
# In weights it is more: a gradient that is 0 but for rounding becomes a step of its own size under Adam.
_FLOOR = {"fp64": 1e-4}
_FLOOR_ELSE = 1e-2


@dataclass(frozen=True)
class Worst:
    """The largest difference of a group: where it is, and whether it is within the tolerance."""

    group: str
    difference: float
    name: str
    step: int
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether the largest difference is within the tolerance; NaN never is."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class Comparison:
    """A layout beside one process: the worst per group, and the first finding in the order things are computed."""

    layout: str
    precision: str
    groups: tuple[Worst, ...]
    first: Worst | None
    first_tensor: Worst | None = None
    """The first finding that has a parameter or buffer to name, where `first` is a number of the whole model."""
    error: str = ""
    """Why the layout gave nothing to compare."""

    @property
    def agrees(self) -> bool:
        """Whether every group agrees."""
        return not self.error and all(group.agrees for group in self.groups)

    @property
    def worst(self) -> Worst | None:
        """The group that comes closest to its tolerance, or exceeds it furthest."""
        return max(self.groups, key=_strain, default=None)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "agrees": self.agrees}


def compare(
    layout: str,
    precision: str,
    got: Path,
    want: Path,
    tolerance: float,
    allowed: Mapping[str, float] = MappingProxyType({}),
) -> Comparison:
    """Compare the trace in folder `got` with the reference in `want`.

    A tensor's difference is norm(got - want) / norm(want), with a floor. `allowed` holds groups whose tolerance is not
    `tolerance`.
    """
    findings = [
        *_numbers(got, want, tolerance, allowed),
        *_tensors(got, want, tolerance, allowed, _FLOOR.get(precision, _FLOOR_ELSE)),
    ]
    groups = tuple(_worst(name, findings) for name in dict.fromkeys(finding.group for finding in findings))
    wrong = sorted((f for f in findings if not f.agrees), key=lambda f: (f.step, GROUPS.index(f.group), -_strain(f)))
    named = [finding for finding in wrong if finding.name]
    return Comparison(layout, precision, groups, next(iter(wrong), None), next(iter(named), None))


def _worst(group: str, findings: list[Worst]) -> Worst:
    return max((finding for finding in findings if finding.group == group), key=_strain)


def _strain(finding: Worst) -> float:
    return math.inf if math.isnan(finding.difference) else finding.difference / finding.tolerance


def _numbers(got: Path, want: Path, tolerance: float, allowed: Mapping[str, float]) -> list[Worst]:
    mine, theirs = (json.loads((folder / NUMBERS).read_text(encoding="utf-8")) for folder in (got, want))
    found = []
    for step, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        for key, group in NUMBER_GROUPS.items():
            difference = abs(a[key] - b[key]) / max(abs(b[key]), 1e-30)
            found.append(Worst(group, difference, "", step + 1, allowed.get(group, tolerance)))
    return found


def _tensors(got: Path, want: Path, tolerance: float, allowed: Mapping[str, float], floor: float) -> list[Worst]:
    found: list[Worst] = []
    for path in sorted(want.glob("*.safetensors")):
        group, _, step = path.stem.rpartition("-")
        least = floor if group == "gradients" else _FLOOR_ELSE
        found += _one_file(group, int(step) + 1, got / path.name, path, allowed.get(group, tolerance), least)
    return found


def _one_file(group: str, step: int, got: Path, want: Path, tolerance: float, floor: float) -> list[Worst]:
    from safetensors.torch import load_file

    mine, theirs = load_file(got), load_file(want)
    lost = sorted(mine.keys() ^ theirs.keys())
    if lost:
        why = "missing under the layout" if lost[0] in theirs else "a copy that went its own way"
        return [Worst(group, math.inf, f"{lost[0]} ({why})", step, tolerance)]
    norms = {name: float(tensor.double().norm()) for name, tensor in theirs.items()}
    least = max(max(norms.values(), default=0.0) * floor, 1e-30)
    return [
        Worst(group, float((mine[n].double() - t.double()).norm()) / max(norms[n], least), n, step, tolerance)
        for n, t in theirs.items()
    ]
