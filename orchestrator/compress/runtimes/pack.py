"""Archives (`compress.archive`): restored in memory, then run as the ONNX graph that they were made of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.compress.archive import unpack
from orchestrator.compress.runtimes.onnx import Onnx
from orchestrator.errors import ExportError

if TYPE_CHECKING:
    from orchestrator.compress.manifest import Page
    from orchestrator.compress.runtimes.base import Run


class Pack(Onnx):
    """One `model.pack`."""

    files = ("model.pack",)

    def open(self, contents: Mapping[str, bytes], threads: int = 1) -> Run:
        """Return the restored graph as a function of a batch."""
        return super().open(restore(contents), threads)

    def open_path(self, folder: Path, threads: int = 1) -> Run:
        """Return the restored graph of the archive in a folder as a function of a batch."""
        return self.open({name: (folder / name).read_bytes() for name in self.files}, threads)

    def inspect(self, contents: Mapping[str, bytes], page: Page) -> dict[str, Any]:
        """Count in the restored graph, which must be the one that the archive was made of, bit for bit."""
        graph = restore(contents)
        (content,) = graph.values()
        if hashlib.sha256(content).hexdigest() != page.restored.get("sha256"):
            raise ExportError("the archive restores another graph than the one it was made of")
        return {"restored_bytes": len(content), **super().inspect(graph, page)}


RUNTIME = Pack()


def restore(contents: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the graph in an archive. Raises ExportError when the archive is damaged."""
    return {name: unpack(content) for name, content in contents.items()}
