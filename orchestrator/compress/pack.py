"""`use: pack`: an exported graph as an archive of masks, codebooks and codes that restores it bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.compress.base import ARTIFACT, EXPORTED, Change, Context, State
from orchestrator.compress.formats import exported_as
from orchestrator.errors import ExportError

if TYPE_CHECKING:
    from orchestrator.spec.job import JobSpec


@dataclass(frozen=True)
class Config:
    """No options. Small after `prune` (unstructured) and `share`. It is storage: restored, it runs as it did before."""


def flow(config: Config) -> tuple[str, str]:
    """Return what it takes and gives."""
    return EXPORTED, ARTIFACT


def job_problems(config: Config, job: JobSpec) -> list[tuple[str, str, str]]:
    """Return why the exported format cannot be packed, as (key, message, hint)."""
    format = exported_as(job)
    if format == "onnx":
        return []
    return [("", f"pack writes archives of onnx graphs, and export writes {format}", "export as onnx, or remove pack")]


def build(config: Config) -> Pack:
    """Return the step."""
    return Pack()


class Pack:
    """Writes `model.pack`."""

    def apply(self, state: State, context: Context) -> Change:
        """Return the archive, restored once to see that it does."""
        from orchestrator.compress.archive import pack, unpack

        content = state.file().read_bytes()
        archive = pack(content)
        if unpack(archive) != content:
            raise ExportError("the archive does not restore the graph it was made of")
        context.folder.mkdir(parents=True, exist_ok=True)
        (context.folder / "model.pack").write_bytes(archive)
        after = State(
            ARTIFACT, state.model, folder=context.folder, files=("model.pack",), format="pack", scheme=state.scheme
        )
        return Change(after, {"restored_bytes": len(content)})
