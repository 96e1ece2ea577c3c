"""`nets.json` and `ranking.json`: which nets a supernet holds, and what each scored. Torch-free; driver and worker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import CheckpointError
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import write_json
from orchestrator.spec.base import Use

WEIGHTS_FILE = "weights.safetensors"


@dataclass(frozen=True)
class Nets:
    """What the worker is asked: the `model` sections of the nets, the smallest first, and how they are trained.

    `num_random`: nets drawn anew in every step. `distill`: the parts learn from the wide net's answers, else from the
    targets. `recalibrate`: training batches from which a part's batch norms take their figures before it is scored.
    """

    models: tuple[Mapping[str, Any], ...]
    num_random: int = 2
    distill: bool = True
    recalibrate: int = 16

    @property
    def uses(self) -> list[Use]:
        """The nets as `model` sections."""
        return [Use.model_validate(dict(each)) for each in self.models]


@dataclass(frozen=True)
class Ranking:
    """What came of it: the metrics of every net in the order of `Nets.models`, and the file of the shared weights."""

    scores: tuple[Mapping[str, float], ...]
    file: str
    sha256: str
    whole: Mapping[str, float] = field(default_factory=dict)
    train_s: float = 0.0
    rank_s: float = 0.0


def nets_path(run: RunDir) -> Path:
    """Return where the question lies."""
    return run.path / "nets.json"


def ranking_path(run: RunDir) -> Path:
    """Return where the answer lies; there once all nets are scored."""
    return run.path / "ranking.json"


def write_nets(run: RunDir, nets: Nets) -> None:
    """Write the question."""
    write_json(nets_path(run), asdict(nets))


def read_nets(run: RunDir) -> Nets:
    """Return the question. Raises CheckpointError when it cannot be read."""
    content = _read(nets_path(run))
    return Nets(**{**content, "models": tuple(content["models"])})


def write_ranking(run: RunDir, ranking: Ranking) -> None:
    """Write the answer, whole or not at all."""
    write_json(ranking_path(run), asdict(ranking))


def read_ranking(run: RunDir, num_nets: int) -> Ranking | None:
    """Return the answer; None when there is none for so many nets, or the weights are gone."""
    if not ranking_path(run).is_file():
        return None
    content = _read(ranking_path(run))
    found = Ranking(**{**content, "scores": tuple(content["scores"])})
    return found if len(found.scores) == num_nets and Path(found.file).is_file() else None


def supernet_folders(sweep: RunDir) -> list[RunDir]:
    """Return where the supernets of a sweep lie, whatever became of them."""
    return [RunDir(path) for path in sorted(sweep.trials.glob("supernet-*"))]


def supernet_seconds(sweep: RunDir) -> float:
    """Return the seconds that training and ranking the supernets of a sweep took; 0.0: it has none."""
    rankings = [_read(path) for each in supernet_folders(sweep) if (path := ranking_path(each)).is_file()]
    return sum(float(each["train_s"]) + float(each["rank_s"]) for each in rankings)


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", hint="delete its folder: it is made again") from error
    return content
