"""`Fork`: a training that begins from one checkpoint of another. Taken by the driver, recognised by the loader.

The checkpoint is linked into the new training's folder, so that it outlives the other's. Imports no torch.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from orchestrator.checkpoint.disk import MANIFEST, Disk
from orchestrator.checkpoint.verify import list_committed
from orchestrator.errors import CheckpointError


@dataclass(frozen=True)
class Fork:
    """The one foreign checkpoint that a training may begin from.

    `checkpoint` is the name of its folder; `sha256` that of its manifest, which holds those of all its files.
    """

    checkpoint: str
    sha256: str

    def is_of(self, path: Path) -> bool:
        """Say whether this committed checkpoint is the one."""
        return path.name == self.checkpoint and _hash_of(path) == self.sha256


def take(source: Path, step: int, target: Path) -> Fork:
    """Make the checkpoint that `source` has of `step` the only one in `target`, durably; return what it is.

    Whatever `target` held is deleted. Raises CheckpointError when `source` has none of that step.
    """
    found = next((path for manifest, path in list_committed(source)[0] if manifest.step == step), None)
    if found is None:
        raise CheckpointError(
            f"{source} has no checkpoint of step {step}, from which another training is to begin",
            hint="restore the folder from a copy, or start anew",
        )
    shutil.rmtree(target, ignore_errors=True)
    place = target / found.name
    place.mkdir(parents=True)
    for name in sorted(os.listdir(found), key=lambda each: each == MANIFEST):  # the manifest is the commit: it is last
        link_file(str(found / name), str(place / name))
    for folder in (place, target, target.parent, target.parent.parent):  # the training's own folder may be new, too
        Disk().sync_folder(folder)
    return Fork(found.name, _hash_of(found))


def link_file(source: str, target: str) -> None:
    """Give a file that is never written again a second name; copy it durably where there are no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
        Disk().sync_file(Path(target))


def _hash_of(path: Path) -> str:
    return hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
