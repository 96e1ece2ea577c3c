"""Can these compression steps follow one another? Pure rules over what each step takes and gives. No torch.

Called by `spec.problems`. A step's plug-in says of itself `flow(config) -> (takes, gives)`, each one of `STATES`. It
may say `leaves(config)`, what it leaves on a model that later steps must respect (`masks`: zeros that stay, `codes`:
weights that share values), and `bars(config)`, which of these it cannot come after and why. A step without `leaves` may
take them away: after it nothing is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator import plugins
from orchestrator.errors import JobFileError, Problem

if TYPE_CHECKING:
    from orchestrator.spec.problems import Part

STATES = {
    "module": "a model in memory",
    "exported": "an exported graph",
    "artifact": "a finished file",
}
"""What a model is between two steps: weights and code; a graph that tools may still change; a file to deploy."""
_PLAIN = ("module", "module")  # of a step that says nothing of itself


class Step(NamedTuple):
    """One step as far as the order goes."""

    path: str
    use: str
    takes: str
    gives: str
    kind: str = ""
    leaves: tuple[str, ...] | None = None
    bars: Mapping[str, str] = {}

    @property
    def name(self) -> str:
        """Return `prune unstructured`."""
        return f"{self.use} {self.kind}".strip()


def order_problems(parts: Sequence[Part]) -> list[Problem]:
    """Return what is wrong with the order of the steps of a job; [] when a step itself is wrong (said elsewhere)."""
    steps = [_step(part) for part in parts]
    known = [step for step in steps if step is not None]
    if not known or len(known) < len(steps):
        return []
    if known[0].takes != "module":
        return [_wrong(known[0], None, known)]
    for before, after in pairwise(known):
        if after.takes != before.gives:
            return [_wrong(after, before, known)]
    barred = _barred(known)
    if barred is not None:
        return [barred]
    return [_open_end(known[-1])] if known[-1].gives == "module" else []


def _step(part: Part) -> Step | None:
    try:
        if plugins.find_problem(part.group, part.use) is not None:
            return None
        config = plugins.light_config(part.group, part.use)
        if config is None:
            return Step(part.path, part.use, *_PLAIN)
        plugin: Any = plugins.load(part.group, part.use)
        asked = plugins.build_config(config, part.options)
        takes, gives = plugin.flow(asked) if hasattr(plugin, "flow") else _PLAIN
        leaves = tuple(plugin.leaves(asked)) if hasattr(plugin, "leaves") else None
        bars = plugin.bars(asked) if hasattr(plugin, "bars") else {}
    except JobFileError:
        return None
    return Step(part.path, part.use, takes, gives, str(getattr(asked, "kind", "")), leaves, bars)


def _barred(steps: Sequence[Step]) -> Problem | None:
    """Return the first step that cannot work on what one before it has left, and the order that can."""
    left: dict[str, Step] = {}
    for step in steps:
        for mark, before in left.items():
            if mark in step.bars:
                message = f"{step.name} cannot come after {before.name}: {step.bars[mark]}"
                return Problem(
                    step.path, message, f"move {step.name} before {before.name} ({before.path})", "step-order"
                )
        if step.leaves is None:
            left.clear()
        else:
            left |= {mark: step for mark in step.leaves if mark not in left}
    return None


def _wrong(step: Step, before: Step | None, steps: Sequence[Step]) -> Problem:
    """Say which step cannot stand where it stands, why, and where it, or what is missing before it, would be right."""
    has = before.gives if before else "module"
    gone = f"{before.use} has made {STATES[has]} of it" if before else f"the first step is given {STATES[has]}"
    if step.takes == "module":
        closing = next(each for each in steps if each.gives != "module")
        hint = f"move {step.use} before {closing.use} ({closing.path})"
    elif has == "module":
        hint = f"put `- use: export` before {step.use}"
    else:
        hint = f"remove {step.use} or {before.use if before else step.use}"
    return Problem(step.path, f"{step.use} takes {STATES[step.takes]}, but {gone}", hint, "step-order")


def _open_end(step: Step) -> Problem:
    return Problem(
        step.path,
        f"the last step, {step.use}, leaves {STATES['module']}, which is no file that could be deployed or verified",
        "add `- use: export` after it, and `- use: quantise` if you like",
        "step-order",
    )


def calibration_problems(data: Mapping[str, Any]) -> list[Problem]:
    """Refuse calibration on the split that the final evaluation uses."""
    section = data.get("compress")
    calibration = section.get("calibration") if isinstance(section, Mapping) else None
    split = calibration.get("split") if isinstance(calibration, Mapping) else None
    if split != "test":
        return []
    return [
        Problem(
            "compress.calibration.split",
            "calibrating on the test split would choose ranges by the very samples that the accuracy is measured on",
            "write train or val",
            "calibration",
        )
    ]
