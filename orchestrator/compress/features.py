"""What a pupil's layers find, drawn towards what its teacher's find (Romero et al. 2015). Called by `recover`.

Where pruning has left a layer with other channels than the teacher's, a linear map between them is learnt beside the
model and thrown away afterwards. B batch, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from orchestrator.errors import ExportError
from orchestrator.export.weights import plain_copy
from orchestrator.parallel.process import CPU

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from orchestrator.compress.base import Context
    from orchestrator.compress.counted import Counted
    from orchestrator.compress.recover import Lessons

_PLACE = "maps_to_teacher"
_ROWS = 64
AUTO = "auto"


class Features:
    """Pairs of layers, seen through hooks; the maps belong to the pupil while it trains, and so to its layout."""

    def __init__(self, model: nn.Module, lessons: Lessons, context: Context) -> None:
        """Raises ExportError for a name that either model lacks, or for features that no map over channels relates."""
        self._names = chosen(model, lessons.teacher, lessons.features)
        self._wanted: dict[str, Tensor] = {}
        self._found: dict[str, Tensor] = {}
        device = next((each.device for each in model.parameters()), CPU)
        self._teacher = plain_copy(lessons.teacher).to(device)  # hooks on a copy: the teacher is somebody else's, too
        inputs = context.calibration()[0][:_ROWS].to(device)
        theirs, mine = (_outputs(each, self._names, inputs) for each in (self._teacher, model))
        maps: dict[str, nn.Module] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.job.train.seed)  # the same on every rank
            for name in self._names:
                maps[name.replace(".", "-")] = _map(name, mine[name], theirs[name])
        # Of a fixed set of samples: a batch's own would make the loss a matter of how it is divided over ranks.
        for each in maps.values():
            each.to(device)
        self._scales = {name: float(theirs[name].square().mean().clamp(min=1e-12)) for name in self._names}
        model.add_module(_PLACE, nn.ModuleDict(maps))
        _watch(self._teacher, self._names, self._wanted.__setitem__)
        self._model = model

        def keep(name: str, output: Tensor) -> None:
            # Within the forward pass, where a sharded model has its weights at hand.
            self._found[name] = maps[name.replace(".", "-")](output)

        self._handles = _watch(model, self._names, keep)

    def distance(self, inputs: Tensor, counted: Counted | None = None) -> Tensor:
        """Return the mean squared difference of all pairs for the batch just run, over the teacher's mean square.

        With `counted`, of features that have a place for every target, only places whose targets count.
        """
        with torch.no_grad():
            self._teacher(inputs)
        squares = {name: (self._found[name] - self._wanted[name]).square() for name in self._names}
        means = {name: each.mean() if counted is None else counted.mean(each) for name, each in squares.items()}
        parts = [means[name] / self._scales[name] for name in self._names]
        self._found.clear()
        self._wanted.clear()
        return torch.stack(parts).mean()

    def leave(self) -> None:
        """Take hooks and maps off the model again."""
        for handle in self._handles:
            handle.remove()
        delattr(self._model, _PLACE)


def chosen(model: nn.Module, teacher: nn.Module, asked: Sequence[str] | str) -> list[str]:
    """Return the paths that are compared; `auto`: the top-level layers that both have, but for the last.

    Raises ExportError when a model lacks one, or none is left.
    """
    sides = [dict(each.named_modules(remove_duplicate=False)) for each in (model, teacher)]
    if asked == AUTO:
        root = "layers." if "layers" in sides[0] else ""
        top = [f"{root}{name}" for name in sides[0].get("layers", model)._modules]
        found = [name for name in top[:-1] if name in sides[1] and _PLACE not in name]
    else:
        found = list(asked)
    for side, owner in zip(sides, ("the model", "the teacher"), strict=True):
        missing = [name for name in found if name not in side]
        if missing:
            there = ", ".join(list(side)[1:7])
            raise ExportError(f"features names '{missing[0]}', which {owner} does not have", hint=f"it has: {there}")
    if not found:
        raise ExportError("the models have no layers of the same name to compare", hint="name them in `features`")
    return found


def _watch(model: nn.Module, names: Sequence[str], keep: Callable[[str, Tensor], None]) -> list[RemovableHandle]:
    """Have `keep` told what these layers find; one that stands in several places (`share`) is told in turns."""
    places: dict[nn.Module, list[str]] = {}
    for path, layer in model.named_modules(remove_duplicate=False):
        places.setdefault(layer, []).append(path)

    def hook(paths: Iterator[str]) -> Any:
        def look(_: nn.Module, given: Any, output: Any) -> None:
            name = next(paths)
            if name in names:
                keep(name, _as_tensor(name, output))

        return look

    layers = dict.fromkeys(model.get_submodule(name) for name in names)
    return [layer.register_forward_hook(hook(cycle(places[layer]))) for layer in layers]


def _as_tensor(name: str, output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise ExportError(
            f"feature '{name}' gives {type(output).__name__}, not one tensor", hint="name a layer before or inside it"
        )
    return output


def _outputs(model: nn.Module, names: Sequence[str], inputs: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    handles = _watch(model, names, found.__setitem__)
    try:
        with torch.no_grad():
            model.eval()(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


class _OverChannels(nn.Module):
    """A linear map of the channels at every place: dim 1 of images, the last dim of all else."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return x with `outputs` channels."""
        y: Tensor = self.linear(x.movedim(1, -1)).movedim(-1, 1) if x.dim() == 4 else self.linear(x)
        return y


def _map(name: str, mine: Tensor, theirs: Tensor) -> nn.Module:
    """Return what brings the pupil's feature to the teacher's shape."""
    if mine.shape == theirs.shape:
        return nn.Identity()
    at = 1 if mine.dim() == 4 else -1
    shapes = [list(each.shape) for each in (mine, theirs)]
    sizes = [shape.pop(at) for shape in shapes]
    if shapes[0] != shapes[1]:
        raise ExportError(
            f"feature '{name}' is {tuple(mine.shape[1:])} here and {tuple(theirs.shape[1:])} at the teacher: "
            f"they differ in more than channels",
            hint="leave it out of `features`",
        )
    return _OverChannels(*sizes).to(mine.dtype)
