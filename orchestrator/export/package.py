"""From a model in memory to verified export folders: written beside their place, compared by a fresh process, moved.

Formats that run in torch are verified by one process while the others are still being written.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import plugins
from orchestrator.errors import ExportError, OrchestratorError
from orchestrator.export import manifest as pages
from orchestrator.export.base import CHECK_FILE, ArrayLoader, Exporter, Tolerance, cut_batches
from orchestrator.export.manifest import Manifest, Verified, kept_job
from orchestrator.export.verify import Verification
from orchestrator.spec.base import Use
from orchestrator.spec.digest import job_digest
from orchestrator.spec.job import JobSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

_EXAMPLE_ROWS = 2


@dataclass(frozen=True)
class Source:
    """Where a model comes from: job, name of the checkpoint, digest of the weights, what was done to raw inputs."""

    job: JobSpec
    checkpoint: str = ""
    weights_digest: str = ""
    transform: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportOutcome:
    """What became of one format: a verified folder, or the reason why there is none."""

    format: str
    path: Path
    verified: Verified | None = None
    error: str = ""
    hint: str = ""
    reused: bool = False
    write_s: float = 0.0
    num_bytes: int = 0

    @property
    def ok(self) -> bool:
        """Whether the export exists and compares."""
        return self.verified is not None


@dataclass(frozen=True)
class _Draft:
    use: Use
    folder: Path
    target: Path
    write_s: float


class ExportBatch:
    """Exports one model to several formats under `root`; `held_out` are inputs the comparison runs on (>= 2 rows).

    `model` must be on the CPU, in eval mode and in plain memory layout (`weights.plain_copy`). Use: `write`, then
    whatever else there is to do, then `collect`, at the end `close`. `warm` is a verifying process started beforehand.
    """

    def __init__(
        self, model: nn.Module, held_out: Tensor, source: Source, root: Path, warm: Verification | None = None
    ) -> None:
        import torch

        if len(held_out) < _EXAMPLE_ROWS:
            raise ExportError(f"{len(held_out)} held-out rows: at least {_EXAMPLE_ROWS} are needed")
        self._model, self._held_out, self._source, self._root = model, held_out, source, root
        self._warm = warm
        self._num_threads = torch.get_num_threads()
        self._outputs = _eager_outputs(model, held_out)
        self._waiting: list[_Draft] = []
        self._running: list[tuple[list[_Draft], Verification]] = []
        self._outcomes: dict[Path, ExportOutcome] = {}
        self._order: list[tuple[Use, Path]] = []

    def write(self, uses: Iterable[Use]) -> None:
        """Write every format that is not there already, start verifying; one that fails does not stop the rest."""
        self._root.mkdir(parents=True, exist_ok=True)
        jobs: list[tuple[Use, Path, Exporter]] = []
        added = _targets(self._root, uses, {target.name for _, target in self._order})
        self._order += added
        for use, target in added:
            try:
                jobs.append((use, target, plugins.build("exporters", use.use, use.options)))
            except OrchestratorError as error:
                self._fail(use, target, error)
        for in_torch in (True, False):
            for use, target, exporter in jobs:
                if in_torch != isinstance(exporter, ArrayLoader):
                    self._write_one(use, target, exporter)
            self._start(self._warm if in_torch else None)

    def folders(self) -> dict[str, Path]:
        """Return where each format lies now (a draft until `collect`), in the order given; failed ones are left out."""
        here = {draft.target: draft.folder for group, _ in self._running for draft in group}
        here |= {target: outcome.path for target, outcome in self._outcomes.items() if outcome.ok}
        return {use.use: here[target] for use, target in self._order if target in here}

    def collect(self) -> tuple[ExportOutcome, ...]:
        """Wait for the comparisons, move what holds into place, delete the rest, and say what became of each format."""
        for drafts, verification in self._running:
            results = verification.results()
            for draft in drafts:
                self._settle(draft, results[draft.folder])
        self._running.clear()
        return tuple(self._outcomes[target] for _, target in self._order)

    def close(self) -> None:
        """End verifying processes and delete drafts that were not collected."""
        if self._warm is not None:
            self._warm.close()
        for drafts, verification in self._running:
            verification.close()
            for draft in drafts:
                shutil.rmtree(draft.folder, ignore_errors=True)
        self._running.clear()

    def _write_one(self, use: Use, target: Path, exporter: Exporter) -> None:
        started = time.perf_counter()
        page = self._page(use, exporter)
        if reused := _reusable(target, page):
            size = sum(entry.num_bytes for entry in reused.files.values())
            self._outcomes[target] = ExportOutcome(use.use, target, reused.verified, reused=True, num_bytes=size)
            return
        draft = target.with_name(f".draft-{target.name}-{os.getpid()}")
        _remove_stale(target)
        try:
            draft.mkdir()
            files = exporter.write(self._model, self._held_out[:_EXAMPLE_ROWS], draft)
            self._write_check(draft)
            names = [str(path.relative_to(draft)) for path in files] + [CHECK_FILE]
            pages.write_manifest(draft, replace(page, files=pages.hash_files(draft, names)))
        except (OrchestratorError, OSError) as error:
            shutil.rmtree(draft, ignore_errors=True)
            self._fail(use, target, error)
            return
        self._waiting.append(_Draft(use, draft, target, time.perf_counter() - started))

    def _start(self, warm: Verification | None) -> None:
        if self._waiting:
            verification = warm or Verification()
            self._warm = None if warm else self._warm
            verification.add(draft.folder for draft in self._waiting)
            self._running.append((list(self._waiting), verification))
            self._waiting.clear()

    def _settle(self, draft: _Draft, result: Verified | ExportError) -> None:
        if isinstance(result, ExportError):
            shutil.rmtree(draft.folder, ignore_errors=True)
            self._fail(draft.use, draft.target, result)
            return
        page = pages.with_verified(pages.read_manifest(draft.folder), result)
        pages.write_manifest(draft.folder, page)
        _move_into_place(draft.folder, draft.target)
        size = sum(entry.num_bytes for entry in page.files.values())
        self._outcomes[draft.target] = ExportOutcome(
            draft.use.use, draft.target, result, write_s=draft.write_s, num_bytes=size
        )

    def _fail(self, use: Use, target: Path, error: Exception) -> None:
        message = error.message if isinstance(error, OrchestratorError) else str(error)
        hint = error.hint if isinstance(error, OrchestratorError) else ""
        self._outcomes[target] = ExportOutcome(use.use, target, error=message, hint=hint)

    def _write_check(self, folder: Path) -> None:
        from safetensors.torch import save_file

        tensors = {"inputs": self._held_out.contiguous(), "outputs": self._outputs}
        save_file(tensors, str(folder / CHECK_FILE))

    def _page(self, use: Use, exporter: Exporter) -> Manifest:
        source, inputs, outputs = self._source, self._held_out, self._outputs
        try:
            versions = dict(exporter.versions())
        except ModuleNotFoundError:  # an extra that is not installed: `write` says which
            versions = {}
        return Manifest(
            format=use.use,
            options=use.options,
            files={},
            versions=versions,
            inputs=_signature(inputs) | {"transform": dict(source.transform)},
            outputs=_signature(outputs),
            job=kept_job(source.job),
            job_digest=job_digest(source.job),
            checkpoint=source.checkpoint,
            weights_digest=source.weights_digest,
            num_threads=self._num_threads,
            tolerance=asdict(getattr(exporter, "tolerance", Tolerance(relative=1e-5))),
        )


def open_export(folder: Path, *, verified: bool = True) -> tuple[Callable[[Tensor], Tensor], Manifest]:
    """Return an exported model as a function of a batch, and its manifest; its files are hashed first.

    `verified=False` also opens one whose comparison is not done yet. Raises ExportError.
    """
    page = pages.check_folder(folder) if verified else pages.read_manifest(folder)
    if not verified:
        pages.check_files(folder, page)
    exporter: Exporter = plugins.build("exporters", page.format, page.options)
    return exporter.load(folder), page


def _eager_outputs(model: nn.Module, held_out: Tensor) -> Tensor:
    import torch

    with torch.no_grad():
        parts = [model(held_out[cut]) for cut in cut_batches(len(held_out))]
    if not all(isinstance(part, torch.Tensor) and part.dim() > 0 for part in parts):
        raise ExportError("the model does not return one tensor with a batch dim: it cannot be compared or served")
    return torch.cat(parts).contiguous()


def _signature(tensor: Tensor) -> dict[str, Any]:
    return {"shape": [None, *tensor.shape[1:]], "dtype": str(tensor.dtype).removeprefix("torch.")}


def _targets(root: Path, uses: Iterable[Use], taken: set[str]) -> list[tuple[Use, Path]]:
    """Return a folder of its own for every format; an import path becomes its last part."""
    found: list[tuple[Use, Path]] = []
    for use in uses:
        base = re.sub(r"[^A-Za-z0-9_-]+", "-", use.use.replace(":", ".").rsplit(".", 1)[-1])
        name, number = base, 1
        while name in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(name)
        found.append((use, root / name))
    return found


def _reusable(target: Path, wanted: Manifest) -> Manifest | None:
    """Return the manifest of a verified, untouched export of the same weights by the same versions, if any."""
    try:
        found = pages.check_folder(target)
    except ExportError:
        return None
    same = replace(found, files={}, verified=None)
    return found if pages.json_digest(asdict(same)) == pages.json_digest(asdict(wanted)) else None


def _remove_stale(target: Path) -> None:
    """Delete what processes that are gone left half written."""
    from orchestrator.runs.record import process_started

    for folder in target.parent.glob(f".draft-{target.name}-*"):
        pid = folder.name.rpartition("-")[2]
        if not pid.isdigit() or int(pid) == os.getpid() or not process_started(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _move_into_place(draft: Path, target: Path) -> None:
    """Make every file durable, then rename; an older export of the format is replaced."""
    for path in (*(item for item in draft.rglob("*") if item.is_file()), draft):
        _sync(path)
    older = target.with_name(f".draft-{target.name}-older-{os.getpid()}")
    if target.exists():
        target.replace(older)
    draft.replace(target)
    shutil.rmtree(older, ignore_errors=True)
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
