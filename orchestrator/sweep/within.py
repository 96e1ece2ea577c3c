"""Files of a sweep that its trials' settings name: relative to the sweep's folder in the ledger, which may be moved.

Called by the ledger alone; everybody else sees whole paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_INIT = "train.init"
_TRIALS = "trials"


def as_kept(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as the ledger keeps them."""
    init = settings.get(_INIT)
    if not isinstance(init, Mapping) or "file" not in init or not Path(init["file"]).is_relative_to(folder / _TRIALS):
        return dict(settings)
    return {**settings, _INIT: {**init, "file": Path(init["file"]).relative_to(folder).as_posix()}}


def as_found(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as a trial has them. Older ledgers hold whole paths: where the sweep lay once."""
    init = settings.get(_INIT)
    if not isinstance(init, Mapping) or "file" not in init:
        return dict(settings)
    file = Path(init["file"])
    if not file.is_absolute():
        if file.parts[:1] != (_TRIALS,):  # a searcher's own: from where the sweep is begun
            return dict(settings)
        return {**settings, _INIT: {**init, "file": str(folder / file)}}
    moved = folder.joinpath(*file.parts[-3:])  # trials/supernet-.../weights.safetensors
    if not file.is_file() and file.parts[-3:-2] == (_TRIALS,) and moved.is_file():
        return {**settings, _INIT: {**init, "file": str(moved)}}
    return dict(settings)
