"""`Runtime`: how the processes that judge a file open it and see what it holds. No torch is imported here.

Files are handed on as bytes that were hashed: what is judged is what was hashed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from orchestrator.compress.formats import FORMATS, load
from orchestrator.errors import ExportError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from orchestrator.compress.manifest import Page
    from orchestrator.export.manifest import FileEntry

    Array = NDArray[np.generic]
    Run = Callable[[Array], Array]

REFERENCE = "reference"
"""The folder beside an artifact that holds the model as it was."""
MIN_COVERAGE = 0.95
"""Share of the weights that must be integers for a file to be called by its scheme."""


class Runtime(Protocol):
    """One format. `files` are those that running takes; `refused` is what the checking process must not import."""

    files: tuple[str, ...]
    refused: tuple[str, ...]
    reference: str
    """The format in which this runtime runs the model as it was: what the file is compared with."""
    code: tuple[str, ...]
    """Of the training code, what it cannot do without: () for every format that can be deployed."""
    packages: tuple[str, ...]
    """Distributions whose versions the page records: those that made the file and those that run it."""

    def open(self, contents: Mapping[str, bytes], threads: int = 1) -> Run:
        """Return the model as a function of a batch. Raises ExportError when the runtime alone cannot run it.

        Raises NotAbleError when the runtime is not installed.
        """

    def inspect(self, contents: Mapping[str, bytes], page: Page) -> dict[str, Any]:
        """Return coverage, weights by bits, operators and how many compute on integers, counted in the file.

        Raises ExportError when the file is not what its page claims.
        """


@runtime_checkable
class FromPath(Protocol):
    """A runtime that reads files from where they lie without holding their bytes a second time."""

    def open_path(self, folder: Path, threads: int = 1) -> Run:
        """Return the model in a folder as a function of a batch."""


def open_deployed(folder: Path, format: str, target: str = "cpu") -> Run:
    """Return the model in a folder as who deploys it opens it: by its path where the runtime can, nothing hashed."""
    runtime = runtime_of(format, target)
    if isinstance(runtime, FromPath):
        return runtime.open_path(folder)
    return open_folder(folder, format, target=target)


def runtime_of(format: str, target: str = "cpu") -> Runtime:
    """Return the runtime of a format on a target. Raises ExportError when none is known here."""
    if format not in FORMATS:
        raise ExportError(f"an artifact of format {format} is not known here", hint=f"formats: {', '.join(FORMATS)}")
    places = {"cpu": FORMATS[format].runtime, **FORMATS[format].runtimes}
    if target not in places:
        raise ExportError(f"{format} on {target} is not known here", hint=f"targets: {', '.join(places)}")
    found: Runtime = load(places[target])
    return found


def read_files(folder: Path, names: Iterable[str] | Mapping[str, FileEntry]) -> dict[str, bytes]:
    """Return files by name. With entries, raises ExportError when the bytes read are not those that were hashed."""
    contents = {name: (folder / name).read_bytes() for name in names}
    if isinstance(names, Mapping):
        for name, entry in names.items():
            if hashlib.sha256(contents[name]).hexdigest() != entry.sha256:
                raise ExportError(f"{folder / name} was altered: its SHA-256 differs from the page's")
    return contents


def open_folder(
    folder: Path,
    format: str,
    names: Iterable[str] | Mapping[str, FileEntry] = (),
    threads: int = 1,
    target: str = "cpu",
) -> Run:
    """Return the model in a folder as a function of a batch; its files are the format's own where none are named."""
    runtime = runtime_of(format, target)
    return runtime.open(read_files(folder, names or runtime.files), threads)


def reference_files(format: str) -> tuple[str, ...]:
    """Return the files of the model as it was, in a format's own runtime, relative to the folder above the artifact."""
    return tuple(f"{REFERENCE}/{name}" for name in runtime_of(runtime_of(format).reference).files)


def open_reference(folder: Path, page: Page, threads: int = 1) -> Run | None:
    """Return the model as it was in the runtime of an artifact; None where it has no such form.

    Raises ExportError when its files are not those that the page names.
    """
    entries = {Path(name).name: page.beside[name] for name in reference_files(page.format) if name in page.beside}
    if not entries:
        return None
    return open_folder(folder.parent / REFERENCE, runtime_of(page.format).reference, entries, threads, page.target)


def some(names: Sequence[str], shown: int = 3) -> str:
    """Return the first of many names, and that there are more."""
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def require_integers(integer_operators: int, coverage: float, scheme: str) -> None:
    """Raise ExportError when a file is not what its scheme claims: no operator on integers, or too few weights."""
    if integer_operators == 0:
        raise ExportError(
            f"{scheme} in name only: the runtime runs no operator on integers",
            hint="the graph holds quantised weights that are turned back into floats before every use",
        )
    if coverage < MIN_COVERAGE:
        raise ExportError(
            f"{scheme} reached {coverage:.1%} of the weights, {MIN_COVERAGE:.0%} are needed to call it that",
            hint="layers of other kinds stayed in floats",
        )
